"""Who is among the first that a query finds, what chance gives for it, and how far it varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument

SKEWS = ("MaxSkew", "KL", "NDKL")
DRAWS = 1000


def shares(groups: Sequence[str]) -> dict[str, float]:
    """Return the share of each group.

    Args:
        groups: The group of each case, at least one.

    Example:
        >>> shares(["man", "woman", "man", "man"])
        {'man': 0.75, 'woman': 0.25}
    """
    if not len(groups):
        raise BadArgument("shares of no cases: there is no group to count")
    return {name: groups.count(name) / len(groups) for name in sorted(set(groups))}


def max_skew(ranked: Sequence[str], k: int, wanted: Mapping[str, float]) -> float:
    """Return MaxSkew@K: how much too often the most favoured group is among the first K.

    ``max over groups of ln(share among the first K / wanted share)`` (Geyik et al. 2019, section
    4.1.1); 0 is even.

    Args:
        ranked: Group of each case, the best hit first.
        k: How many count.
        wanted: Share that each group should have, such as ``shares`` of all cases.

    Raises:
        VlmEditError: Fewer than K cases, a group without a wanted share, or shares that do not sum
            to 1.

    Example:
        >>> round(max_skew(["man", "man", "man", "woman"], 4, {"man": 0.5, "woman": 0.5}), 4)
        0.4055
    """
    first = _first(ranked, k, wanted)
    return max(math.log(first.count(g) / k / p) for g, p in wanted.items() if g in first)


def kl_at(ranked: Sequence[str], k: int, wanted: Mapping[str, float]) -> float:
    """Return KL@K: divergence of the shares among the first K from the wanted ones, in nats.

    ``sum over groups of p ln(p / wanted)``, with 0 ln 0 = 0.

    Args:
        ranked: As in ``max_skew``.
        k: How many count.
        wanted: As in ``max_skew``.

    Raises:
        VlmEditError: As ``max_skew``.

    Example:
        >>> round(kl_at(["man", "man", "man", "woman"], 4, {"man": 0.5, "woman": 0.5}), 4)
        0.1308
    """
    first = _first(ranked, k, wanted)
    parts = {g: first.count(g) / k for g in set(first)}
    return max(0.0, sum(p * math.log(p / wanted[g]) for g, p in parts.items()))


def ndkl(ranked: Sequence[str], wanted: Mapping[str, float]) -> float:
    """Return NDKL: KL@i at every depth i, early ones counting more.

    ``sum over i of KL@i / log2(i + 1)``, divided by ``sum over i of 1 / log2(i + 1)`` (Geyik et
    al. 2019, definition 5). Short lists are uneven by necessity: compare lists of one length.

    Args:
        ranked: As in ``max_skew``.
        wanted: As in ``max_skew``.

    Raises:
        VlmEditError: As ``max_skew``.

    Example:
        >>> round(ndkl(["man", "woman"], {"man": 0.5, "woman": 0.5}), 4)
        0.425
    """
    _first(ranked, len(ranked), wanted)
    names = list(wanted)
    hot = torch.tensor([[g == name for name in names] for g in ranked], dtype=torch.float64)
    depth = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    parts = hot.cumsum(0) / depth[:, None]
    target = torch.tensor([wanted[name] for name in names], dtype=torch.float64)
    divergence = torch.where(parts > 0, parts * (parts / target).log(), 0.0).sum(1)
    weight = 1 / (depth + 1).log2()
    return max(0.0, float((weight * divergence).sum() / weight.sum()))


def retrieval_skew(
    similarity: Tensor, groups: Sequence[str], k: int, wanted: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Return MaxSkew@K, KL@K and NDKL of what each query finds; NDKL is of the first K, too.

    Args:
        similarity: [q, n] of queries to images.
        groups: Of the images, n of them.
        k: How many hits count; at most n.
        wanted: Share that each group should have; by default its share of the images.

    Returns:
        ``MaxSkew``, ``KL`` and ``NDKL``, [q] float64 each.

    Raises:
        VlmEditError: As ``max_skew``.

    Example:
        >>> import torch
        >>> skews = retrieval_skew(torch.tensor([[0.9, 0.8, 0.1, 0.2]]), ["a", "a", "b", "b"], k=2)
        >>> skews["MaxSkew"]
        tensor([0.6931], dtype=torch.float64)
    """
    numbers, order, share = _ranked(similarity, groups, k, wanted)
    figures = _skews(F.one_hot(numbers[order], len(share)), share)
    return dict(zip(SKEWS, figures, strict=True))


