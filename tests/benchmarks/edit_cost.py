"""What the edit of dictionary features costs, beside the usual ways: isolated, and in turn.

    OMP_NUM_THREADS=1 VENV/bin/python tests/benchmarks/edit_cost.py

VENV is an environment with `sae-lens==6.54.12` and this package;
in any other, SAELens is left out. Each edit multiplies features by 3 and keeps the reconstruction
error: ours as a patch's splice; by a hook that encodes, decodes twice and adds the error; and by
SAELens' `SAE.forward` with `use_error_term`, its activations edited by a hook point. The run stops
where outputs differ. CPU time of the process, methods in turn, medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vlm_edit import Dictionary, Scale
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Splice
from vlm_edit.report import Table

Edit = Callable[[Tensor], Tensor]
SHAPES = ((256, 2048), (256, 16384), (1024, 8192), (1024, 65536), (4096, 32768))
K, FACTOR, LEAST = 32, 3.0, 0.02


def dictionary(width: int, features: int, activation: str) -> Dictionary:
    """Random, with some tens of features active."""
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(features, width, generator=g), dim=1)
    threshold = torch.full((features,), 2.8) if activation == "jumprelu" else None
    bias = torch.zeros(width)
    encoder = Encoder(
        rows.T.contiguous(),
        torch.zeros(features),
        activation,  # type: ignore[arg-type]
        threshold=threshold,
        k=K if activation == "topk" else None,
        subtract=bias,
    )
    return Dictionary(encoder, rows, bias)


def whole(one: Dictionary, chosen: list[int]) -> Edit:
    """Everything encoded, everything decoded twice, the error added."""

    def edit(x: Tensor) -> Tensor:
        codes = one.encode(x)
        error = x - one.decode(codes)
        codes[..., chosen] *= FACTOR
        return one.decode(codes) + error

    return edit


def sae_lens(one: Dictionary, chosen: list[int]) -> Edit | None:
    """SAELens' own forward with its error term."""
    try:
        from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
        from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    except ImportError:
        return None
    encoder, sizes = one.encoder, {"d_in": one.width, "d_sae": one.n_features}
    if encoder.k is None:
        sae = JumpReLUSAE(JumpReLUSAEConfig(**sizes))
    else:
        sae = TopKSAE(TopKSAEConfig(**sizes, k=encoder.k, rescale_acts_by_decoder_norm=False))
    with torch.no_grad():
        sae.W_enc.copy_(encoder.weight)
        sae.b_enc.copy_(encoder.bias)
        sae.W_dec.copy_(one.decoder)
        sae.b_dec.copy_(one.decoder_bias)
        if encoder.threshold is not None:
            sae.threshold.copy_(encoder.threshold)
    sae.use_error_term = True

    def multiply(codes: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        codes = codes.to_dense() if codes.is_sparse else codes.clone()
        codes[..., chosen] *= FACTOR
        return codes

    sae.hook_sae_acts_post.add_hook(multiply)
    return lambda x: sae(x)


def seconds(edit: Edit, x: Tensor, count: int) -> float:
    """CPU time of one edit."""
    start = time.process_time()
    for _ in range(count):
        edit(x)
    return (time.process_time() - start) / count


@torch.no_grad()
def times(
    activation: str, shape: tuple[int, int], tokens: int, chosen: list[int], rounds: int
) -> dict[str, list[float]]:
    """Seconds of an edit by each method, round by round."""
    one = dictionary(*shape, activation)
    splice = Splice.of(one, [Scale(chosen, FACTOR)])
    methods: dict[str, Edit | None] = {
        "ours": lambda x: splice(x),
        "whole": whole(one, chosen),
        "sae-lens": sae_lens(one, chosen),
    }
    x = torch.randn(tokens, shape[0], generator=torch.Generator().manual_seed(1))
    outputs = {name: edit(x) for name, edit in methods.items() if edit is not None}
    for name, output in outputs.items():
        if not torch.allclose(output, outputs["ours"], rtol=1e-3, atol=1e-3):
            raise SystemExit(f"{name} differs by {(output - outputs['ours']).abs().max():.2g}")
    known = {name: edit for name, edit in methods.items() if edit is not None}
    counts = {name: max(1, int(LEAST / seconds(edit, x, 1))) for name, edit in known.items()}
    found: dict[str, list[float]] = {name: [] for name in known}
    names = list(known)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(seconds(known[name], x, counts[name]))
    return found


def spread(ours: list[float], others: list[float]) -> tuple[float, float, float]:
    """Median and middle half of the rounds' ratios."""
    ratios = sorted(b / a for a, b in zip(ours, others, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), ratios[quarter], ratios[-1 - quarter]


def compare(
    activation: str, shape: tuple[int, int], tokens: int, share: float | None, rounds: int
) -> list[str]:
    """A row: our time, and the others' over ours."""
    chosen = [7] if share is None else list(range(int(share * shape[1])))
    found = times(activation, shape, tokens, chosen, rounds)
    row = [activation, f"{shape[0]} x {shape[1]}", str(tokens), str(len(chosen))]
    row.append(f"{1e6 * statistics.median(found['ours']):,.0f}")
    for name in ("whole", "sae-lens"):
        if name not in found:
            row.append("")
            continue
        middle, low, high = spread(found["ours"], found[name])
        row.append(f"{middle:.3g} [{low:.3g}, {high:.3g}]")
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("activation", "width x features", "tokens", "edited", "us", "whole", "SAELens")
    rows = []
    for activation in ("jumprelu", "topk"):
        for shape in SHAPES:
            for tokens in (1, 8, 600):
                if tokens * shape[0] * shape[1] > 600 * 1024 * 65536:
                    continue  # minutes a round for the others
                rows.append(compare(activation, shape, tokens, None, options.rounds))
                print(*rows[-1], sep="  ", flush=True)
    for activation in ("jumprelu", "topk"):
        for tokens in (1, 600):
            rows.append(compare(activation, (1024, 8192), tokens, 0.5, options.rounds))
            print(*rows[-1], sep="  ", flush=True)
    print(Table("The others' time over ours", columns, rows, "Medians [middle half]."))


if __name__ == "__main__":
    main()
