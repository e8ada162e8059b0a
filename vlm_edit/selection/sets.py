"""Lists of features as sets, and random ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.controls import activity, activity_matched, norm_matched, random_features

Match = Literal["size", "activity", "norm"]


def union(*lists: Sequence[int]) -> list[int]:
    """List the features of any list, each once, in the order in which they first appear.

    Example:
        >>> union([5, 2], [2, 9])
        [5, 2, 9]
    """
    return list(dict.fromkeys(k for features in lists for k in features))


def intersection(first: Sequence[int], *others: Sequence[int]) -> list[int]:
    """List the features of every list, in the first one's order.

    Example:
        >>> intersection([5, 2, 9], [9, 5])
        [5, 9]
    """
    shared = set(first).intersection(*others)
    return [k for k in dict.fromkeys(first) if k in shared]


def difference(first: Sequence[int], *others: Sequence[int]) -> list[int]:
    """List the features of the first list that are in no other, in its order.

    Example:
        >>> difference([5, 2, 9], [9], [7])
        [5, 2]
    """
    rest = set(first).difference(*others)
    return [k for k in dict.fromkeys(first) if k in rest]


def random_like(
    features: Sequence[int],
    live: Sequence[int],
    match: Match = "size",
    *,
    codes: Tensor | SparseCodes | None = None,
    decoder: Tensor | None = None,
    seed: int = 0,
) -> list[int]:
    """Draw random features beside selected ones, once, as ``vlm_edit.measures.controls`` does.

    Args:
        features: Selected.
        live: Those to choose from; ``difference(live, features)`` for others than the selected.
        match: ``size``, as many; ``activity``, together about as active; ``norm``, whose deletion
            moves the hidden states about as far.
        codes: [n, m], of some hundred examples; for ``activity`` and ``norm``.
        decoder: [m, d], for ``norm``; of a paired dictionary that of the codes' stream.
        seed: Of the draw.

    Returns:
        Feature numbers, rising.

    Raises:
        VlmEditError: An unknown match, codes or decoder missing for it, or too few to choose from.

    Example:
        >>> random_like([7, 8], live=range(20), seed=1)
        [5, 13]
        >>> import torch
        >>> codes = torch.tensor([[2.0, 1.0, 1.0, 1.0]])
        >>> random_like([0], live=[1, 2, 3], match="activity", codes=codes)
        [1, 3]
    """
    if match not in get_args(Match):
        raise BadArgument(f"match is {match!r}: use one of {get_args(Match)}")
    pool = list(live)
    if match == "size":
        return random_features(features, pool, draws=1, seed=seed)[0]
    if codes is None:
        raise BadArgument(f"match={match!r} needs codes=, [n, m], of some hundred examples")
    if match == "activity":
        return activity_matched(features, pool, activity(codes), draws=1, seed=seed)[0]
    if decoder is None:
        raise BadArgument("match='norm' needs decoder=, [m, d], such as dictionary.decoder")
    return norm_matched(features, pool, codes, decoder, draws=1, seed=seed)[0]
