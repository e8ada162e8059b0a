"""Random features that are like given ones in one respect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument

_SCRATCH = 1 << 20  # numbers held at once: 8 MiB in float64


def random_features(
    features: Sequence[int], live: Sequence[int], draws: int = 5, seed: int = 0
) -> list[list[int]]:
    """Draw as many random features as the given ones.

    Args:
        features: Whose number is to be matched.
        live: Those to choose from; leave the given ones out of it for features of no class.
        draws: How often.
        seed: Of all draws.

    Returns:
        Feature numbers per draw, rising.

    Raises:
        VlmEditError: More features than there are to choose from, or no draw.

    Example:
        >>> random_features([7, 8], live=[1, 2, 3, 4, 7, 8], draws=3)
        [[3, 8], [1, 4], [3, 8]]
    """
    expect_choice(features, live, draws)
    generator = torch.Generator().manual_seed(seed)
    shuffles = (torch.randperm(len(live), generator=generator) for _ in range(draws))
    return [sorted(live[i] for i in order[: len(features)].tolist()) for order in shuffles]


def activity_matched(
    features: Sequence[int],
    live: Sequence[int],
    activity: Tensor,
    draws: int = 5,
    seed: int = 0,
) -> list[list[int]]:
    """Draw random features that are together about as active as the given ones.

    Taken in random order until their activity reaches the goal; all, if they never do.

    Args:
        features: To be matched.
        live: Those to choose from.
        activity: [m], of every feature, such as ``activity(codes)``.
        draws: How often; draw i takes them in the order of ``seed + i``.
        seed: Of the first draw.

    Returns:
        Feature numbers per draw, rising.

    Raises:
        VlmEditError: A feature without an activity, nothing to choose from, or no draw.

    Example:
        >>> import torch
        >>> activity_matched([0], [1, 2, 3, 4], torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]), draws=2)
        [[1, 2], [2, 4]]
    """
    expect_choice([], live, draws)
    expect_known([*features, *live], len(activity))
    goal = float(activity[list(features)].sum())
    lists = []
    for order in orders(live, draws, seed):
        count = int((activity[order].cumsum(0) < goal).sum()) + 1
        lists.append(sorted(order[:count].tolist()))
    return lists


def activity_paired(
    features: Sequence[int],
    live: Sequence[int],
    activity: Tensor,
    seed: int = 0,
    nearest: int = 10,
) -> list[int]:
    """Draw as many random features, for each given one another that is about as active.

    Args:
        features: To be matched, one after the other.
        live: Those to choose from; the given ones among them are left out.
        activity: [m], of every feature, such as ``activity(codes)``.
        seed: Of the draw.
        nearest: From how many of those nearest in activity, and not yet drawn, each is drawn.

    Returns:
        Feature numbers, in the order of those they match.

    Raises:
        VlmEditError: A feature without an activity, too few to choose from, or none.

    Example:
        >>> import torch
        >>> activity = torch.tensor([9.0, 1.0, 8.0, 2.0, 7.0])
        >>> activity_paired([0, 1], range(5), activity, nearest=1)
        [2, 3]
    """
    others = sorted(set(live).difference(features))
    expect_known([*features, *others], len(activity))
    expect_choice(features, others, draws=1)
    if nearest < 1:
        raise BadArgument(f"nearest is {nearest}: each is drawn from at least 1")
    generator = torch.Generator().manual_seed(seed)
    left = torch.tensor(others)
    drawn = []
    for feature in features:
        apart = (activity[left] - activity[feature]).abs()
        near = apart.argsort(stable=True)[:nearest]
        place = int(near[torch.randint(len(near), (1,), generator=generator)])
        drawn.append(int(left[place]))
        left = torch.cat([left[:place], left[place + 1 :]])
    return drawn


def norm_matched(
    features: Sequence[int],
    live: Sequence[int],
    codes: Tensor | SparseCodes,
    decoder: Tensor,
    draws: int = 5,
    seed: int = 0,
) -> list[list[int]]:
    """Draw random features whose deletion moves hidden states about as far as the given ones'.

    Taken in random order until the mean over examples of ``deletion_norms`` crosses that of the
    given features; of the sets before and after the crossing the nearer one. If all together
    move less, all are taken: ``deletion_norms`` tells.

    Args:
        features: To be matched.
        live: Those to choose from. With the given ones among them the control is of random
            features; without, of the others.
        codes: [n, m], of a few hundred examples.
        decoder: [m, d].
        draws: How often; draw i takes them in the order of ``seed + i``, so that sets that match
            parts of a class are nested.
        seed: Of the first draw.

    Returns:
        Feature numbers per draw, rising.

    Raises:
        VlmEditError: Shapes that differ, features that are not there, or no draw.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[2.0, 1.0, 1.0, 1.0, 1.0]])
        >>> norm_matched([0], [1, 2, 3, 4], codes, torch.eye(5), draws=1)
        [[1, 2, 3, 4]]
    """
    expect_choice([], live, draws)
    expect_known([*features, *live], len(decoder))
    sparse = SparseCodes.of(codes)
    goal = float(deletion_norms(sparse, decoder, features).mean())
    return [
        sorted(order[: _crossing(sparse, decoder, order, goal)].tolist())
        for order in orders(live, draws, seed)
    ]


def deletion_norms(
    codes: Tensor | SparseCodes, decoder: Tensor, features: Sequence[int] | Tensor
) -> Tensor:
    """Measure how far each example moves without features: the norm of what they decode to.

    In the dictionary's space; a norm that was divided out of the example is not multiplied back.

    Args:
        codes: [n, m].
        decoder: [m, d].
        features: Deleted.

    Returns:
        [n] float64.

    Raises:
        VlmEditError: Codes and decoder of other sizes, or a feature that is not there.

    Example:
        >>> import torch
        >>> deletion_norms(torch.tensor([[3.0, 4.0, 1.0]]), torch.eye(3), [0, 1])
        tensor([5.], dtype=torch.float64)
    """
    sparse = SparseCodes.of(codes)
    if decoder.ndim != 2 or sparse.n_features != len(decoder):
        raise BadArgument(
            f"codes of {sparse.n_features} features need a decoder of as many rows, got "
            f"{tuple(decoder.shape)}"
        )
    numbers = torch.as_tensor(features, dtype=torch.int64)
    expect_known(numbers.tolist(), len(decoder))
    mask = torch.zeros(len(decoder), dtype=torch.bool)
    mask[numbers] = True
    entries = mask[sparse.features.cpu()].nonzero().flatten()
    changes = torch.zeros(len(sparse), decoder.shape[1], dtype=torch.float64)
    for part in entries.split(max(1, _SCRATCH // decoder.shape[1])):
        rows, columns = sparse.rows[part].cpu(), sparse.features[part].cpu()
        values = sparse.values[part].cpu().double()
        changes.index_add_(0, rows, values[:, None] * decoder[columns].cpu().double())
    norms: Tensor = changes.norm(dim=1)
    return norms


def activity(codes: Tensor | SparseCodes) -> Tensor:
    """Average |code| over examples, for every feature.

    Args:
        codes: [n, m].

    Returns:
        [m] float64; NaN for no examples.

    Example:
        >>> import torch
        >>> activity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor([1.5000, 0.0000], dtype=torch.float64)
    """
    sparse = SparseCodes.of(codes)
    total = torch.zeros(sparse.n_features, dtype=torch.float64)
    total.index_add_(0, sparse.features.cpu(), sparse.values.cpu().double().abs())
    return total / len(sparse) if len(sparse) else total * math.nan


def turned(dictionary: Dictionary, seed: int) -> Dictionary:
    """Write the same features in other directions: turn every row by one random rotation.

    An edit then changes each token by exactly as much as before, along directions that mean
    nothing.

    Args:
        dictionary: Any.
        seed: Of the rotation.

    Example:
        >>> import torch
        >>> neurons = Dictionary.identity(3)
        >>> other = turned(neurons, seed=0)
        >>> bool((other.decoder @ other.decoder.T - torch.eye(3)).abs().max() < 1e-5)
        True
    """
    generator = torch.Generator().manual_seed(seed)
    width = dictionary.decoder.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return replace(dictionary, decoder=dictionary.decoder @ rotation)


def orders(live: Sequence[int], draws: int, seed: int) -> list[Tensor]:
    """Put the features in random order, per draw, from ``seed + i``."""
    numbers = torch.as_tensor(list(live), dtype=torch.int64)
    generators = (torch.Generator().manual_seed(seed + i) for i in range(draws))
    return [numbers[torch.randperm(len(numbers), generator=g)] for g in generators]


def _crossing(codes: SparseCodes, decoder: Tensor, order: Tensor, goal: float) -> int:
    """Count the features of an order that come nearest to a mean norm, at a crossing of it."""

    def mean(count: int) -> float:
        return float(deletion_norms(codes, decoder, order[:count]).mean())

    if goal == 0:
        return 0
    below, above = 0, len(order)
    if mean(above) <= goal:
        return above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if mean(middle) < goal else (below, middle)
    return below if goal - mean(below) < mean(above) - goal else above


def expect_choice(features: Sequence[int], live: Sequence[int], draws: int) -> None:
    """Refuse no draw, and fewer features to choose from than are asked for."""
    if draws < 1:
        raise BadArgument(f"draws is {draws}; a control needs at least one")
    if not len(live) or len(features) > len(live):
        raise BadArgument(
            f"{len(features)} features are to be matched, and there are {len(live)} to choose from"
        )


def expect_known(features: Sequence[int], size: int) -> None:
    """Refuse features that a dictionary of this size does not have."""
    wrong = [k for k in features if not 0 <= k < size]
    if wrong:
        raise BadArgument(f"feature {wrong[0]} is not there: there are features 0 to {size - 1}")
