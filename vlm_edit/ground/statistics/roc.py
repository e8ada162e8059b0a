"""The area under the ROC curve, of one score and of two on the same cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics.clusters import numbered, summed, t95, variance
from vlm_edit.ground.statistics.estimate import Estimate, Z


def auc(scores: Tensor, positive: Tensor) -> float:
    """Compute the area under the ROC curve: how often positives score above negatives, ties half.

    Args:
        scores: [n].
        positive: [n] bool.

    Returns:
        NaN where one of the two groups is empty.

    Raises:
        VlmEditError: Scores that are NaN, as those of dead features, or a mask of other cases.

    Example:
        >>> import torch
        >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
        0.75
    """
    return _Area.of(scores, positive).value


def auc_estimate(scores: Tensor, positive: Tensor, groups: Tensor | None = None) -> Estimate:
    """Estimate ``auc`` with an interval that holds for five positives too.

    The areas from which it lies no more than 1.96 standard errors, each by that area's own error
    (Hanley and McNeil 1982), enlarged where the scores themselves vary more (DeLong et al. 1988).
    An area of 1 has an interval too.

    Args:
        scores: [n].
        positive: [n] bool.
        groups: [n] int, which image each case is of.

    Returns:
        The estimate; ``n`` counts the positives; NaN where positives or negatives are missing.

    Raises:
        VlmEditError: As ``auc``, or groups of other cases.

    Example:
        >>> import torch
        >>> print(auc_estimate(torch.arange(8.0), torch.arange(8) > 4))
        1.000 [.562, 1.000]
    """
    area = _Area.of(scores, positive, groups)
    return Estimate(area.value, *area.interval(), area.yes)


def auc_p(
    scores: Tensor, positive: Tensor, groups: Tensor | None = None, chance: float = 0.5
) -> float:
    """Compute the chance of an ``auc`` as high where the true one is that of chance, one-sided.

    By the standard errors of ``auc_estimate``: chance lies outside of its interval where twice
    this is below 5 %, and the area above it.

    Args:
        scores: [n].
        positive: [n] bool.
        groups: [n] int, which image each case is of.
        chance: The area that means nothing, such as that of other scores on the same cases.

    Returns:
        NaN where positives or negatives, or two groups, are missing.

    Raises:
        VlmEditError: As ``auc_estimate``, or a chance that no area below 1 has.

    Example:
        >>> import torch
        >>> round(auc_p(torch.arange(8.0), torch.arange(8) > 3), 3)
        0.01
    """
    if not 0 < chance < 1:
        raise BadArgument(f"chance is {chance}: an area that means nothing lies between 0 and 1")
    area = _Area.of(scores, positive, groups)
    spread = area.spread()
    if spread is None:
        return math.nan
    at_chance = _variance(chance, *area.sizes())
    return math.erfc((area.value - chance) / math.sqrt(2 * at_chance) * Z / spread) / 2


def auc_difference(
    scores: Tensor, others: Tensor, positive: Tensor, groups: Tensor | None = None
) -> Estimate:
    """Estimate how far one score's ``auc`` lies above another's on the same cases.

    From the interval of each and their correlation (Zou and Donner 2008; DeLong et al. 1988).

    Args:
        scores: [n].
        others: [n], of the same cases.
        positive: [n] bool.
        groups: [n] int, which image each case is of.

    Returns:
        The estimate; ``n`` counts the positives; NaN where positives or negatives are missing.

    Raises:
        VlmEditError: As ``auc_estimate``.

    Example:
        >>> import torch
        >>> positive = torch.tensor([False, False, True, True])
        >>> auc_difference(torch.arange(4.0), torch.tensor([0.1, 0.4, 0.35, 0.8]), positive).value
        0.25
    """
    one, two = _Area.of(scores, positive, groups), _Area.of(others, positive, groups)
    both = one.covariance(one) * two.covariance(two)
    shared = max(-1.0, min(1.0, one.covariance(two) / math.sqrt(both))) if both > 0 else 0.0
    (low, high), (below, above) = one.interval(), two.interval()

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * shared * a * b))

    value = one.value - two.value
    down = reach(one.value - low, above - two.value)
    up = reach(high - one.value, two.value - below)
    return Estimate(value, value - down, value + up, one.yes)


@dataclass(frozen=True, eq=False)
class _Area:
    """An area with what each case adds to its error, positives [m] and negatives [n] apart."""

    value: float
    upper: Tensor
    lower: Tensor
    groups: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, scores: Tensor, positive: Tensor, groups: Tensor | None = None) -> _Area:
        if positive.dtype != torch.bool or positive.shape != scores.shape:
            raise BadArgument(
                f"positive must be [{len(scores)}] bool like the scores, got "
                f"{tuple(positive.shape)} {positive.dtype}"
            )
        unranked = int(scores.isnan().sum())
        if unranked:
            raise BadArgument(f"{unranked} of {len(scores)} scores are NaN: take those cases out")
        numbers = numbered(groups, len(scores))
        chosen = positive.cpu()
        split = None if groups is None else (numbers[chosen], numbers[~chosen])
        yes, no = scores[positive].double().cpu(), scores[~positive].double().cpu()
        if not len(yes) or not len(no):
            return cls(math.nan, torch.zeros(len(yes)), torch.zeros(len(no)), split)
        above, below = _below(yes, no), 1 - _below(no, yes)
        value = float(above.sum()) / len(yes)
        return cls(value, (above - value) / len(yes), (below - value) / len(no), split)

    @property
    def yes(self) -> int:
        return len(self.upper)

    def covariance(self, other: _Area) -> float:
        """Return the covariance of both areas' errors, of whole groups if there are some."""
        if self.groups is None:
            pairs = ((self.upper, other.upper), (self.lower, other.lower))
            return sum(float(a @ b) * len(a) / max(1, len(a) - 1) for a, b in pairs)
        one, two = self._by_group(), other._by_group()
        return (variance(one + two) - variance(one - two)) / 4

    def _by_group(self) -> Tensor:
        assert self.groups is not None
        return summed(torch.cat([self.upper, self.lower]), torch.cat(self.groups))

    def spread(self) -> float | None:
        """Return how many of Hanley and McNeil's standard errors hold 95 %; None if unknown."""
        m, n, z = len(self.upper), len(self.lower), Z
        if not m or not n:
            return None
        if self.groups is not None:
            units = len(torch.cat(self.groups).unique())
            if units < 2:
                return None
            z = max(Z, t95(units))
        expected = _variance(self.value, m, n)
        if expected > 0:
            z *= math.sqrt(max(1.0, self.covariance(self) / expected))
        return z

    def sizes(self) -> tuple[int, int]:
        """Return how many positives and negatives there are; of groups, where no case differs."""
        m, n = len(self.upper), len(self.lower)
        if self.groups is not None and m and n and not _variance(self.value, m, n) > 0:
            # Nothing tells how alike the cases of a group are.
            m, n = (len(numbers.unique()) for numbers in self.groups)
        return m, n

    def interval(self) -> tuple[float, float]:
        z, (m, n) = self.spread(), self.sizes()
        if z is None:
            return math.nan, math.nan
        return _farthest(self.value, 0.0, m, n, z), _farthest(self.value, 1.0, m, n, z)


def _below(scores: Tensor, others: Tensor) -> Tensor:
    """Return the share of the others that lies below each score, ties half."""
    order = others.sort().values
    under, up_to = (torch.searchsorted(order, scores, right=right) for right in (False, True))
    return (under + up_to).double() / 2 / len(others)


def _variance(area: float, m: int, n: int) -> float:
    """Return Hanley and McNeil's variance of an area, of m positives and n negatives."""
    yes, no = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    return (area * (1 - area) + (m - 1) * yes + (n - 1) * no) / (m * n)


def _farthest(area: float, end: float, m: int, n: int, z: float) -> float:
    """Find how far from the area another may lie and still be z standard errors away at most."""
    near, far = area, end
    for _ in range(60):
        between = (near + far) / 2
        if abs(area - between) <= z * math.sqrt(max(0.0, _variance(between, m, n))):
            near = between
        else:
            far = between
    return (near + far) / 2
