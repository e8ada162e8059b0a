"""Whether intervals, tests and labels hold what they promise with 1, 2 and 5 captions an image.

    python docs/experiments results.calibration                       # 1,000 simulations, stored
    python docs/experiments results.calibration --simulations 100     # a look, not stored

A simulation is 1,000 pairs of sparse, heavy-tailed codes (``captions.py``). Coverage is that of
95 % intervals of features active in at least 100 pairs; a rejection is a feature that passes after
Benjamini and Hochberg at .05.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from captions import KINDS, Kind, captioned
from torch import Tensor

from results import common
from vlm_edit.ground.statistics import benjamini_hochberg
from vlm_edit.measures.dominance import Dominance, modality_dominance
from vlm_edit.report import Table

PAIRS = 1000
CAPTIONS = (1, 2, 5)
ACTIVE = 100
EACH = 6  # features of each kind in a simulation
# Image and caption alike in all: no modality.
NULLS = (Kind(0.05, 0.05), Kind(0.1, 0.1, tail=1.5), Kind(0.3, 0.3, together=0.9))
# Likewise, and image and captions have nothing to do with each other, the captions with each other.
APART = (Kind(0.1, 0.1, together=0.0, alike=0.95), Kind(0.2, 0.2, together=0.0, alike=0.8))
EFFECTS = (Kind(0.2, 0.05), Kind(0.05, 0.2))
ON_THE_CUT = Kind(0.12, 0.08, together=0.0, tail=0.0)


def truth(kind: Kind) -> float:
    """Compute the score of a kind of feature, by two million pairs with an image each."""
    image, text = captioned(kind, 1, 2_000_000, 1, seed=99)
    return float(modality_dominance(image, text).scores)


def measured(kinds: tuple[Kind, ...], each: int, captions: int, seed: int) -> Dominance:
    """Measure a simulation: so many features of each kind, the kinds one behind the other."""
    some = [
        captioned(kind, each, PAIRS // captions, captions, seed * 1000 + i)
        for i, kind in enumerate(kinds)
    ]
    image, text = (torch.cat(side, 1) for side in zip(*some, strict=True))
    images = torch.arange(PAIRS // captions).repeat_interleave(captions)
    return modality_dominance(image, text, images=images)


def covered(truths: Tensor, captions: int, simulations: int) -> dict[str, float]:
    """Return the share of intervals that hold the truth: of all, and of the worst kind."""
    right, counts = torch.zeros(2, len(KINDS), dtype=torch.float64)
    for seed in range(simulations):
        dominance = measured(KINDS, EACH, captions, seed)
        low, high = (end.view(len(KINDS), EACH) for end in dominance.intervals())
        asked = dominance.active.view(len(KINDS), EACH) >= ACTIVE
        right += ((low <= truths) & (truths <= high) & asked).sum(1)
        counts += asked.sum(1)
    shares = right / counts
    worst = int(shares.argmin())
    return {
        "coverage": float(right.sum() / counts.sum()),
        "coverage, worst kind": float(shares[worst]),
        "its error": math.sqrt(0.05 * 0.95 / float(counts[worst])),
    }


def rejected(captions: int, simulations: int) -> dict[str, float]:
    """Return how often nothing is there and something is found, and the false discovery rate."""
    some = {"any dominant": 0.0, "any paired": 0.0, "false discoveries": 0.0, "found": 0.0}
    half = 60
    for seed in range(simulations):
        nothing = measured(NULLS, half, captions, seed + 50_000)
        some["any dominant"] += float(benjamini_hochberg(nothing.swap_test()).any())
        apart = measured(APART, half, captions, seed + 100_000)
        some["any paired"] += float(apart.paired().any())
        mixed = measured((*NULLS, *EFFECTS), 30, captions, seed + 150_000)
        passed = benjamini_hochberg(mixed.swap_test())
        wrong = int(passed[: 30 * len(NULLS)].sum())
        some["false discoveries"] += wrong / max(1, int(passed.sum()))
        some["found"] += float(passed[30 * len(NULLS) :].double().mean())
    return {name: value / simulations for name, value in some.items()}


def labelled(captions: int, simulations: int) -> dict[str, float]:
    """Return how often a feature exactly on the cut is called dominant, by each rule."""
    cut = truth(ON_THE_CUT)
    some = {"interval": 0.0, "significant": 0.0}
    for seed in range(simulations):
        # The rule 'significant' corrects for the number of features: beside as many clear ones.
        dominance = measured((ON_THE_CUT, EFFECTS[0]), 30, captions, seed + 200_000)
        for rule in some:
            called = dominance.classes(rule, high=cut)["vision"]  # type: ignore[arg-type]
            some[rule] += sum(k < 30 for k in called) / 30
    return {f"on the cut, {rule}": value / simulations for rule, value in some.items()}


def simulate(simulations: int) -> dict[str, dict[str, float]]:
    """Return all figures by the number of captions."""
    truths = torch.tensor([[truth(kind)] for kind in KINDS], dtype=torch.float64)
    return {
        str(captions): {
            **covered(truths, captions, simulations),
            **rejected(captions, simulations),
            **labelled(captions, simulations),
        }
        for captions in CAPTIONS
    }


def tables(stored: dict[str, Any]) -> list[Table]:
    """Show the figures, a row for each number of captions."""
    by_captions: dict[str, dict[str, float]] = stored["captions"]
    names = [name for name in by_captions["1"] if name != "its error"]
    rows = [
        (captions, *(f"{figures[name]:.3f}" for name in names))
        for captions, figures in by_captions.items()
    ]
    error = math.sqrt(0.05 * 0.95 / stored["simulations"])
    note = (
        f"{stored['simulations']:,} simulations of {PAIRS:,} pairs; Monte Carlo error of a share "
        f"of .05 {error:.3f}, of the worst kind's coverage {by_captions['5']['its error']:.3f}. "
        "Any dominant, any paired: samples without an effect in which a feature passes."
    )
    title = "What intervals, tests and labels hold, by captions of an image"
    return [Table(title, ("captions", *names), rows, note)]


def main() -> None:
    """Simulate, print, and store where all simulations were made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    stored = {"simulations": simulations, "captions": simulate(simulations)}
    print(*tables(stored), sep="\n\n")
    if simulations >= 1000:
        common.save("calibration", stored)


if __name__ == "__main__":
    main()
