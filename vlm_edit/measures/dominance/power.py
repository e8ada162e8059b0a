"""How many pairs a feature needs before a label of it can be expected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.notebook import one_line
from vlm_edit.ground.statistics import benjamini_hochberg, t_quantile
from vlm_edit.measures.dominance.classes import level_of, members
from vlm_edit.measures.dominance.flips import LEVELS
from vlm_edit.measures.dominance.result import FEW, Dominance

# Images of which a feature is active; who needs more is said to need infinitely many.
_MOST = 1e9
_STEPS = 80


class HasDominance(Protocol):
    """A measurement, for one."""

    @property
    def dominance(self) -> Dominance:
        """Return what was measured of the features."""
        ...


def dominance_of(measured: Dominance | HasDominance) -> Dominance:
    """Return a measurement's dominance; dominance comes back as it is."""
    return measured if isinstance(measured, Dominance) else measured.dominance


@dataclass(frozen=True, eq=False)
class PairsNeeded:
    """Hold how many pairs each feature needs, each with an image of its own.

    Attributes:
        pairs: [m] float64; infinite for a score on a cut and for dead features.
        active: [m] float64, of those that activate the feature.
        decided: [m] bool, features that have their label by now.
        power: The chance of a label with so many.
        images: How many were measured.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> scores = torch.tensor([0.8, 0.7]).repeat(10, 1)
        >>> image = (torch.arange(10)[:, None] < 10 * scores).float()
        >>> how_many_pairs(modality_dominance(image, 1 - image), rule="significant").pairs.round()
        tensor([28., 65.], dtype=torch.float64)
    """

    pairs: Tensor
    active: Tensor
    decided: Tensor
    power: float
    images: int

    def __repr__(self) -> str:
        """Say on a line what the undecided need."""
        return one_line(f"PairsNeeded({self})")

    def __str__(self) -> str:
        """Say what the undecided need: the quarter, half and three quarters of them."""
        rest = self.pairs[~self.decided]
        if not len(rest):
            return f"all {len(self.decided):,} features are decided by {self.images:,} images"
        order = rest.sort().values
        quarters = [order[min(len(rest) - 1, math.ceil(q * len(rest)) - 1)] for q in _QUARTERS]
        shown = ", ".join(_shown(float(q)) for q in quarters)
        never = int(rest.isinf().sum())
        tail = f"; {never:,} lie on a cut or are dead, and need more than can be had" * bool(never)
        return (
            f"{len(rest):,} of {len(self.decided):,} features are undecided by {self.images:,} "
            f"images; for a chance of {self.power:g} a quarter, half and three quarters of them "
            f"need {shown}{tail}"
        )


_QUARTERS = (0.25, 0.5, 0.75)


