"""Means, ratios of means, and differences of means over random draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics.clusters import (
    alike,
    around,
    effective,
    numbered,
    summed,
    t95,
    variance,
)
from vlm_edit.ground.statistics.estimate import Estimate, Z, wilson
from vlm_edit.ground.statistics.student import t_quantile

_SHARE = (0.0, 1.0)


def mean_estimate(
    values: Tensor, groups: Tensor | None = None, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Estimate a mean with an interval that holds for few values too.

    Student's t, widened where values are skewed (Hall 1992); of values that are all 0 or 1, a
    share, Wilson's. Values that are all alike say little of others: within bounds, by default 0 to
    1, these may be a few, and outside of them there is no interval.

    Args:
        values: [n], at least one.
        groups: [n] int, which image each value is of: images are then what varies.
        bounds: Of a value, where they are known: the interval ends there.

    Returns:
        NaN for the ends of a single value that is not bool, or of a single group.

    Raises:
        VlmEditError: No value, or groups of other cases.

    Example:
        >>> import torch
        >>> print(mean_estimate(torch.tensor([0.2, 0.4, 0.5, 0.7])))
        .450 [.119, .781]
        >>> print(mean_estimate(torch.tensor([1, 1, 1, 0])))
        .750 [.301, .954]
    """
    if not len(values):
        raise BadArgument("the mean of no values: there is nothing to estimate")
    n, x = len(values), values.double().cpu()
    numbers, mean = numbered(groups, n), float(x.mean())
    parts = (x - mean) / n
    whole = summed(parts, numbers)
    if (values.dtype == torch.bool or (n > 1 and bounds is None)) and bool(
        ((x == 0) | (x == 1)).all()
    ):
        ends = _share(mean, parts, numbers, len(whole), groups is not None)
    elif float(x.min()) == float(x.max()):
        ends = alike(mean, len(whole), bounds or _SHARE)
    else:
        ends = around(mean, whole)
    low, high = bounds or (-math.inf, math.inf)
    if ends[0] == ends[0]:
        ends = max(low, ends[0]), min(high, ends[1])
    return Estimate(mean, *ends, n)


def _share(
    mean: float, parts: Tensor, numbers: Tensor, units: int, grouped: bool
) -> tuple[float, float]:
    if not grouped:
        return wilson(mean, len(parts))
    if units < 2:
        return math.nan, math.nan
    return wilson(mean, effective(parts, numbers), max(Z, t95(units)))


def mean_difference(
    one: Tensor, other: Tensor, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Estimate how far the mean of some values lies above that of others, of other cases.

    From the interval of each mean (Zou and Donner 2008), so that few values widen it.

    Args:
        one: [k], at least one.
        other: [l], likewise.
        bounds: Of a value, as in ``mean_estimate``.

    Returns:
        The estimate; ``n`` counts all values; NaN for the ends if one side is a single value.

    Raises:
        VlmEditError: No value.

    Example:
        >>> import torch
        >>> print(mean_difference(torch.tensor([0.7, 0.9, 0.8]), torch.tensor([0.1, 0.3, 0.5])))
        .500 [-.055, 1.055]
    """
    first, second = (mean_estimate(values, bounds=bounds) for values in (one, other))
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    value = first.value - second.value
    return Estimate(value, value - down, value + up, first.n + second.n)


def ratio_estimate(above: Tensor, below: Tensor, groups: Tensor | None = None) -> Estimate:
    """Estimate the ratio of two means over the same cases.

    By what each case adds to its error, to first order, as ``mean_estimate`` does of a mean.

    Args:
        above: [n].
        below: [n], of the same cases.
        groups: [n] int, which image each case is of.

    Returns:
        NaN for the ends of a single case or group.

    Raises:
        VlmEditError: Other cases, or none.

    Example:
        >>> import torch
        >>> print(ratio_estimate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0])))
        .462 [.276, .578]
    """
    if above.shape != below.shape or not len(above):
        raise BadArgument(
            f"a ratio needs two figures of each case, got {len(above)} and {len(below)} cases"
        )
    up, down = above.double().cpu(), below.double().cpu()
    ratio = float(up.mean() / down.mean())
    parts = (up - ratio * down) / float(down.sum())
    whole = summed(parts, numbered(groups, len(up)))
    if bool((parts == 0).all()):
        return Estimate(ratio, *alike(ratio, len(whole), _SHARE), len(up))
    return Estimate(ratio, *around(ratio, whole), len(up))


def ratio_figures(above: Tensor, below: Tensor) -> Tensor:
    """Return a figure of each case: its mean is the ratio of means, its spread that to first order.

    Args:
        above: [n].
        below: [n], of the same cases.

    Example:
        >>> import torch
        >>> ratio_figures(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    up, down = above.double(), below.double()
    ratio = up.mean() / down.mean()
    return ratio + (up - ratio * down) / down.mean()


def drawn_difference(own: Tensor, other: Tensor, groups: Tensor | None = None) -> Estimate:
    """Estimate how far one mean lies above another of the same cases, both of random draws.

    Cases and the draws of each vary apart; with one draw that part is missing. Student's t with
    the degrees of freedom of all parts (Satterthwaite 1946), so that few draws widen it.

    Args:
        own: [k, n], a figure of each case in each of k draws, one at least.
        other: [l, n], likewise, of the same cases.
        groups: [n] int, which image each case is of.

    Raises:
        VlmEditError: Other cases, or none.

    Example:
        >>> import torch
        >>> own = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
        >>> drawn_difference(own, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).value
        0.625
    """
    if own.ndim != 2 or other.ndim != 2 or own.shape[1:] != other.shape[1:]:
        raise BadArgument(
            f"draws must be [k, n] and [l, n] of the same cases, got {tuple(own.shape)} and "
            f"{tuple(other.shape)}"
        )
    if not own.numel() or not other.numel():
        raise BadArgument("the difference of no draws, or of no cases: there is nothing to tell")
    one, two = own.double().cpu(), other.double().cpu()
    apart = one.mean(0) - two.mean(0)
    value, n = float(apart.mean()), len(apart)
    whole = summed((apart - value) / n, numbered(groups, n))
    sources = [(variance(whole), len(whole) - 1)]
    sources += [(float(x.mean(1).var()) / len(x), len(x) - 1) for x in (one, two) if len(x) > 1]
    total = sum(v for v, _ in sources)
    if total != total or not total > 0:
        return Estimate(value, *alike(value, len(whole), (-1.0, 1.0)), n)
    freedom = total**2 / sum(v**2 / df for v, df in sources)
    half = float(t_quantile(0.95, torch.tensor([freedom]))[0]) * math.sqrt(total)
    return Estimate(value, value - half, value + half, n)
