"""Intervals of small samples, and of cases that come in groups, such as captions of one image.

A group is the unit: what its cases add to the error of an estimate is summed first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics.estimate import wilson
from vlm_edit.ground.statistics.student import t_quantile


def numbered(groups: Tensor | None, n: int) -> Tensor:
    """Return the group of each of n cases as a number from 0, each its own where none is given.

    Raises:
        VlmEditError: Not a whole number for each case.

    Example:
        >>> import torch
        >>> numbered(torch.tensor([7, 3, 7]), 3)
        tensor([1, 0, 1])
    """
    if groups is None:
        return torch.arange(n)
    if groups.shape != (n,) or groups.is_floating_point() or groups.dtype == torch.bool:
        raise BadArgument(
            f"groups must be [{n}] whole numbers, the image of each case, got "
            f"{tuple(groups.shape)} {groups.dtype}"
        )
    numbers: Tensor = groups.cpu().unique(return_inverse=True)[1]
    return numbers


def summed(parts: Tensor, numbers: Tensor) -> Tensor:
    """Sum the parts [n] of each group, [g] float64.

    Example:
        >>> import torch
        >>> summed(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]))
        tensor([2., 5.], dtype=torch.float64)
    """
    count = int(numbers.max()) + 1 if len(numbers) else 0
    return torch.zeros(count, dtype=torch.float64).index_add_(0, numbers, parts.double().cpu())


def variance(parts: Tensor) -> float:
    """Return the variance of a sum of independent parts [g] of mean 0; NaN of fewer than two.

    Example:
        >>> import torch
        >>> variance(torch.tensor([-0.5, 0.5]))
        1.0
    """
    units = len(parts)
    return float(parts.square().sum()) * units / (units - 1) if units > 1 else math.nan


def effective(parts: Tensor, numbers: Tensor) -> float:
    """Return how many independent cases tell as much as n in groups do, n at most.

    By the ratio of both sums of squares (Rao and Scott 1992). Where no case differs nothing tells
    how alike those of a group are, and only groups are counted.

    Args:
        parts: [n], what each case adds to the error.
        numbers: [n], from ``numbered``.

    Example:
        >>> import torch
        >>> effective(torch.tensor([-1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        2.0
    """
    grouped = summed(parts, numbers)
    together, alone = (float(x.double().square().sum()) for x in (grouped, parts))
    return len(parts) / max(1.0, together / alone) if alone > 0 else float(len(grouped))


def t95(units: int) -> float:
    """Return how many standard errors hold 95 % where the variance is of so many units.

    Example:
        >>> round(t95(5), 3)
        2.776
    """
    return float(t_quantile(0.95, torch.tensor([float(units - 1)]))[0])


def around(value: float, parts: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of an estimate from what each unit adds to its error.

    Student's t, widened to Hall's interval (1992), which takes skewness out by a transformation
    and keeps its error where resamples of a few values would all be alike.

    Args:
        value: The estimate.
        parts: [g], whose sum is the error; of mean 0 in the sample.

    Returns:
        NaN for fewer than two units.

    Example:
        >>> import torch
        >>> low, high = around(0.0, torch.tensor([-1.0, -1.0, 0.0, 2.0]) / 4)
        >>> round(low, 3), round(high, 3)
        (-2.25, 3.803)
    """
    units = len(parts)
    if units < 2:
        return math.nan, math.nan
    error = math.sqrt(variance(parts))
    if not error > 0:
        return value, value
    t = t95(units)
    deviation = error / math.sqrt(units)
    skew = float(parts.pow(3).mean()) / deviation**3 / math.sqrt(units)
    ends = [value - t * error, value + t * error]
    if abs(skew) > 1e-6:
        ends += [value - error * _unskewed(y, skew) for y in (t, -t)]
    return min(ends), max(ends)


def _unskewed(y: float, skew: float) -> float:
    """Invert Hall's cubic; skew is divided by the root of the number of units."""
    inner = 1 + skew * (y - skew / 6)
    return 3 / skew * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def alike(value: float, units: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the interval of a mean whose units are all alike, as others need not be.

    Their share is at most Wilson's of none in so many, and what they are lies within the bounds.

    Returns:
        NaN for fewer than two units, or where the value lies outside of the bounds.

    Example:
        >>> alike(0.0, 10, (0.0, 1.0)) == wilson(0.0, 10)
        True
    """
    low, high = bounds
    if units < 2 or not low <= value <= high:
        return math.nan, math.nan
    unmet = wilson(0.0, units)[1]
    return value - unmet * (value - low), value + unmet * (high - value)
