"""Which words are carried by features that serve images and texts alike?

A word needs no annotation but its category, from a tagger of the user's. With spaCy:

    nlp = spacy.load("en_core_web_sm")
    kinds = {"NOUN": "noun", "VERB": "verb", "ADJ": "adjective", "ADP": "preposition"}
    words = [[(t.lower_, kinds[t.pos_]) for t in nlp(c) if t.pos_ in kinds] for c in captions]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate
from vlm_edit.measures.dominance import Dominance

_SCRATCH = 1 << 20  # float64 numbers: 8 MiB
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)

QUANTITIES = ("fusion", "dominance", "cofiring")


@dataclass(frozen=True)
class WordFusion:
    """A word in one category, and what its features are like.

    Attributes:
        word: As the user's tagger gave it.
        category: Likewise.
        captions: That have it.
        fusion: Mean degree of fusion of the features that it lifts, weighted by the lift.
        dominance: Their MDS, weighted so.
        cofiring: Their co-firing on matched pairs, weighted so.

    NaN where it lifts no feature, as a word of every caption.
    """

    word: str
    category: str
    captions: int
    fusion: float
    dominance: float
    cofiring: float


@dataclass(frozen=True)
class Fusion:
    """Words, and their means by category.

    Attributes:
        words: By category and word.
        categories: Per category and quantity (``fusion``, ``dominance``, ``cofiring``) the mean
            over words, with its interval; ``n`` counts the words.
        chance: The same means where captions are dealt to the words at random: over the draws,
            and the range that holds 95 % of them.
    """

    words: tuple[WordFusion, ...]
    categories: Mapping[str, Mapping[str, Estimate]]
    chance: Mapping[str, Mapping[str, Estimate]]


def fusion_degree(scores: Tensor) -> Tensor:
    """Compute the degree of fusion, ``1 - |2 MDS - 1|``: 1 for both alike, 0 for one alone.

    Args:
        scores: [m], MDS; NaN stays NaN.

    Example:
        >>> import torch
        >>> fusion_degree(torch.tensor([0.0, 0.5, 0.75]))
        tensor([0.0000, 1.0000, 0.5000])
    """
    return 1 - (2 * scores - 1).abs()


def fusion_by_category(
    text_codes: Tensor | SparseCodes,
    words: Sequence[Sequence[tuple[str, str]]],
    dominance: Dominance,
    min_count: int = 5,
    draws: int = 100,
    seed: int = 0,
) -> Fusion:
    """Measure the fusion of the features that words bring up, by linguistic category.

    A word lifts a feature by the mean |code| of captions with it less that of captions without,
    where that is positive. The word's fusion is the mean ``fusion_degree`` of features, weighted
    by the lift. A rare word lifts features by accident too, which draws it to the mean of all:
    ``chance`` tells how a category comes out if only that were at work.

    Args:
        text_codes: [n, m], of the captions.
        words: Per caption its words, each with a category. A word that comes in two categories
            is two words; a caption counts once for each.
        dominance: Dominance of the same features, on these or other pairs.
        min_count: Captions that must have a word for it to be counted.
        draws: Random dealings for ``chance``.
        seed: Of those.

    Raises:
        VlmEditError: Another number of captions or features, or no draw.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> image = torch.tensor([[1.0, 0.0]] * 4)  # the second feature is of texts alone
        >>> words = [[("cat", "noun")]] * 2 + [[("of", "preposition")]] * 2
        >>> fusion = fusion_by_category(text, words, modality_dominance(image, text), min_count=2)
        >>> fusion.categories["noun"]["fusion"].value
        0.5
        >>> fusion.categories["preposition"]["fusion"].value
        0.0
    """
    codes = SparseCodes.of(text_codes).to("cpu")
    if len(words) != len(codes) or codes.n_features != len(dominance.scores):
        raise BadArgument(
            f"codes of {len(codes)} captions and {codes.n_features} features meet words of "
            f"{len(words)} captions and scores of {len(dominance.scores)} features"
        )
    if draws < 1:
        raise BadArgument(f"draws={draws}: chance needs at least one draw")
    items = _captions_of(words, min_count)
    features = torch.stack(
        [fusion_degree(dominance.scores), dominance.scores, dominance.cofiring()[0]]
    )
    lists = list(items.values())
    values = _weighted(codes, lists, features)
    kinds = [category for category, _ in items]
    entries = tuple(
        WordFusion(word, category, len(captions), *row)
        for ((category, word), captions), row in zip(items.items(), values.tolist(), strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(codes), generator=generator) for _ in range(draws))
    dealings = torch.stack([
        _weighted(codes, [order[captions] for captions in lists], features) for order in orders
    ])  # fmt: skip
    categories, chance = {}, {}
    for kind in dict.fromkeys(kinds):
        member = torch.tensor([k == kind for k in kinds])
        categories[kind] = dict(zip(QUANTITIES, map(_mean, values[member].T), strict=True))
        means = dealings[:, member].nanmean(1)
        chance[kind] = dict(zip(QUANTITIES, map(_range, means.T), strict=True))
    return Fusion(entries, categories, chance)


def _captions_of(
    words: Sequence[Sequence[tuple[str, str]]], min_count: int
) -> dict[tuple[str, str], Tensor]:
    """List the numbers of the captions that have each (category, word), sorted."""
    occurrences: dict[tuple[str, str], list[int]] = {}
    for caption, pairs in enumerate(words):
        for word, category in dict.fromkeys(pairs):
            occurrences.setdefault((category, word), []).append(caption)
    items = sorted(item for item, captions in occurrences.items() if len(captions) >= min_count)
    return {item: torch.tensor(occurrences[item], dtype=torch.int64) for item in items}


def _weighted(codes: SparseCodes, captions: list[Tensor], features: Tensor) -> Tensor:
    """Average features' quantities [q, m], weighted by the lift of each word: [w, q]."""
    n, m = codes.shape
    total = codes.features.bincount(codes.values.detach().double().abs(), m)
    mask = ~features.isnan()
    values = features.double().where(mask, 0.0)
    means = []
    for sums, counts in _sums_with(codes, captions):
        lift = (sums / counts - (total - sums) / (n - counts)).clamp(min=0)
        # Where a word is in every caption, 0 / 0 is NaN, and so are its means.
        means.append(lift @ values.T / (lift @ mask.double().T))
    return torch.cat(means) if means else torch.zeros(0, len(features), dtype=torch.float64)


