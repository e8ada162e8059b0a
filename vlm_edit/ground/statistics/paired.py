"""The same cases under two treatments: a test, and how far the shares lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics.clusters import effective, numbered, t95
from vlm_edit.ground.statistics.estimate import Estimate, Z, short


@dataclass(frozen=True)
class PairedTest:
    """Hold what becomes of the same cases under two treatments, by McNemar's exact test.

    Attributes:
        only_first: Cases that are right under the first treatment alone.
        only_second: Those right under the second alone.
        n: All cases.
        p: Chance of shares as unlike as these, or more, if neither treatment were better.

    Example:
        >>> print(PairedTest(8, 1, 48, 0.0390625))
        8 and 1 of 48, p .039
    """

    only_first: int
    only_second: int
    n: int
    p: float

    def __str__(self) -> str:
        """Show both counts, and p with three decimals."""
        text = "< .001" if self.p < 0.001 else short(self.p, 3)
        return f"{self.only_first} and {self.only_second} of {self.n}, p {text}"


def mcnemar(first: Tensor, second: Tensor) -> PairedTest:
    """Compare two treatments of the same cases by McNemar's exact test (McNemar 1947).

    Intervals of two shares of the same cases say little of their difference, which is of the
    cases that only one of both gets right. Without a difference each of those is a toss of a coin.

    Args:
        first: [n] bool, whether each case is right.
        second: [n] bool, of the same cases in the same order.

    Raises:
        VlmEditError: Other cases, none, or what is not bool.

    Example:
        >>> import torch
        >>> first = torch.tensor([True, True, True, False, True, True])
        >>> mcnemar(first, torch.tensor([False] * 5 + [True])).p
        0.125
    """
    _expect_same(first, second)
    one, two = int((first & ~second).sum()), int((second & ~first).sum())
    tail = sum(math.comb(one + two, k) for k in range(min(one, two) + 1))
    return PairedTest(one, two, first.numel(), min(1.0, 2 * tail / 2 ** (one + two)))


def share_difference(first: Tensor, second: Tensor, groups: Tensor | None = None) -> Estimate:
    """Estimate how far one treatment's share lies above another's on the same cases.

    Tango's score interval (1998), which holds for few cases, and where none differs.

    Args:
        first: [n] bool, whether each case is right.
        second: [n] bool, of the same cases in the same order.
        groups: [n] int, which image each case is of.

    Returns:
        NaN for the ends of a single group.

    Raises:
        VlmEditError: As ``mcnemar``, or groups of other cases.

    Example:
        >>> import torch
        >>> first = torch.tensor([True] * 8 + [False] + [True] * 39)
        >>> print(share_difference(first, torch.arange(48) >= 8))
        .146 [.029, .280]
    """
    _expect_same(first, second)
    apart = first.double().cpu() - second.double().cpu()
    n, value = len(apart), float(apart.mean())
    numbers, cases, z = numbered(groups, n), float(n), Z
    if groups is not None:
        units = len(numbers.unique())
        if units < 2:
            return Estimate(value, math.nan, math.nan, n)
        cases, z = effective((apart - value) / n, numbers), max(Z, t95(units))
    one, two = (int((apart == sign).sum()) * cases / n for sign in (1, -1))
    within = _within(one, two, cases, z)
    return Estimate(value, _last(within, value, -1.0), _last(within, value, 1.0), n)


def _expect_same(first: Tensor, second: Tensor) -> None:
    if first.dtype != torch.bool or second.dtype != torch.bool or first.shape != second.shape:
        raise BadArgument(
            f"a paired test needs [n] bool of the same cases, got {tuple(first.shape)} "
            f"{first.dtype} and {tuple(second.shape)} {second.dtype}"
        )
    if not first.numel():
        raise BadArgument("a paired test of no cases: there is nothing to compare")


def _within(one: float, two: float, n: float, z: float) -> Callable[[float], bool]:
    """Say of a difference whether Tango's score of it is at most z."""

    def within(gap: float) -> bool:
        linear = (2 * n - one + two) * gap - one - two
        root = math.sqrt(max(0.0, linear**2 + 8 * n * two * gap * (1 - gap)))
        only_second = (root - linear) / (4 * n)  # the likeliest share of these if gap is true
        spread = n * max(0.0, 2 * only_second + gap * (1 - gap))
        return abs(one - two - n * gap) <= z * math.sqrt(spread)

    return within


def _last(within: Callable[[float], bool], value: float, end: float) -> float:
    """Find the last difference on the way from the estimate to an end that is within."""
    near, far = value, end
    for _ in range(60):
        between = (near + far) / 2
        near, far = (between, far) if within(between) else (near, between)
    return (near + far) / 2
