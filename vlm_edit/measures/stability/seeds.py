"""Features of dictionaries trained anew, matched one to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from vlm_edit.dictionaries import STREAMS, Dictionary, Similarity, match_features
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.measures.dominance import CLASSES, RULE, Cut, Dominance, modality_dominance
from vlm_edit.measures.stability.agreement import (
    Agreement,
    agreement,
    class_numbers,
    correlation,
    decimal,
    mean,
)


@dataclass(frozen=True)
class SeedPair:
    """What two dictionaries have in common.

    Attributes:
        numbers: Which two.
        similarity: Of matched features, on average.
        matched: Share of features whose match is at least as similar as was asked for.
        agreement: Of the classes of all matched features.
        close: The same of those that are as similar as was asked for; None without any.
        recovered: By class, the share of the first's features whose match has the same class; NaN
            for a class without a feature.
        correlation: Of the scores of all matched features.
        close_correlation: Of those that are as similar as was asked for.
    """

    numbers: tuple[int, int]
    similarity: float
    matched: float
    agreement: Agreement
    close: Agreement | None
    recovered: Mapping[str, float]
    correlation: float
    close_correlation: float


@dataclass(frozen=True, eq=False)
class SeedsStability:
    """What recurs in dictionaries trained anew.

    Attributes:
        rule: Of the classes.
        by: What features were matched by.
        least: How similar matched features must be to count as the same.
        pairs: Of dictionaries, each with each.
        similarity: [m] float32, of the first dictionary's features with their least similar match.
        recurs: [m] bool, whether a feature of the first dictionary is alive and has in every other
            a match that is similar enough and of the same class.
    """

    rule: Cut
    by: Similarity
    least: float
    pairs: tuple[SeedPair, ...]
    similarity: Tensor
    recurs: Tensor

    @property
    def recurring(self) -> list[int]:
        """Return the features of the first dictionary that recur in all others."""
        return self.recurs.nonzero().flatten().tolist()

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the headings of ``cells``."""
        what = "cosine" if self.by == "decoder" else "code correlation"
        names = (f"{name} again" for name in CLASSES[:3])
        return (
            *("dictionaries", what, f"from {self.least:g}", "agreement", "kappa"),
            *(*names, "MDS correlation", "kappa of those", "MDS correlation of those"),
        )

    def cells(self) -> list[tuple[str, ...]]:
        """Return a row for each two dictionaries as text, and their mean."""
        rows = {f"{a} and {b}": self._figures(p) for p in self.pairs for a, b in [p.numbers]}
        if len(rows) > 1:
            columns = list(zip(*rows.values(), strict=True))
            rows["mean"] = [mean(column) for column in columns]
        return [(name, *map(decimal, figures)) for name, figures in rows.items()]

    def _figures(self, pair: SeedPair) -> list[float]:
        close = float("nan") if pair.close is None else pair.close.kappa
        return [
            *(pair.similarity, pair.matched, pair.agreement.share, pair.agreement.kappa),
            *(pair.recovered[name] for name in CLASSES[:3]),
            *(pair.correlation, close, pair.close_correlation),
        ]

    def note(self) -> str:
        """Say how to read the rows."""
        return (
            f"Features matched one to one by {self.by}; classes by the rule {self.rule}. from "
            f"{self.least:g}: share of features with a match that similar;\nagain: share of a "
            "class whose matches are of it too; of those: of features with a match that similar.\n"
            f"{len(self.recurring)} of {several(len(self.recurs), 'feature')} of dictionary 0 "
            "recur in all others, as similar and of the same class."
        )


def stability_of_seeds(
    dictionaries: Sequence[Dictionary],
    streams: Mapping[str, Tensor],
    *,
    rule: Cut = RULE,
    by: Similarity = "decoder",
    least: float = 0.7,
) -> SeedsStability:
    """Match the features of dictionaries trained with several seeds, and compare their classes.

    Args:
        dictionaries: Two or more, of as many features.
        streams: [n, d] activations, ``image`` and ``text``, row i of both a pair; best of pairs
            that no dictionary was trained on.
        rule: Of the classes, as in ``Dominance.classes``.
        by: As in ``match_features``.
        least: How similar matched features must be to count as the same.

    Raises:
        VlmEditError: Fewer than two dictionaries, streams that are no pairs, or as
            ``match_features``.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> x = torch.randn(100, 3).relu()
        >>> streams = {"image": x, "text": x * torch.tensor([0.0, 1.0, 9.0])}
        >>> neurons = Dictionary.identity(3)
        >>> stable = stability_of_seeds([neurons, neurons.reordered([2, 0, 1])], streams)
        >>> stable.recurring
        [0, 1, 2]
    """
    if len(dictionaries) < 2:
        raise BadArgument(f"{len(dictionaries)} dictionary: give two or more to compare")
    shapes = {name: tuple(x.shape) for name, x in streams.items()}
    if set(shapes) != set(STREAMS) or len(set(shapes.values())) != 1:
        raise BadArgument(
            f"streams of pairs are 'image' and 'text' with as many rows, got {shapes}"
        )
    known = []
    for dictionary in dictionaries:
        image, text = (dictionary.encode_sparse(streams[s], s) for s in STREAMS)
        known.append(modality_dominance(image, text))
    classes = [class_numbers(dominance, rule) for dominance in known]
    first = classes[0]
    similarity = torch.full((len(first),), torch.inf)
    recurs, pairs = first != CLASSES.index("dead"), []
    for i, j in combinations(range(len(dictionaries)), 2):
        order, alike = match_features(dictionaries[i], dictionaries[j], streams, by)
        pairs.append(_compare((i, j), (known[i], known[j]), (classes[i], classes[j]), order,
                              alike, least))  # fmt: skip
        if i == 0:
            recurs &= (alike >= least) & (classes[j][order] == first)
            similarity = torch.minimum(similarity, alike)
    return SeedsStability(rule, by, least, tuple(pairs), similarity, recurs)


def _compare(
    numbers: tuple[int, int],
    known: tuple[Dominance, Dominance],
    classes: tuple[Tensor, Tensor],
    order: Tensor,
    alike: Tensor,
    least: float,
) -> SeedPair:
    one, other = classes[0], classes[1][order]
    scores = known[0].scores, known[1].scores[order]
    close = alike >= least
    return SeedPair(
        numbers,
        float(alike.mean()),
        float(close.double().mean()),
        agreement(one, other),
        agreement(one[close], other[close]) if bool(close.any()) else None,
        {
            name: float((other[one == place] == place).double().mean())
            for place, name in enumerate(CLASSES)
        },
        correlation(*scores),
        correlation(scores[0][close], scores[1][close]),
    )
