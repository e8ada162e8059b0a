"""How alike dictionaries of several seeds are: TopK beside archetypal ones, on known directions.

    OMP_NUM_THREADS=1 python tests/benchmarks/archetypal_seeds.py [--seeds 5]

Activations of ``long_activations``: width 64, sums of about 6 of 256 known directions, with noise
and a mean. Dictionaries of 256 features, k 6, are trained in 2,000 steps of 512 on 50,000 of them.
Explained variance is of 20,000 others. Stability is the mean cosine of the features of two seeds,
matched one to one so that it is largest, over all pairs of seeds (as Fel et al. 2025 measure it);
recovery the mean over known directions of the largest cosine with a feature. A seed draws where
features begin and the batches; points of archetypal ones are the same for all seeds, as they are
in use. The row "topk, one beginning" is of TopK whose seeds begin with the same weights; with 256
points the features of all seeds begin at the same points too, in another order.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import combinations
from typing import Any

import torch
from long_activations import ACTIVE, DIRECTIONS, directions, sums
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, TrainConfig, train_dictionary
from vlm_edit.report import Table

WAYS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk"},
    "topk, one beginning": {"kind": "topk"},
    "archetypal, delta 0": {"kind": "archetypal", "delta": 0.0},
    "archetypal, delta 0.1": {"kind": "archetypal", "delta": 0.1},
    "archetypal, delta 0.5": {"kind": "archetypal", "delta": 0.5},
    "archetypal, delta 1": {"kind": "archetypal", "delta": 1.0},
    "archetypal, delta 0.1, 256 points": {"kind": "archetypal", "delta": 0.1, "points": 256},
}


def trained(x: Tensor, way: str, seed: int, start: Dictionary | None) -> Dictionary:
    """A dictionary of a seed."""
    config = TrainConfig(
        n_features=DIRECTIONS,
        k=ACTIVE,
        steps=2000,
        batch_size=512,
        seed=seed,
        dead_after=200,
        **WAYS[way],
    )
    return train_dictionary({"image": x}, config, start=start, progress=False)


def beginning(x: Tensor) -> Dictionary:
    """The weights that seed 0 draws."""
    config = TrainConfig(n_features=DIRECTIONS, k=ACTIVE, steps=1, lr=0.0, kind="topk")
    return train_dictionary({"image": x}, config, progress=False)


def stability(one: Tensor, two: Tensor) -> float:
    """Mean cosine of rows, matched one to one."""
    cosines = (one @ two.T).double().numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def spread(values: list[float]) -> str:
    """Mean, least and most."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, known, rows = sums(50_000), directions(), []
    for way in WAYS:
        start = beginning(data["train"]) if way.endswith("beginning") else None
        found = [trained(data["train"], way, seed, start) for seed in range(options.seeds)]
        decoders = [F.normalize(each.decoder, dim=1) for each in found]
        cells = (
            [each.explained_variance(data["held"], "image") for each in found],
            [stability(one, two) for one, two in combinations(decoders, 2)],
            [float((known @ each.T).amax(1).mean()) for each in decoders],
        )
        rows.append([way, *map(spread, cells)])
        print(rows[-1], flush=True)
    title = f"Mean of {options.seeds} seeds or of their pairs"
    columns = ("kind", "explained variance", "stability", "recovery")
    print(Table(title, columns, rows, "In brackets the least and the most."))


if __name__ == "__main__":
    main()
