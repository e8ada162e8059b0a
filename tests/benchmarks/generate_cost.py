"""What an edit costs in the generation of a LLaVA of about 100 million parameters.

    OMP_NUM_THREADS=1 VENV/bin/python tests/benchmarks/generate_cost.py

VENV is an environment with `sae-lens==6.54.12` and this package; in any other, SAELens is left out.
One feature of a dictionary of 16,384 at the middle layer is multiplied by 3 at every token: by a
patch, by a hook that encodes and decodes everything, and by SAELens with its error term. Methods in
turn, CPU time of the process, per token that is generated: runs of 32 tokens less runs of one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from edit_cost import dictionary, sae_lens, spread, whole
from steering_cost import make_llava

from vlm_edit import Dictionary, Patch, Project, Scale
from vlm_edit.report import Table

FEATURES, FEATURE, TOKENS = 16384, 7, 32
Method = Callable[[nn.Module], AbstractContextManager[object]]


def patched(layer: int, one: Dictionary, project: bool = False) -> Method:
    """By a patch."""
    rule = Project([FEATURE]) if project else Scale([FEATURE], 3.0)
    patch = Patch(f"language.{layer}", one, rule)
    return patch.attach


def hooked(layer: int, edit: Callable[[Tensor], Tensor] | None) -> Method | None:
    """By a forward hook."""
    if edit is None:
        return None

    @contextmanager
    def method(host: nn.Module) -> Iterator[object]:
        module = host.get_submodule(f"model.language_model.layers.{layer}")
        handle = module.register_forward_hook(lambda _m, _a, x: edit(x), prepend=True)
        try:
            yield handle
        finally:
            handle.remove()

    return method


@contextmanager
def plain(host: nn.Module) -> Iterator[object]:
    """No edit."""
    yield host


def seconds(host: nn.Module, rows: int, tokens: int) -> float:
    """CPU time of a run."""
    ids = torch.tensor([[1, 5, *[500] * 16, 6, 7, 8]]).repeat(rows, 1)
    pixels = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    host.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=tokens,
        do_sample=False,
    )
    return time.process_time() - start


@torch.no_grad()
def times(
    width: int, layers: int, batches: tuple[int, ...], rounds: int
) -> tuple[int, dict[int, dict[str, list[float]]]]:
    """Parameters of the host, and seconds per token of each method, round by round, by batch."""
    host = make_llava(width, layers)
    layer = layers // 2
    jump, top = (dictionary(width, FEATURES, kind) for kind in ("jumprelu", "topk"))
    methods: dict[str, Method | None] = {
        "plain": plain,
        "patch, JumpReLU": patched(layer, jump),
        "patch, Project": patched(layer, jump, project=True),
        "patch, TopK": patched(layer, top),
        "whole, JumpReLU": hooked(layer, whole(jump, [FEATURE])),
        "SAELens, JumpReLU": hooked(layer, sae_lens(jump, [FEATURE])),
        "SAELens, TopK": hooked(layer, sae_lens(top, [FEATURE])),
    }
    known = {name: method for name, method in methods.items() if method is not None}
    names = list(known)
    found: dict[int, dict[str, list[float]]] = {}
    for batch in batches:
        found[batch] = {name: [] for name in names}
        for number in range(-1, rounds):  # the first warms up
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with known[name](host):
                    spent = seconds(host, batch, TOKENS) - seconds(host, batch, 1)
                if number >= 0:
                    found[batch][name].append(spent / (TOKENS - 1))
    return sum(p.numel() for p in host.parameters()), found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, found = times(options.width, options.layers, (1, 8), options.rounds)
    print(f"{count / 1e6:.0f} M parameters, width {options.width}, {options.layers} layers")
    rows = []
    for batch, methods in found.items():
        for name, spent in methods.items():
            middle, low, high = spread(methods["plain"], spent)
            told = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
            rows.append([str(batch), name, f"{1e3 * statistics.median(spent):.1f}", told])
    print(Table("", ("batch", "method", "ms a token", "times plain"), rows, "[middle half]."))


if __name__ == "__main__":
    main()
