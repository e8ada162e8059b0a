"""Which features a rule calls what, and what it would call so by chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate, benjamini_hochberg
from vlm_edit.measures.dominance.flips import LEVELS, flip_p, flipped_sums, level_sums
from vlm_edit.measures.dominance.scores import mean_ratio_interval

if TYPE_CHECKING:
    from vlm_edit.measures.dominance.result import Dominance

Cut = Literal["interval", "significant", "sd", "fixed"]

RULE: Cut = "interval"  # where none is named

CLASSES = ("vision", "language", "cross", "undecided", "dead")


def cuts_of(live: Tensor, rule: Cut, low: float, high: float) -> tuple[float, float]:
    """Return the two cuts of a rule, for the scores of live features."""
    if rule not in get_args(Cut):
        raise UnknownName(f"unknown rule {rule!r} for classes: use {get_args(Cut)}")
    if rule == "sd":
        mean, sd = float(live.mean()), sd_of(live)
        return mean - sd, mean + sd
    if not 0 <= low <= high <= 1:
        raise BadArgument(f"cuts must rise within [0, 1], got low={low}, high={high}")
    return low, high


def sd_of(live: Tensor) -> float:
    """Return the standard deviation, NaN for fewer than two."""
    return float(live.std()) if len(live) > 1 else math.nan


def level_of(alpha: float) -> float:
    """Return the level of the interval whose ends are each a one-sided test at alpha."""
    if not 0 < alpha < 0.5:
        raise BadArgument(f"the error of a label lies between 0 and .5, got alpha={alpha}")
    return 1 - 2 * alpha


def members(
    dominance: Dominance, rule: Cut, low: float, high: float, alpha: float
) -> dict[str, Tensor]:
    """Mark the members of each class, [m] bool."""
    cuts = dominance.cuts(rule, low, high)
    if rule == "interval":
        return _by_interval(dominance.intervals(level_of(alpha)), cuts)
    passed = benjamini_hochberg(dominance.swap_test(), alpha) if rule == "significant" else None
    return _by_score(dominance.scores, cuts, level_sums(dominance.levels), passed)


def expected(
    dominance: Dominance,
    rule: Cut,
    low: float,
    high: float,
    alpha: float,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Estimate class sizes where image and text of every pair are swapped by a coin."""
    if draws < 1:
        raise BadArgument(f"draws={draws}: chance needs at least one draw")
    # One caption of each image, as tests have it: an image and several captions are no two sides
    # that could be exchanged.
    active, total = dominance.drawn_active.double(), dominance.images
    sums, live = flipped_sums(dominance.levels, draws, seed), active > 0
    p = flip_p(dominance.levels, sums) if rule == "significant" else None
    squares = (dominance.levels * torch.arange(-LEVELS, LEVELS + 1) ** 2).sum(1) / LEVELS**2
    sizes = torch.zeros(draws, len(CLASSES), dtype=torch.float64)
    for i, row in enumerate(sums):
        difference = row.double() / LEVELS
        summed = 0.5 * (active + difference)
        if rule == "interval":
            squared = (active + 2 * difference + squares) / 4
            ends = _interval(summed, squared, active, total, dominance.zeros, level_of(alpha))
            member = _by_interval(ends, dominance.cuts(rule, low, high))
        else:
            scores = scores_of(summed, active, total, dominance.zeros)
            cuts = cuts_of(scores[live], rule, low, high)
            passed = None if p is None else benjamini_hochberg(p[i], alpha)
            member = _by_score(scores, cuts, row, passed)
        sizes[i] = torch.stack([member[name].sum() for name in CLASSES])
    middle = sizes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    figures = zip(CLASSES, sizes.mean(0).tolist(), *middle.tolist(), strict=True)
    return {name: Estimate(mean, first, last, draws) for name, mean, first, last in figures}


def scores_of(sums: Tensor, active: Tensor, total: int, zeros: str) -> Tensor:
    """Return scores under a convention for zeros, [m] float64; NaN for dead features."""
    counts = active.double()
    if zeros == "half":
        sums = sums + 0.5 * (total - counts)
    if zeros != "skip":
        counts = torch.full_like(counts, total)
    return torch.where(active == 0, torch.nan, sums / counts)


def _interval(
    sums: Tensor, squares: Tensor, active: Tensor, total: int, zeros: str, level: float
) -> tuple[Tensor, Tensor]:
    """Compute intervals of pairs with an image each."""
    n = active
    if zeros == "half":
        idle = total - n
        sums, squares = sums + 0.5 * idle, squares + 0.25 * idle
    if zeros != "skip":
        n = torch.full_like(n, total).masked_fill(active == 0, 0)
    return mean_ratio_interval(sums, squares - sums * sums / n, n, n, torch.ones_like(n), level)


def _by_interval(interval: tuple[Tensor, Tensor], cuts: tuple[float, float]) -> dict[str, Tensor]:
    """Mark what lies wholly beyond a cut, or wholly between them."""
    low, high = interval
    dead = low.isnan()
    vision, language = low > cuts[1], high < cuts[0]
    cross = (low >= cuts[0]) & (high <= cuts[1])
    undecided = ~(vision | language | cross | dead)
    return {
        "vision": vision,
        "language": language,
        "cross": cross,
        "undecided": undecided,
        "dead": dead,
    }


def _by_score(
    scores: Tensor, cuts: tuple[float, float], sums: Tensor, passed: Tensor | None
) -> dict[str, Tensor]:
    """Mark by the scores alone; ``passed`` are the features that differ from chance."""
    outside = {"vision": scores > cuts[1], "language": scores < cuts[0]}
    either = outside["vision"] | outside["language"]
    if passed is not None:
        # With epsilon a score can lie on the other side than the activity.
        outside["vision"] &= passed & (sums > 0)
        outside["language"] &= passed & (sums < 0)
    decided, dead = outside["vision"] | outside["language"], scores.isnan()
    return {**outside, "cross": ~either & ~dead, "undecided": either & ~decided, "dead": dead}