def _sums_with(codes: SparseCodes, captions: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Sum |code| over each word's captions, some words at a time: [w, m] and counts [w, 1]."""
    m = codes.n_features
    values = codes.values.detach().double().abs()
    per_row = codes.rows.bincount(minlength=len(codes))
    starts = per_row.cumsum(0) - per_row
    step = max(1, _SCRATCH // max(m, 1))
    for begin in range(0, len(captions), step):
        some = captions[begin : begin + step]
        counts = torch.tensor([len(one) for one in some])
        sums = torch.zeros(len(some) * m, dtype=torch.float64)
        word = torch.arange(len(some)).repeat_interleave(counts)
        block = max(1, _SCRATCH // max(1, int(per_row.max())))
        for rows, owner in zip(torch.cat(some).split(block), word.split(block), strict=True):
            lengths = per_row[rows]
            offset = torch.arange(int(lengths.sum())) - (
                lengths.cumsum(0) - lengths
            ).repeat_interleave(lengths)
            entry = starts[rows].repeat_interleave(lengths) + offset
            cell = owner.repeat_interleave(lengths) * m + codes.features[entry]
            sums.index_add_(0, cell, values[entry])
        yield sums.view(len(some), m), counts[:, None].double()


def _mean(values: Tensor) -> Estimate:
    numbers = values[~values.isnan()]
    return mean_estimate(numbers) if len(numbers) else Estimate(math.nan, math.nan, math.nan, 0)


def _range(means: Tensor) -> Estimate:
    numbers = means[~means.isnan()]
    if not len(numbers):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = numbers.quantile(_ENDS).tolist()
    return Estimate(float(numbers.mean()), low, high, len(numbers))
