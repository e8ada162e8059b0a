"""Intervals and scores that tables need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument

_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, 95 % where nothing else is said, and its number of cases.

    Example:
        >>> print(Estimate(0.5, 0.4, 0.6, 100))
        .500 [.400, .600]
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Show three decimals, without leading zeros."""
        return self.text(3)

    def text(self, digits: int) -> str:
        """Show so many decimals, without leading zeros."""
        value, low, high = (_short(v, digits) for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def proportion(successes: int, n: int) -> Estimate:
    """Estimate a share with its Wilson score interval (Wilson 1927).

    Args:
        successes: Between 0 and n.
        n: Cases, at least one.

    Example:
        >>> print(proportion(53, 100))
        .530 [.433, .625]
    """
    if not 0 <= successes <= n or n < 1:
        raise BadArgument(f"{successes} successes of {n} cases: a share needs 0 <= successes <= n")
    p, z2 = successes / n, _Z**2 / n
    centre = (p + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    low = centre - half if successes else 0.0
    high = centre + half if successes < n else 1.0
    return Estimate(p, low, high, n)


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
    if positive.dtype != torch.bool or positive.shape != scores.shape:
        raise BadArgument(
            f"positive must be [{len(scores)}] bool like the scores, got "
            f"{tuple(positive.shape)} {positive.dtype}"
        )
    unranked = int(scores.isnan().sum())
    if unranked:
        raise BadArgument(f"{unranked} of {len(scores)} scores are NaN: take those cases out")
    yes, no = scores[positive].double(), scores[~positive].double()
    if not len(yes) or not len(no):
        return math.nan
    below = torch.searchsorted(no.sort().values, yes)
    up_to = torch.searchsorted(no.sort().values, yes, right=True)
    return float((below + up_to).double().sum() / 2 / (len(yes) * len(no)))


def auc_estimate(scores: Tensor, positive: Tensor, draws: int = 2000, seed: int = 0) -> Estimate:
    """Estimate ``auc`` with a percentile bootstrap interval, positives and negatives drawn apart.

    Args:
        scores: [n].
        positive: [n] bool.
        draws: Bootstrap samples.
        seed: Of the draws.

    Returns:
        The estimate; ``n`` counts the positives.
    """
    area = auc(scores, positive)
    generator = torch.Generator().manual_seed(seed)
    groups = [positive.nonzero().flatten(), (~positive).nonzero().flatten()]

    def draw() -> float:
        index = torch.cat([_resample(group, generator) for group in groups])
        return auc(scores[index], positive[index])

    low, high = _percentiles(draw, draws) if all(map(len, groups)) else (math.nan, math.nan)
    return Estimate(area, low, high, len(groups[0]))


def auc_difference(
    scores: Tensor, others: Tensor, positive: Tensor, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate how far one score's ``auc`` lies above another's, by a bootstrap of the same cases.

    Args:
        scores: [n].
        others: [n], of the same cases.
        positive: [n] bool.
        draws: Bootstrap samples.
        seed: Of the draws.

    Returns:
        The estimate; ``n`` counts the positives; NaN where one of the two groups is empty.

    Example:
        >>> import torch
        >>> positive = torch.tensor([False, False, True, True])
        >>> auc_difference(torch.arange(4.0), torch.tensor([0.1, 0.4, 0.35, 0.8]), positive).value
        0.25
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [positive.nonzero().flatten(), (~positive).nonzero().flatten()]

    def difference(index: Tensor) -> float:
        return auc(scores[index], positive[index]) - auc(others[index], positive[index])

    whole = difference(torch.arange(len(scores)))
    if not all(map(len, groups)):
        return Estimate(whole, math.nan, math.nan, len(groups[0]))
    low, high = _percentiles(
        lambda: difference(torch.cat([_resample(group, generator) for group in groups])), draws
    )
    return Estimate(whole, low, high, len(groups[0]))


def middle(drawn: Tensor) -> tuple[float, float]:
    """Return where the middle 95 % of a bootstrap's draws [n] begin and end.

    Example:
        >>> import torch
        >>> middle(torch.arange(41.0))
        (1.0, 39.0)
    """
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = drawn.double().quantile(ends).tolist()
    return low, high


def mean_estimate(values: Tensor, draws: int = 2000, seed: int = 0) -> Estimate:
    """Estimate a mean with its percentile bootstrap interval.

    Args:
        values: [n], at least one.
        draws: Bootstrap samples.
        seed: Of the draws.
    """
    if not len(values):
        raise BadArgument("the mean of no values: there is nothing to estimate")
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    low, high = _percentiles(lambda: float(_resample(values, generator).mean()), draws)
    return Estimate(float(values.mean()), low, high, len(values))


def drawn_difference(own: Tensor, other: Tensor, draws: int = 2000, seed: int = 0) -> Estimate:
    """Estimate how far one mean lies above another of the same cases, both of random draws.

    The interval is the percentile bootstrap over the cases, the same ones for both, and over the
    draws of each at once; with five draws that part of it is rough, with one it is missing.

    Args:
        own: [k, n], a figure of each case in each of k draws, one at least.
        other: [l, n], likewise, of the same cases.
        draws: Bootstrap samples.
        seed: Of those.

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
    generator, n = torch.Generator().manual_seed(seed), own.shape[1]
    cases = _weights(draws, n, generator)

    def means(values: Tensor) -> Tensor:
        weights = _weights(draws, len(values), generator)
        return ((cases @ values.double().mT) * weights).sum(1)

    low, high = middle(means(own) - means(other))
    return Estimate(float(own.double().mean() - other.double().mean()), low, high, n)


def _weights(draws: int, n: int, generator: torch.Generator) -> Tensor:
    """Count what each of n cases weighs in each bootstrap sample, [draws, n]."""
    picks = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)
    return counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64)) / n


def ratio_estimate(above: Tensor, below: Tensor, draws: int = 2000, seed: int = 0) -> Estimate:
    """Estimate the ratio of two means over the same cases, with a percentile bootstrap interval.

    Args:
        above: [n].
        below: [n], of the same cases.
        draws: Bootstrap samples.
        seed: Of the draws.
    """
    if above.shape != below.shape or not len(above):
        raise BadArgument(
            f"a ratio needs two figures of each case, got {len(above)} and {len(below)} cases"
        )
    generator = torch.Generator().manual_seed(seed)
    both = torch.stack([above, below], dim=1).double()

    def ratio(cases: Tensor) -> float:
        means = cases.mean(0)
        return float(means[0] / means[1])

    low, high = _percentiles(lambda: ratio(_resample(both, generator)), draws)
    return Estimate(ratio(both), low, high, len(both))


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
        text = "< .001" if self.p < 0.001 else _short(self.p, 3)
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
    if first.dtype != torch.bool or second.dtype != torch.bool or first.shape != second.shape:
        raise BadArgument(
            f"a paired test needs [n] bool of the same cases, got {tuple(first.shape)} "
            f"{first.dtype} and {tuple(second.shape)} {second.dtype}"
        )
    if not first.numel():
        raise BadArgument("a paired test of no cases: there is nothing to compare")
    one, two = int((first & ~second).sum()), int((second & ~first).sum())
    tail = sum(math.comb(one + two, k) for k in range(min(one, two) + 1))
    return PairedTest(one, two, first.numel(), min(1.0, 2 * tail / 2 ** (one + two)))


def benjamini_hochberg(p: Tensor, alpha: float = 0.05) -> Tensor:
    """Mark the tests that pass at a false discovery rate (Benjamini and Hochberg 1995).

    Args:
        p: [n] p values; NaN, such as those of dead features, are no tests and never pass.
        alpha: Expected share of false ones among those that pass, at most.

    Returns:
        [n] bool.

    Raises:
        VlmEditError: A rate outside of 0 to 1.

    Example:
        >>> import torch
        >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.9]))
        tensor([ True, False, False, False])
    """
    if not 0 < alpha < 1:
        raise BadArgument(f"a false discovery rate lies between 0 and 1, got alpha={alpha}")
    return adjusted_p(p) <= alpha


def adjusted_p(p: Tensor) -> Tensor:
    """Compute for each test the lowest false discovery rate at which it passes.

    Args:
        p: [n] p values; NaN are no tests and stay NaN.

    Returns:
        [n] float64.

    Example:
        >>> import torch
        >>> adjusted_p(torch.tensor([0.01, 0.04, 0.03, 0.9], dtype=torch.float64))
        tensor([0.0400, 0.0533, 0.0533, 0.9000], dtype=torch.float64)
    """
    rates = torch.full(p.shape, math.nan, dtype=torch.float64)
    tests = (~p.isnan()).nonzero().flatten()
    values, order = p[tests].double().sort(descending=True)
    rank = torch.arange(len(tests), 0, -1, dtype=torch.float64)
    if len(tests):
        rates[tests[order]] = (values * len(tests) / rank).cummin(0).values.clamp(max=1)
    return rates


def t_quantile(level: float, df: Tensor) -> Tensor:
    """Return how far Student's t strays from 0 with a chance of 1 - level, either side.

    Hill's Algorithm 396 (1970), less its correction below df 5, which made no error smaller:
    right to 2e-5 of itself for levels of .02 to .9995. Infinite df is the normal.

    Args:
        level: Between 0 and 1, such as .95.
        df: [n] degrees of freedom, at least 1.

    Returns:
        [n] float64.

    Example:
        >>> import torch
        >>> t_quantile(0.95, torch.tensor([1.0, 5.0, torch.inf]))
        tensor([12.7062,  2.5706,  1.9600], dtype=torch.float64)
    """
    n, p = df.double(), 1 - level
    normal = torch.special.ndtri(torch.full_like(n, 1 - p / 2))
    one = torch.full_like(n, 1 / math.tan(p * math.pi / 2))
    two = torch.full_like(n, math.sqrt(2 / (p * (2 - p)) - 2))
    t = torch.where(n < 2, one, torch.where(n < 3, two, _hill(p, n, -normal)))
    return torch.where(n > 1e6, normal, t)


def _hill(p: float, n: Tensor, x: Tensor) -> Tensor:
    """Evaluate Hill's series for df >= 3: around the normal quantile x, or in the far tail."""
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * (a * math.pi / 2).sqrt() * n
    y = (d * p) ** (2 / n)
    far = 1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)
    far = (far * y - 1) * (n + 1) / (n + 2) + 1 / y
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    u = x**2
    near = (((((0.4 * u + 6.3) * u + 36) * u + 94.5) / c - u - 3) / b + 1) * x
    near = torch.special.expm1(a * near**2)
    return (n * torch.where(y > 0.05 + a, near, far)).sqrt()


def _resample(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), (len(values),), generator=generator)]


def _percentiles(draw: Callable[[], float], draws: int) -> tuple[float, float]:
    return middle(torch.tensor([draw() for _ in range(draws)], dtype=torch.float64))


def _short(value: float, digits: int) -> str:
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # no -.000
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")