def chance_skew(
    similarity: Tensor,
    groups: Sequence[str],
    k: int,
    wanted: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return what ``retrieval_skew`` would be if groups were dealt to the images at random.

    No list of K images is even, so no skew is 0 by chance. Queries, images and what each query
    finds stay as they are; within a draw all queries meet the same dealing, since they find much
    the same images.

    Args:
        similarity: As in ``retrieval_skew``.
        groups: As in ``retrieval_skew``.
        k: As in ``retrieval_skew``.
        wanted: As in ``retrieval_skew``.
        draws: How often groups are dealt.
        seed: Of the dealings.

    Returns:
        ``MaxSkew``, ``KL`` and ``NDKL``, [draws, q] float64 each.

    Raises:
        VlmEditError: As ``retrieval_skew``, or no draw.

    Example:
        >>> import torch
        >>> skews = chance_skew(torch.tensor([[0.9, 0.8, 0.1, 0.2]]), ["a", "a", "b", "b"], k=2)
        >>> 0 < float(skews["MaxSkew"].mean()) < 0.6931
        True
    """
    if draws < 1:
        raise BadArgument(f"draws is {draws}; chance takes at least one")
    numbers, order, share = _ranked(similarity, groups, k, wanted)
    generator = torch.Generator().manual_seed(seed)
    skews = []
    for _ in range(draws):
        labels = numbers[torch.randperm(len(numbers), generator=generator)]
        skews.append(_skews(F.one_hot(labels[order], len(share)), share))
    return dict(zip(SKEWS, torch.stack(skews).unbind(1), strict=True))


def resampled_skew(
    similarity: Tensor,
    groups: Sequence[str],
    k: int,
    wanted: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return ``retrieval_skew`` of images and queries that are drawn anew, with replacement.

    A mean over queries varies with the images that all of them search, too. Both are resampled
    (Owen 2007, which errs to the wide side), images within their groups, so that shares stay. Read
    only how far the draws spread: a list in which images come twice is less even, so that all of
    them lie too high. With one seed edits of the same images meet the same draws.

    Args:
        similarity: As in ``retrieval_skew``.
        groups: As in ``retrieval_skew``.
        k: As in ``retrieval_skew``.
        wanted: As in ``retrieval_skew``.
        draws: How often both are drawn.
        seed: Of the draws.

    Returns:
        ``MaxSkew``, ``KL`` and ``NDKL``, [draws, q] float64 each, of the queries drawn.

    Raises:
        VlmEditError: As ``retrieval_skew``, or no draw.

    Example:
        >>> import torch
        >>> similarity = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
        >>> skews = resampled_skew(similarity, ["a", "b", "a", "b"], k=2, draws=50)
        >>> skews["MaxSkew"].shape, bool(skews["MaxSkew"].std() > 0)
        (torch.Size([50, 1]), True)
    """
    if draws < 1:
        raise BadArgument(f"draws is {draws}; an interval takes many")
    numbers, order, share = _ranked(similarity, groups, k, wanted, len(groups))
    asked, drawn = (torch.Generator().manual_seed(seed + i) for i in range(2))
    members = [(numbers == g).nonzero().flatten() for g in numbers.unique().tolist()]
    places = torch.arange(1, k + 1).expand(len(order), k).contiguous()
    skews = []
    for _ in range(draws):
        rows = torch.randint(len(order), (len(order),), generator=asked)
        chosen = [m[torch.randint(len(m), (len(m),), generator=drawn)] for m in members]
        times = torch.cat(chosen).bincount(minlength=len(numbers))
        ranked = order[rows]
        # The j-th hit is the image up to which j have come, each as often as it was drawn.
        hits = torch.searchsorted(times[ranked].cumsum(1), places)
        first = numbers[ranked.gather(1, hits)]
        skews.append(_skews(F.one_hot(first, len(share)), share))
    return dict(zip(SKEWS, torch.stack(skews).unbind(1), strict=True))


def _skews(first: Tensor, share: Tensor) -> Tensor:
    """Return MaxSkew, KL and NDKL, [3, q], of one-hot groups [q, k, g] and wanted shares [g]."""
    depth = torch.arange(1, first.shape[1] + 1, dtype=torch.float64)
    parts = first.double().cumsum(1) / depth[:, None]
    log = (parts / share).log()
    divergence = torch.where(parts > 0, parts * log, 0.0).sum(2).clamp_min(0)
    weight = 1 / (depth + 1).log2()
    ndkl_of = divergence @ weight / weight.sum()
    return torch.stack([log[:, -1].amax(1), divergence[:, -1], ndkl_of])


def _ranked(
    similarity: Tensor,
    groups: Sequence[str],
    k: int,
    wanted: Mapping[str, float] | None,
    depth: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return groups as numbers [n], what queries find first [q, depth], and each group's share."""
    if similarity.ndim != 2 or similarity.shape[1] != len(groups):
        raise BadArgument(
            f"similarity of queries to {len(groups)} images with a group must be [q, "
            f"{len(groups)}], got {tuple(similarity.shape)}"
        )
    target = shares(groups) if wanted is None else dict(wanted)
    if not 1 <= k <= len(groups):
        raise BadArgument(f"k is {k}: {len(groups)} images can be ranked")
    _first(groups, k, target)
    names = list(target)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, : depth or k].cpu()
    share = torch.tensor([target[name] for name in names], dtype=torch.float64)
    return torch.tensor([names.index(group) for group in groups]), order, share


def _first(ranked: Sequence[str], k: int, wanted: Mapping[str, float]) -> list[str]:
    if not 1 <= k <= len(ranked):
        raise BadArgument(f"k is {k}: {len(ranked)} cases are ranked")
    strange = set(ranked) - set(wanted)
    if strange:
        raise BadArgument(f"no share is wanted of group {min(strange)!r}: there is {dict(wanted)}")
    if min(wanted.values()) <= 0 or abs(sum(wanted.values()) - 1) > 1e-6:
        raise BadArgument(f"wanted shares are above 0 and sum to 1, got {dict(wanted)}")
    return list(ranked[:k])
