"""Which features are alike: by where they write, and by the examples they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import AnyDictionary, PairedDictionary, expect_features
from vlm_edit.ground.errors import BadArgument, WrongHost
from vlm_edit.measuring.naming.words import decoder_rows
from vlm_edit.measuring.reader import STREAMS
from vlm_edit.measuring.result import Measurement

Near = tuple[tuple[int, float], ...]

_BLOCK = 256  # features whose neighbours are looked for at once
_AMONG = 8192  # and among so many at once


@dataclass(frozen=True)
class Neighbours:
    """Hold the features that are most like one.

    Attributes:
        decoder: Features by the cosine of decoder rows, falling; of a paired dictionary the mean
            of both streams'.
        examples: Features by the share of top examples in common (Jaccard), falling; none that
            share no example, and empty without a measurement.
    """

    decoder: Near
    examples: Near = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "decoder": [list(pair) for pair in self.decoder],
            "examples": [list(pair) for pair in self.examples],
        }


def neighbours(
    dictionary: AnyDictionary,
    features: int | Sequence[int] | None = None,
    k: int = 5,
    *,
    measurement: Measurement | None = None,
) -> dict[int, Neighbours]:
    """Find the features most like each, some at a time: never a cosine of all with all.

    Args:
        dictionary: Of any kind.
        features: One, or several; None for all.
        k: Neighbours of each, at most.
        measurement: Of this dictionary: its top examples then tell who fires where. Only the
            examples that it kept are compared, in both streams.

    Returns:
        By feature.

    Raises:
        BadArgument: A feature that is not there, or no neighbours asked for.
        WrongHost: A measurement of another number of features.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> from vlm_edit import Dictionary
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> neighbours(replace(Dictionary.identity(2), decoder=rows), 0)[0].decoder
        ((1, 0.0),)
    """
    if k < 1:
        raise BadArgument(f"k is {k}: ask for at least 1 neighbour")
    m = dictionary.n_features
    numbers = range(m) if features is None else features
    wanted = [numbers] if isinstance(numbers, int) else list(numbers)
    expect_features(wanted, m)
    shared: dict[int, Near] = {}
    if measurement is not None:
        count = len(measurement.dominance.scores)
        if count != m:
            raise WrongHost(
                f"the measurement is of {count} features and the dictionary has {m}: pass the one "
                "that was measured"
            )
        shared = _by_examples(measurement, wanted, k)
    near = _by_decoder(dictionary, wanted, min(k, m - 1))
    return {number: Neighbours(near[number], shared.get(number, ())) for number in wanted}


def _by_decoder(dictionary: AnyDictionary, wanted: list[int], k: int) -> dict[int, Near]:
    near: dict[int, Near] = dict.fromkeys(wanted, ())
    for start in range(0, len(wanted) if k else 0, _BLOCK):
        some = torch.tensor(wanted[start : start + _BLOCK])
        values, places = _nearest(dictionary, some, k)
        for number, row, columns in zip(
            some.tolist(), values.tolist(), places.tolist(), strict=True
        ):
            near[number] = tuple(zip(columns, row, strict=True))
    return near


def _nearest(dictionary: AnyDictionary, some: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return cosines and numbers of the k features nearest to some, themselves left out."""
    own = _unit(dictionary, some.tolist())
    values = torch.empty(len(some), 0)
    places = torch.empty(len(some), 0, dtype=torch.int64)
    for start in range(0, dictionary.n_features, _AMONG):
        among = torch.arange(start, min(start + _AMONG, dictionary.n_features))
        cosines = own @ _unit(dictionary, among.tolist()).mT
        cosines[some[:, None] == among] = -torch.inf
        values = torch.cat([values, cosines], 1)
        places = torch.cat([places, among.expand(len(some), -1)], 1)
        values, order = values.topk(min(k, values.shape[1]), dim=1)
        places = places.gather(1, order)
    return values, places


def _unit(dictionary: AnyDictionary, features: list[int]) -> Tensor:
    """Return decoder rows of length 1; of a paired dictionary both streams', of 1 together."""
    if not isinstance(dictionary, PairedDictionary):
        return F.normalize(decoder_rows(dictionary, features, "image"), dim=1)
    halves = [F.normalize(decoder_rows(dictionary, features, s), dim=1) for s in STREAMS]
    return torch.cat(halves, 1) / 2**0.5


def _by_examples(measurement: Measurement, wanted: list[int], k: int) -> dict[int, Near]:
    """Return Jaccard's index of sets of top examples, by looking up who else has each example."""
    numbers = [measurement.examples[stream].numbers for stream in STREAMS]
    keys = torch.cat([torch.where(n < 0, -1, n * 2 + i) for i, n in enumerate(numbers)], 1)
    m, size = len(keys), (keys >= 0).sum(1)
    owner, flat = torch.arange(m)[:, None].expand_as(keys)[keys >= 0], keys[keys >= 0]
    order = flat.argsort(stable=True)
    owner, flat = owner[order], flat[order]
    near: dict[int, Near] = {}
    for number in wanted:
        own = keys[number][keys[number] >= 0]
        begin = torch.searchsorted(flat, own)
        end = torch.searchsorted(flat, own, right=True)
        met = [owner[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
        common = torch.cat([*met, owner[:0]]).bincount(minlength=m)
        common[number] = 0
        index = common.double() / (size + size[number] - common).clamp_min(1)
        top, places = index.topk(min(k, m))
        found = zip(places.tolist(), top.tolist(), strict=True)
        near[number] = tuple((place, value) for place, value in found if value > 0)
    return near
