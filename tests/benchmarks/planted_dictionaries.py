"""How much of a planted truth each kind of dictionary finds, with and without long activations.

    OMP_NUM_THREADS=1 python tests/benchmarks/planted_dictionaries.py [--seeds 5] [--out FILE.json]

Activations are those of ``long_activations``: sums of about 6 of 256 known directions of width 64,
and the same where 1 in 200 is moved along one more direction, 40 times as far as the others are
long. Dictionaries of 256 features and an L0 of 6 are trained on them and looked at on 20,000
others, none moved: explained variance, L0, features active in none, and the mean over known
directions of the largest cosine with a decoder row. Cells are the mean of the seeds, the least and
the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from long_activations import ACTIVE, DIRECTIONS, WIDTH, moved, sums

from vlm_edit.dictionaries import Dictionary, TrainConfig, train_dictionary
from vlm_edit.report import Table

KINDS = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
FIGURES = ("explained", "l0", "dead", "cosine")
BATCH = 512


def truth() -> Tensor:
    """The known directions, as ``sums`` draws them."""
    g = torch.Generator().manual_seed(20)
    return F.normalize(torch.randn(DIRECTIONS, WIDTH, generator=g), dim=1)


def ours(kind: str, x: Tensor, steps: int, seed: int) -> Dictionary:
    """Train one of our kinds with the defaults."""
    target = ACTIVE if kind in ("relu", "jumprelu", "gated") else None
    config = TrainConfig(
        n_features=DIRECTIONS, k=ACTIVE, steps=steps, batch_size=BATCH, kind=kind,
        target_l0=target, seed=seed,
    )  # type: ignore[arg-type] # fmt: skip
    return train_dictionary({"image": x}, config, progress=False)


def looked_at(dictionary: Dictionary, held: Tensor) -> dict[str, float]:
    """What a dictionary is like on activations that it has not seen."""
    codes = dictionary.encode(held, "image")
    left = (held - dictionary.reconstruct(held, "image")).square().sum()
    rows = F.normalize(dictionary.decoder, dim=1)
    return {
        "explained": float(1 - left / (held - held.mean(0)).square().sum()),
        "l0": float((codes != 0).double().sum(1).mean()),
        "dead": float((codes == 0).all(0).sum()),
        "cosine": float((truth() @ rows.T).amax(1).mean()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = sums(options.rows)
    sets = {"all alike": data["train"], "1 in 200 far longer": moved(data["train"])}
    rows, figures = [], []
    for name in options.only:
        for which, x in sets.items():
            found = []
            for seed in range(options.seeds):
                dictionary = ours(name, x, options.steps, seed)
                found.append(looked_at(dictionary, data["held"]))
            figures.append({"kind": name, "set": which, "seeds": found})
            rows.append([name, which, *(_cell([each[f] for each in found]) for f in FIGURES)])
            print(rows[-1], flush=True)
    note = (
        f"Mean of {options.seeds} seeds, in brackets the least and the most, {options.steps} steps"
    )
    print(Table("A planted truth", ("kind", "trained on", *FIGURES), rows, note))
    if options.out:
        command: dict[str, Any] = {"steps": options.steps, "rows": options.rows}
        options.out.write_text(json.dumps({**command, "figures": figures}, indent=1) + "\n")


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
