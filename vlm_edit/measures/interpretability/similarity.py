"""Do the top examples of a feature resemble each other more than random ones? EmbSim and WinRate.

The seed paper (arXiv 2502.14888) defines both over the m most activating examples, in an encoder
other than the studied one: EmbSim is their mean pairwise cosine, minus that of m random examples;
WinRate is the fraction of pairs in which the similarity of the top m beats the random one.

Read so here: the m random examples are drawn many times, without replacement and once for all
features. EmbSim is ``lift``, over the mean of the draws. A pair of WinRate is one pair of top
examples and one pair of random examples, over all of both; ties, which copies of a caption make,
count half, so a feature without meaning has 0.5.
"""

from __future__ import annotations

import math
import random as python_random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate
from vlm_edit.measures.interpretability.monosemanticity import normalised
from vlm_edit.measures.interpretability.top import TopExamples

Embed = Callable[[Sequence[int]], Tensor]

_SCRATCH = 1 << 20  # float64 numbers: 8 MiB
# Cosines are compared as whole multiples of this: equal pairs must not differ by rounding.
_STEP = 2.0**-40


@dataclass(frozen=True)
class SimilaritySummary:
    """Means over features, with intervals by resampling the features.

    Attributes:
        similarity: Mean pairwise cosine of the top examples.
        lift: The same above random examples (EmbSim).
        win_rate: WinRate.

    NaN, with ``n`` 0, where no feature has enough examples.
    """

    similarity: Estimate
    lift: Estimate
    win_rate: Estimate


@dataclass(frozen=True, eq=False)
class SimilarityOfTop:
    """EmbSim and WinRate for one number m of examples, over F features.

    Attributes:
        m: Examples per feature.
        similarity: [F] float64, mean pairwise cosine; NaN where fewer than m examples activate
            the feature.
        random: Mean pairwise cosine of m random examples, over the draws; its interval is of the
            mean, ``n`` counts the draws. NaN where there are fewer than m examples to draw.
        random_sd: Standard deviation over the draws.
        p: [F] float64, share of draws at least as similar as the feature's examples, with one
            counted on both sides, so that it is never 0; NaN likewise.
        win_rate: [F] float64, NaN likewise.
    """

    m: int
    similarity: Tensor
    random: Estimate
    random_sd: float
    p: Tensor
    win_rate: Tensor

    @property
    def lift(self) -> Tensor:
        """Return EmbSim: similarity above that of random examples, [F] float64."""
        return self.similarity - self.random.value

    @property
    def enough(self) -> int:
        """Return the number of features that at least m examples activate."""
        return int((~self.similarity.isnan()).sum())

    def summary(self, features: Tensor | Sequence[int] | None = None) -> SimilaritySummary:
        """Average over features that have enough examples.

        Args:
            features: Numbers, or an [F] bool mask; all by default.
        """
        selection = slice(None) if features is None else torch.as_tensor(features)
        if isinstance(selection, Tensor) and selection.dtype != torch.bool:
            selection = selection.long()

        def estimate(scores: Tensor) -> Estimate:
            scores = scores[selection]
            scores = scores[~scores.isnan()]
            if not len(scores):
                return Estimate(math.nan, math.nan, math.nan, 0)
            return mean_estimate(scores)

        return SimilaritySummary(*map(estimate, (self.similarity, self.lift, self.win_rate)))


@dataclass(frozen=True)
class ExampleSimilarity:
    """EmbSim and WinRate for several numbers of examples; ``scores[20]`` is for 20.

    Attributes:
        at: By number of examples.
        draws: Random draws, shared by all features.
        seed: Of the draws.
    """

    at: dict[int, SimilarityOfTop]
    draws: int
    seed: int

    def __getitem__(self, m: int) -> SimilarityOfTop:
        if m not in self.at:
            raise BadArgument(f"similarity was not measured for m={m}, but for {list(self.at)}")
        return self.at[m]

    def summary(
        self, features: Tensor | Sequence[int] | None = None
    ) -> dict[int, SimilaritySummary]:
        """Return ``SimilarityOfTop.summary`` for each number of examples."""
        return {m: scores.summary(features) for m, scores in self.at.items()}


