"""How well two classifications of the same features agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.dominance import CLASSES, Cut, Dominance

_DECIDED = ("vision", "language", "cross")


@dataclass(frozen=True)
class Agreement:
    """How well two classifications of the same features agree.

    Attributes:
        share: Of features with the same class in both.
        kappa: The same beyond what the sizes of the classes give by chance (Cohen); NaN where all
            features are of one class in both.
        jaccard: By class, how many features are in it in both, of those in it in either; NaN for
            a class without a feature.
        decided: Share of features that are vision, language or cross in both.
        conflicts: Of those, the share with another class in the other; NaN without any.
    """

    share: float
    kappa: float
    jaccard: Mapping[str, float]
    decided: float
    conflicts: float


def agreement(one: Tensor, other: Tensor) -> Agreement:
    """Compare two classifications of the same features.

    Args:
        one: [m] int64, places in ``CLASSES``, as ``class_numbers`` gives them.
        other: [m] int64, of the same features.

    Raises:
        VlmEditError: Of other numbers of features, or of none.

    Example:
        >>> import torch
        >>> both = agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2]))
        >>> both.share, round(both.kappa, 2), both.conflicts
        (0.75, 0.6, 0.25)
    """
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise BadArgument(
            f"classes of the same features are two [m], got {tuple(one.shape)} and "
            f"{tuple(other.shape)}"
        )
    n, size = len(one), len(CLASSES)
    table = torch.zeros(size, size, dtype=torch.float64)
    table.index_put_((one, other), torch.ones(n, dtype=torch.float64), accumulate=True)
    same, rows, columns = table.diagonal(), table.sum(1), table.sum(0)
    share = float(same.sum()) / n
    chance = float(rows @ columns) / n**2
    union = rows + columns - same
    jaccard = [float(s / u) if u else math.nan for s, u in zip(same, union, strict=True)]
    places = [CLASSES.index(name) for name in _DECIDED]
    decided = table[places][:, places]
    both = float(decided.sum())
    return Agreement(
        share,
        math.nan if chance == 1 else (share - chance) / (1 - chance),
        dict(zip(CLASSES, jaccard, strict=True)),
        both / n,
        1 - float(decided.diagonal().sum()) / both if both else math.nan,
    )


def class_numbers(dominance: Dominance, rule: Cut) -> Tensor:
    """Return the class of every feature as its place in ``CLASSES``, [m] int64."""
    numbers = torch.empty(len(dominance.scores), dtype=torch.int64)
    for place, members in enumerate(dominance.classes(rule).values()):
        numbers[members] = place
    return numbers


def correlation(one: Tensor, other: Tensor) -> float:
    """Return Pearson's correlation of scores, over features that have both; NaN for too few."""
    known = ~(one.isnan() | other.isnan())
    if int(known.sum()) < 2:
        return math.nan
    return float(torch.corrcoef(torch.stack([one[known], other[known]]))[0, 1])


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def decimal(value: float) -> str:
    """Write a share or a correlation, as tables show them."""
    return "–" if math.isnan(value) else f"{value:.2f}"
