"""What the edit of dictionary features costs on a GPU, beside a hook that encodes everything.

    python tests/benchmarks/gpu_cost.py

CUDA events around many edits, methods in turn, medians of the rounds' ratios: eager, and captured
in a CUDA graph, as compiled decoding runs it (there nothing is spent on launches).
Then `generate` of a random LLaVA with and without a patch, wall time of runs of 32 new tokens less
runs of one. The run stops where outputs differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from edit_cost import FACTOR, dictionary
from generate_cost import FEATURE, FEATURES, TOKENS, Method, hooked, patched, plain
from steering_cost import make_llava

from vlm_edit import Dictionary, Scale
from vlm_edit.edits import Splice
from vlm_edit.report import Table

Edit = Callable[[Tensor], Tensor]
SHAPES = ((1024, 8192), (1024, 65536), (4096, 32768), (4096, 131072))
DEVICE = torch.device("cuda")


def moved(one: Dictionary) -> Dictionary:
    """On the GPU."""
    return Dictionary(one.encoder.to(DEVICE), one.decoder.to(DEVICE), one.decoder_bias.to(DEVICE))


def whole(one: Dictionary) -> Edit:
    """Everything encoded, everything decoded twice, the error added; nothing waits for the GPU."""

    def edit(x: Tensor) -> Tensor:
        hidden = x.float()
        codes = one.encode(hidden)
        error = hidden - one.decode(codes)
        codes[..., FEATURE] *= FACTOR
        return (one.decode(codes) + error).to(x.dtype)

    return edit


def milliseconds(edit: Callable[[], object], count: int) -> float:
    """Of the device, per edit."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()  # type: ignore[no-untyped-call]
    for _ in range(count):
        edit()
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / count


def captured(edit: Edit, x: Tensor) -> Callable[[], object]:
    """The edit as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            edit(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        edit(x)
    return graph.replay


@torch.no_grad()
def compare(one: Dictionary, tokens: int, dtype: torch.dtype, rounds: int) -> list[list[str]]:
    """Two rows, eager and as a graph: our time, and the other's over ours."""
    activation, shape = one.encoder.activation, (one.width, one.n_features)
    splice = Splice.of(one, [Scale([FEATURE], FACTOR)])
    x = torch.randn(tokens, shape[0], generator=torch.Generator().manual_seed(1))
    x = x.to(DEVICE, dtype)
    edits: dict[str, Edit] = {"ours": lambda y: splice(y), "whole": whole(moved(one))}
    off = float((edits["ours"](x) - edits["whole"](x)).abs().max())
    if off > (1e-3 if dtype == torch.float32 else 0.1):
        raise SystemExit(f"{activation} {shape} {tokens} {dtype}: they differ by {off:.2g}")
    rows = []
    for way in ("eager", "graph"):
        runs: dict[str, Callable[[], object]] = {
            name: captured(edit, x) if way == "graph" else (lambda edit=edit: edit(x))
            for name, edit in edits.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(-1, rounds):
            for name, run in runs.items():
                spent = milliseconds(run, 50)
                if number >= 0:
                    times[name].append(spent)
        ratios = sorted(b / a for a, b in zip(times["ours"], times["whole"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        rows.append(
            [
                activation,
                f"{shape[0]} x {shape[1]}",
                str(tokens),
                str(dtype).removeprefix("torch."),
                way,
                f"{1e3 * statistics.median(times['ours']):.1f}",
                f"{statistics.median(ratios):.3g} [{low:.3g}, {high:.3g}]",
            ]
        )
        print(*rows[-1], sep="  ", flush=True)
    return rows


def seconds(host: torch.nn.Module, rows: int, tokens: int) -> float:
    """Wall time of a run."""
    ids = torch.tensor([[1, 5, *[500] * 16, 6, 7, 8]], device=DEVICE).repeat(rows, 1)
    pixels = torch.randn(rows, 3, 32, 32, device=DEVICE, dtype=next(host.parameters()).dtype)
    torch.cuda.synchronize()
    start = time.perf_counter()
    host.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=tokens,
        do_sample=False,
    )
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def generations(width: int, layers: int, rounds: int) -> list[list[str]]:
    """Rows of batches and methods: ms a token, and times plain."""
    host = make_llava(width, layers).to(DEVICE, torch.bfloat16)
    count, layer = sum(p.numel() for p in host.parameters()), layers // 2
    print(f"{count / 1e6:.0f} M parameters, width {width}, {layers} layers, bfloat16")
    jump, top = (dictionary(width, FEATURES, kind) for kind in ("jumprelu", "topk"))
    methods: dict[str, Method | None] = {
        "plain": plain,
        "patch, JumpReLU": patched(layer, jump),
        "patch, Project": patched(layer, jump, project=True),
        "patch, TopK": patched(layer, top),
        "whole, JumpReLU": hooked(layer, whole(moved(jump))),
        "whole, TopK": hooked(layer, whole(moved(top))),
    }
    known = {name: method for name, method in methods.items() if method is not None}
    names, rows = list(known), []
    for batch in (1, 8, 64):
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(-1, rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with known[name](host):
                    spent = seconds(host, batch, TOKENS) - seconds(host, batch, 1)
                if number >= 0:
                    times[name].append(spent / (TOKENS - 1))
        for name in names:
            ratios = sorted(a / b for a, b in zip(times[name], times["plain"], strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            told = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
            rows.append([str(batch), name, f"{1e3 * statistics.median(times[name]):.2f}", told])
            print(*rows[-1], sep="  ", flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--activation", choices=("jumprelu", "topk"), action="append")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    rows = [
        row
        for activation in options.activation or ("jumprelu", "topk")
        for shape in SHAPES
        for one in (dictionary(*shape, activation),)
        for tokens in (1, 600)
        for dtype in (torch.float32, torch.bfloat16)
        for row in compare(one, tokens, dtype, options.rounds)
    ]
    columns = ("activation", "width x features", "tokens", "host", "way", "us", "whole / ours")
    print(Table("The other's time over ours", columns, rows, "Medians [middle half]."))
    told = generations(options.width, options.layers, options.rounds)
    print(Table("", ("batch", "method", "ms a token", "times plain"), told, "[middle half]."))


if __name__ == "__main__":
    main()