def example_similarity(
    top: TopExamples,
    embed: Embed,
    n_examples: int,
    m: Sequence[int] = (10, 20, 30, 50),
    draws: int = 200,
    seed: int = 0,
    batch_size: int = 256,
) -> ExampleSimilarity:
    """Compute EmbSim and WinRate of each feature's top examples.

    Args:
        top: The top examples; it must keep the largest m.
        embed: Embeddings [u, width] of u examples by their numbers, from an encoder other than
            the studied one. Each number that is needed is asked for once.
        n_examples: Examples to draw from: numbers 0 to n_examples - 1.
        m: Numbers of examples, each at least 2.
        draws: Random draws, at least 2, shared by all features.
        seed: Of the draws.
        batch_size: Examples that ``embed`` gets at once.

    Raises:
        VlmEditError: Too few examples kept, numbers outside of the examples, embeddings of
            another shape, zero or not finite.

    Example:
        >>> import torch
        >>> top = TopExamples(n_features=2, keep=2)
        >>> top.update(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), [0, 1, 2])
        >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> scores = example_similarity(top, lambda numbers: vectors[numbers], 3, m=[2])
        >>> scores[2].similarity
        tensor([1., 0.], dtype=torch.float64)
    """
    sizes = sorted(set(m))
    _check(top, n_examples, sizes, draws)
    samples = _draw(n_examples, [size for size in sizes if size <= n_examples], draws, seed)
    counts = (top.numbers >= 0).sum(1)
    numbers = top.numbers[counts >= sizes[0], : sizes[-1]]
    examples = torch.cat([numbers[numbers >= 0], samples.flatten()]).unique()
    table = _embedded(embed, examples, batch_size)
    of_random = _cosines(table, torch.searchsorted(examples, samples))
    places = torch.searchsorted(examples, top.numbers[:, : sizes[-1]].clamp_min(0))
    at = {}
    for size in sizes:
        rows = (counts >= size).nonzero().flatten()
        random = of_random[:, _pairs(size)] if size <= n_examples else of_random[:0, :1]
        at[size] = _compare(size, len(counts), rows, places[rows, :size], table, random)
    return ExampleSimilarity(at, draws, seed)


def _check(top: TopExamples, n_examples: int, sizes: Sequence[int], draws: int) -> None:
    if not sizes or sizes[0] < 2 or sizes[-1] > top.keep:
        raise BadArgument(
            f"m is {list(sizes)}: pairs need at least two examples, and {top.keep} are kept per "
            "feature; give keep at least the largest m"
        )
    if draws < 2:
        raise BadArgument(f"draws is {draws}; at least two random draws are needed")
    last = int(top.numbers.max()) if top.numbers.numel() else -1
    if last >= n_examples:
        raise BadArgument(f"n_examples is {n_examples}, but example {last} is among the top")


def _draw(n_examples: int, sizes: Sequence[int], draws: int, seed: int) -> Tensor:
    """Draw numbers without replacement, [draws, largest m]; the first m of a row are m of them.

    Python's generator, because it draws without a list of all examples.
    """
    generator = python_random.Random(seed)
    most = max(sizes, default=0)
    rows = [generator.sample(range(n_examples), most) for _ in range(draws)]
    return torch.tensor(rows, dtype=torch.int64)


def _embedded(embed: Embed, numbers: Tensor, batch_size: int) -> Tensor:
    parts: list[Tensor] = []
    for batch in numbers.split(batch_size):
        if not len(batch):
            continue
        vectors = embed(batch.tolist())
        if (
            vectors.ndim != 2
            or len(vectors) != len(batch)
            or (parts and vectors.shape[1] != parts[0].shape[1])
        ):
            raise BadArgument(
                f"embed must give [{len(batch)}, width] for {len(batch)} examples, the same width "
                f"each time, got {tuple(vectors.shape)}"
            )
        normalised(vectors, batch.tolist())
        parts.append(vectors.detach().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def _cosines(table: Tensor, places: Tensor) -> Tensor:
    """Compute cosines of all pairs of each row of places, [rows, pairs] float64, in whole steps."""
    size = places.shape[1]
    # By the second of the pair: the pairs of the first m are the first of the row.
    second, first = torch.ones(size, size).tril(-1).nonzero(as_tuple=True)
    if not len(places) or not size:
        return torch.zeros(len(places), len(first), dtype=torch.float64)
    similarities = torch.empty(len(places), len(first), dtype=torch.float64)
    at_once = max(1, _SCRATCH // max(1, size * max(size, table.shape[1])))
    for start in range(0, len(places), at_once):
        part = places[start : start + at_once]
        unit = normalised(table[part.flatten()]).view(*part.shape, -1)
        cosines = (unit @ unit.mT)[:, first, second]
        similarities[start : start + at_once] = (cosines / _STEP).round() * _STEP
    return similarities


def _pairs(size: int) -> slice:
    return slice(0, size * (size - 1) // 2)


def _compare(
    size: int, n_features: int, rows: Tensor, places: Tensor, table: Tensor, random: Tensor
) -> SimilarityOfTop:
    empty = torch.full((n_features,), torch.nan, dtype=torch.float64)
    similarity, p, win_rate = empty.clone(), empty.clone(), empty.clone()
    if not len(random):
        nothing = Estimate(math.nan, math.nan, math.nan, 0)
        return SimilarityOfTop(size, similarity, nothing, math.nan, p, win_rate)
    # Means of whole steps: equal sets of pairs must tie here too.
    of_draws = random.mean(1)
    ladder, pool = of_draws.sort().values, random.flatten().sort().values
    at_once = max(1, _SCRATCH // random.shape[1])
    for start in range(0, len(rows), at_once):
        cosines = _cosines(table, places[start : start + at_once])
        numbers = rows[start : start + at_once]
        similarity[numbers] = mean = cosines.mean(1)
        at_least = len(ladder) - torch.searchsorted(ladder, mean)
        p[numbers] = (1 + at_least).double() / (1 + len(ladder))
        below = torch.searchsorted(pool, cosines)
        below += torch.searchsorted(pool, cosines, right=True)
        win_rate[numbers] = below.double().mean(1) / (2 * len(pool))
    deviation = float(of_draws.std())
    return SimilarityOfTop(size, similarity, mean_estimate(of_draws), deviation, p, win_rate)