def how_many_pairs(
    measured: Dominance | HasDominance,
    power: float = 0.8,
    rule: Literal["interval", "significant"] = "interval",
    low: float = 0.4,
    high: float = 0.6,
    alpha: float | None = None,
) -> PairsNeeded:
    """Estimate how many pairs each feature needs to get its label.

    A feature's score, how much its ratios vary and how often it is active are taken as they were
    measured: a feature whose score happens to lie far from a cut seems to need fewer than it does.
    By ``interval``, the chance that its interval lies beyond the cut or between both; by
    ``significant``, that the swap test passes at ``alpha``, by the normal approximation with the
    correction for counts of Casagrande, Pike and Smith (1978).

    Args:
        measured: A measurement, or its dominance.
        power: The chance asked for.
        rule: Of the label.
        low: Lower cut of ``interval``.
        high: Upper cut.
        alpha: Error of a label by ``interval``, .05 by default; level of the swap test, .02 by
            default: about what Benjamini and Hochberg ask for at .05 where two fifths pass.

    Returns:
        Figures for each feature, which say in print what the undecided need.

    Raises:
        VlmEditError: A power outside of .5 to 1, cuts that do not rise, another rule.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> image = (torch.arange(1000) < 800).float()[:, None]
        >>> needed = how_many_pairs(modality_dominance(image, 1 - image))
        >>> round(float(needed.active))
        33
    """
    if not 0.5 <= power < 1:
        raise BadArgument(f"a power lies between .5 and 1, got power={power}")
    dominance = dominance_of(measured)
    if rule == "interval":
        alpha = 0.05 if alpha is None else alpha
        active = _for_interval(dominance, power, dominance.cuts(rule, low, high), alpha)
        marked = members(dominance, rule, low, high, alpha)
        decided = marked["vision"] | marked["language"] | marked["cross"]
    elif rule == "significant":
        active = _for_swaps(dominance, power, 0.02 if alpha is None else alpha)
        decided = benjamini_hochberg(dominance.swap_test())
    else:
        raise UnknownName(
            f"no rule {rule!r} that pairs could prove: use 'interval' or 'significant'"
        )
    active = torch.where(dominance.dead | (active >= _MOST), torch.inf, active.clamp(min=FEW))
    rate = dominance.active_images.double() / dominance.images
    return PairsNeeded(active / rate, active, decided, power, dominance.images)


def _for_interval(
    dominance: Dominance, power: float, cuts: tuple[float, float], alpha: float
) -> Tensor:
    """Find the least number of active images for which the interval lies where the score does."""
    score = dominance.scores
    below, above = dominance.intervals(level_of(alpha))
    n = dominance.active_images.double()
    # What the interval's width says of how much the mean varies, beside a share of n images.
    t = t_quantile(level_of(alpha), (n - 1).clamp(min=1))
    varies = ((above - below) / 2 / t).square() * n
    factor = (varies / (score * (1 - score)).clamp(min=1e-3)).clamp(1e-3, 1e3)
    z = -float(torch.special.ndtri(torch.tensor(alpha, dtype=torch.float64)))

    def chance(count: Tensor) -> Tensor:
        spread = (factor / count).sqrt()
        own = (score * (1 - score)).clamp(min=1e-6).sqrt() * spread
        first, second = (z * math.sqrt(cut * (1 - cut)) * spread for cut in cuts)
        low, high = cuts
        inside = (
            torch.special.ndtr((score - low - first) / own)
            + torch.special.ndtr((high - score - second) / own)
            - 1
        )
        return torch.where(
            score > high,
            torch.special.ndtr((score - high - second) / own),
            torch.where(score < low, torch.special.ndtr((low - score - first) / own), inside),
        )

    least, most = torch.ones_like(score), torch.full_like(score, _MOST)
    for _ in range(_STEPS):
        middle = (least * most).sqrt()
        enough = chance(middle) >= power
        most, least = torch.where(enough, middle, most), torch.where(enough, least, middle)
    return most


def _for_swaps(dominance: Dominance, power: float, alpha: float) -> Tensor:
    """Compute the number of active images for which the swap test passes."""
    counts = dominance.levels.double()
    n = counts.sum(1)
    size = torch.arange(-LEVELS, LEVELS + 1).double() / LEVELS
    mean, square = counts @ size / n, counts @ size.square() / n
    z, more = (
        float(torch.special.ndtri(torch.tensor(q, dtype=torch.float64)))
        for q in (1 - alpha / 2, power)
    )
    spread = (square - mean.square()).clamp(min=0).sqrt()
    needed = ((z * square.sqrt() + more * spread) / mean).square()
    needed = torch.where(needed.isfinite(), needed, _MOST)
    # As for a share of n tosses, whose excess over one half is half of the mean.
    return needed / 4 * (1 + (1 + 4 / (needed * mean.abs())).sqrt()).square()


def _shown(pairs: float) -> str:
    if math.isinf(pairs):
        return "no number"
    digits = max(0, len(str(round(pairs))) - 2)
    return f"{round(pairs, -digits):,.0f}"
