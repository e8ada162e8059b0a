"""How much the features of a group differ from each other, beside random groups of their size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate
from vlm_edit.measures.controls import random_features
from vlm_edit.measures.interpretability import TopExamples

_SAMPLES = 2000
_SCRATCH = 1 << 20  # float64 numbers: 8 MiB
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Spread:
    """Variance inside a group, and inside random groups of as many features.

    Attributes:
        own: ``1 - |mean|^2`` of the group's unit vectors, between 0 (all alike) and 1; its
            interval is the bootstrap over features. ``n`` counts those that have a vector.
        random: The mean over random groups, and the range that holds 95 % of them; ``n`` counts
            the groups.

    NaN for a group in which no feature has a vector; one feature has no interval.
    """

    own: Estimate
    random: Estimate


def direction_spread(
    decoder: Tensor,
    features: Sequence[int],
    live: Sequence[int] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Spread:
    """Measure the variance of the directions in which a group's features write.

    Of n directions at right angles it is 1 - 1 / n, so groups of different sizes compare by what
    random ones of their size have.

    Args:
        decoder: [m, d], normalised here; features without a direction (zero rows) are left out.
        features: The group.
        live: Features that random groups are drawn from; None for all.
        draws: Random groups.
        seed: Of the random groups and of the bootstrap.

    Raises:
        VlmEditError: A feature that is not there, or fewer to draw from than the group has.

    Example:
        >>> import torch
        >>> spread = direction_spread(torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]]), [0, 1])
        >>> spread.own.value
        0.0
        >>> direction_spread(torch.eye(4), [0, 1]).own.value
        0.5
    """
    rows = decoder.detach().cpu().double()
    unit = F.normalize(rows, dim=1).where(rows.norm(dim=1, keepdim=True) > 0, torch.nan)
    return _spread(unit, features, live, draws, seed)


def example_spread(
    top: TopExamples,
    embeddings: Tensor,
    features: Sequence[int],
    live: Sequence[int] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Spread:
    """Measure the variance of the examples that a group's features answer to, in another encoder.

    All top examples of all features of the group, each feature with the same weight. It holds
    how far one feature's examples lie apart and how far the features do.

    Args:
        top: Of every feature of the dictionary.
        embeddings: [n, d] of the examples by their numbers, normalised here.
        features: The group; features without an example are left out.
        live: As in ``direction_spread``, like the next two.
        draws: Random groups.
        seed: Of the random groups and of the bootstrap.

    Raises:
        VlmEditError: An example without an embedding; otherwise as in ``direction_spread``.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.interpretability import TopExamples
        >>> top = TopExamples(n_features=2, keep=2)
        >>> top.update(torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 2.0], [0.0, 3.0]]), range(4))
        >>> meaning = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        >>> example_spread(top, meaning, [0]).own.value
        0.0
        >>> example_spread(top, meaning, [0, 1]).own.value
        0.5
    """
    numbers = top.numbers
    if len(numbers) and int(numbers.max()) >= len(embeddings):
        raise BadArgument(
            f"example {int(numbers.max())} has no embedding: there are {len(embeddings)}, and they "
            "must stand by the examples' numbers"
        )
    unit = F.normalize(embeddings.detach().cpu().double(), dim=1)
    means = torch.full((len(numbers), unit.shape[1]), math.nan, dtype=torch.float64)
    step = max(1, _SCRATCH // max(1, numbers.shape[1] * unit.shape[1]))
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step]
        there = (part >= 0).double()
        sums = (unit[part.clamp(min=0)] * there[..., None]).sum(1)
        means[start : start + step] = sums / there.sum(1, keepdim=True)
    return _spread(means, features, live, draws, seed)


def class_means(values: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, Estimate]:
    """Average a score over the features of each group, with intervals over features.

    Args:
        values: [m], one per feature, such as ``Dominance.mutual_information()``; features where
            it is NaN are left out.
        groups: Features by name, such as ``Dominance.classes(rule)``.

    Returns:
        By name; ``n`` counts the features with a value. NaN where there is none.

    Example:
        >>> import torch
        >>> class_means(torch.tensor([1.0, 3.0, torch.nan]), {"a": [0, 1], "b": [2]})["a"].value
        2.0
    """
    means = {}
    for name, features in groups.items():
        members = values[_index(features, len(values))].double()
        numbers = members[~members.isnan()]
        means[name] = mean_estimate(numbers) if len(numbers) else _nothing()
    return means


def _spread(
    vectors: Tensor,
    features: Sequence[int],
    live: Sequence[int] | None,
    draws: int,
    seed: int,
) -> Spread:
    """Measure the spread of rows of [m, d]; NaN rows are left out."""
    numbers = _index(features, len(vectors))
    there = ~vectors.isnan().any(1)
    group = numbers[there[numbers]]
    pool = there.nonzero().flatten()
    if live is not None:
        candidates = _index(live, len(vectors))
        pool = candidates[there[candidates]]
    if not len(group):
        return Spread(_nothing(), _nothing())
    own = _variance(vectors[group])
    low, high = _bootstrap(vectors[group], seed)
    groups = random_features(group.tolist(), pool.tolist(), draws, seed)
    others = torch.tensor([_variance(vectors[one]) for one in groups], dtype=torch.float64)
    least, most = others.quantile(_ENDS).tolist()
    return Spread(
        Estimate(own, low, high, len(group)), Estimate(float(others.mean()), least, most, draws)
    )


def _variance(vectors: Tensor) -> float:
    return float((1 - vectors.mean(0).square().sum()).clamp(min=0))


def _bootstrap(vectors: Tensor, seed: int) -> tuple[float, float]:
    """Estimate the interval of the variance, by resampling rows.

    A row drawn twice does not count as agreeing with itself, or every sample would lie below the
    value: the mean product of different rows is resampled, and brought back to the variance of n.
    """
    n = len(vectors)
    if n < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    lengths, parts = vectors.square().sum(1), []
    step = max(1, _SCRATCH // n)
    for start in range(0, _SAMPLES, step):
        count = min(step, _SAMPLES - start)
        picks = torch.randint(n, (count, n), generator=generator)
        times = torch.zeros(count, n, dtype=torch.float64)
        times.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        same = times.square()
        products = (times @ vectors).square().sum(1) - same @ lengths
        between = products / (n * n - same.sum(1))
        within = times @ lengths / n
        parts.append(1 - (within + (n - 1) * between) / n)
    samples = torch.cat(parts)
    low, high = samples[~samples.isnan()].quantile(_ENDS).clamp(0, 1).tolist()
    return low, high


def _index(features: Sequence[int], size: int) -> Tensor:
    wrong = [k for k in features if not 0 <= k < size]
    if wrong:
        raise BadArgument(f"feature {wrong[0]} is not there: there are features 0 to {size - 1}")
    return torch.as_tensor(list(features), dtype=torch.int64)


def _nothing() -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, 0)
