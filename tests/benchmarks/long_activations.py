"""What a few activations far longer than the others do to training, with and without clipping.

    OMP_NUM_THREADS=1 python tests/benchmarks/long_activations.py [--seeds 5]

Activations of width 64 are sums of about 6 of 256 known directions, with noise and a mean. In the
second set 1 in 200 of those trained on is moved along one more direction, 40 times as far as the
others are long, as some tokens of language models are. TopK dictionaries of 256 features, k 6, are
trained in 2,000 steps of 512; explained variance is of 20,000 other activations, none of them
moved.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.report import Table

WIDTH, DIRECTIONS, ACTIVE = 64, 256, 6
MOVED, FAR = 0.005, 40
WAYS = [(0.001, None), (0.003, None), (0.003, 0.05)]  # former defaults, the rate, the clip too


def directions() -> Tensor:
    """The known directions, [., width]."""
    return _drawn(torch.Generator().manual_seed(20))


def _drawn(g: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(DIRECTIONS, WIDTH, generator=g), dim=1)


def sums(count: int) -> dict[str, Tensor]:
    """Activations to train on, and others, [., width]."""
    g = torch.Generator().manual_seed(20)
    known = _drawn(g)
    often = 1 / torch.arange(1, DIRECTIONS + 1).sqrt()  # the n-th most common direction
    often = (often * ACTIVE / often.sum()).clamp(max=0.4)
    mean = 0.3 * torch.randn(WIDTH, generator=g)

    def draw(rows: int) -> Tensor:
        there = torch.rand(rows, DIRECTIONS, generator=g) < often
        sizes = there * (torch.rand(rows, DIRECTIONS, generator=g) + 0.5)
        return sizes @ known + mean + 0.02 * torch.randn(rows, WIDTH, generator=g)

    return {"train": draw(count), "held": draw(20_000)}


def moved(x: Tensor) -> Tensor:
    """The same with a few of them far away in one direction."""
    g = torch.Generator().manual_seed(21)
    direction = F.normalize(torch.randn(x.shape[1], generator=g), dim=0)
    some = torch.rand(len(x), generator=g) < MOVED
    far = FAR * x.norm(dim=1).mean() * (1 + 0.1 * torch.randn(int(some.sum()), 1, generator=g))
    x = x.clone()
    x[some] += far * direction
    return x


def explained(x: Tensor, held: Tensor, lr: float, clip: float | None, seed: int) -> float:
    """Share of the variance of activations that a dictionary of others explains."""
    config = TrainConfig(
        n_features=DIRECTIONS,
        k=ACTIVE,
        steps=2000,
        batch_size=512,
        kind="topk",
        lr=lr,
        clip=clip,
        seed=seed,
        dead_after=200,
    )
    found = train_dictionary({"image": x}, config, progress=False)
    left = (held - found.reconstruct(held, "image")).square().sum()
    return float(1 - left / (held - held.mean(0)).square().sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = sums(options.rows)
    sets = {"all alike": data["train"], "1 in 200 far longer": moved(data["train"])}
    rows = []
    for lr, clip in WAYS:
        cells = []
        for name, x in sets.items():
            found = [explained(x, data["held"], lr, clip, seed) for seed in range(options.seeds)]
            print(lr, clip, name, [round(value, 3) for value in found], flush=True)
            cells.append(f"{statistics.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
        rows.append([str(lr), str(clip), *cells])
    title = f"Explained variance, mean of {options.seeds} seeds"
    print(Table(title, ("lr", "clip", *sets), rows, "In brackets the least and the most."))


if __name__ == "__main__":
    main()
