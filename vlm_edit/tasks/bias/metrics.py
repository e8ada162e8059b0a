"""How unequally groups fare: accuracies by group, and how far apart they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate, middle, share_difference

DRAWS = 2000


def accuracy_by_group(
    right: Tensor, groups: Sequence[str], images: Tensor | None = None
) -> dict[str, Estimate]:
    """Return the accuracy of each group, with its Wilson interval and its number of cases.

    Args:
        right: [n] bool.
        groups: n of them.
        images: [n] int, which image each case is of, where one comes several times.

    Raises:
        VlmEditError: Not a group for each case, or no case.

    Example:
        >>> import torch
        >>> right = torch.tensor([True, False, True, True])
        >>> {g: e.value for g, e in accuracy_by_group(right, ["a", "a", "b", "b"]).items()}
        {'a': 0.5, 'b': 1.0}
    """
    return {
        name: mean_estimate(right[members], None if images is None else images[members])
        for name, members in _members(right, groups).items()
    }


def balanced_accuracy(
    right: Tensor, groups: Sequence[str], images: Tensor | None = None
) -> Estimate:
    """Average the groups' accuracies, each counting alike.

    The interval is put together from each group's own, Wilson's (Zou and Donner 2008), so that it
    holds for groups of a few images.

    Args:
        right: [n] bool.
        groups: n of them.
        images: As in ``accuracy_by_group``.

    Raises:
        VlmEditError: As ``accuracy_by_group``.

    Example:
        >>> import torch
        >>> right = torch.tensor([True, False, True, True, True, True])
        >>> balanced_accuracy(right, ["a", "a", "b", "b", "b", "b"]).value
        0.75
    """
    return _averaged(list(accuracy_by_group(right, groups, images).values()))


def balanced_difference(
    first: Tensor, second: Tensor, groups: Sequence[str], images: Tensor | None = None
) -> Estimate:
    """Estimate how far one balanced accuracy lies above another's on the same cases.

    Of each group Tango's interval of the paired difference, put together as that of
    ``balanced_accuracy``.

    Args:
        first: [n] bool.
        second: [n] bool, of the same cases.
        groups: n of them.
        images: As in ``accuracy_by_group``.

    Raises:
        VlmEditError: As ``accuracy_by_group``, or other cases.

    Example:
        >>> import torch
        >>> first, groups = torch.tensor([True, True, True, True, True, True]), ["a", "a", *"bbbb"]
        >>> second = torch.tensor([True, False, True, True, True, True])
        >>> balanced_difference(first, second, groups).value
        0.25
    """
    differences = [
        share_difference(first[m], second[m], None if images is None else images[m])
        for m in _members(first, groups).values()
    ]
    return _averaged(differences)


def _averaged(each: Sequence[Estimate]) -> Estimate:
    """Average figures of other cases, each counting alike (Zou and Donner 2008)."""
    value = sum(e.value for e in each) / len(each)
    down = math.hypot(*(e.value - e.low for e in each)) / len(each)
    up = math.hypot(*(e.high - e.value for e in each)) / len(each)
    return Estimate(value, value - down, value + up, sum(e.n for e in each))


def accuracy_gap(
    right: Tensor, groups: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Return the highest less the lowest accuracy of a group, by a bootstrap within groups.

    A gap is never below 0, so that chance alone opens one: the interval's low end stays above 0
    with groups that do not differ. Compare it with the gap before an edit, not with 0.

    Args:
        right: [n] bool.
        groups: n of them.
        draws: Bootstrap samples.
        seed: Of the draws.

    Raises:
        VlmEditError: As ``accuracy_by_group``.

    Example:
        >>> import torch
        >>> right = torch.tensor([True, False, True, True])
        >>> accuracy_gap(right, ["a", "a", "b", "b"]).value
        0.5
    """
    members = _members(right, groups)
    rates = torch.stack([right[m].double().mean() for m in members.values()]).cpu()
    sizes = torch.tensor([len(m) for m in members.values()]).double()
    generator = torch.Generator().manual_seed(seed)
    chance = rates[:, None].expand(-1, draws).contiguous()
    many = sizes[:, None].expand(-1, draws).contiguous()
    # Resampling cases that are right or wrong draws from a binomial.
    samples = torch.binomial(many, chance, generator=generator) / many
    gaps = samples.amax(0) - samples.amin(0)
    return Estimate(float(rates.max() - rates.min()), *middle(gaps), len(groups))


def worst_group(
    right: Tensor, groups: Sequence[str], images: Tensor | None = None
) -> tuple[str, Estimate]:
    """Return the group of the lowest accuracy, and that accuracy with its Wilson interval.

    Which group is the worst is taken from the same cases, so that the figure is a little low.

    Args:
        right: [n] bool.
        groups: n of them.
        images: As in ``accuracy_by_group``.

    Raises:
        VlmEditError: As ``accuracy_by_group``.

    Example:
        >>> import torch
        >>> right = torch.tensor([True, False, True, True])
        >>> name, accuracy = worst_group(right, ["a", "a", "b", "b"])
        >>> name, accuracy.value
        ('a', 0.5)
    """
    accuracies = accuracy_by_group(right, groups, images)
    name = min(accuracies, key=lambda group: (accuracies[group].value, group))
    return name, accuracies[name]


def _members(right: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
    if right.dtype != torch.bool or right.shape != (len(groups),) or not len(groups):
        raise BadArgument(
            f"it takes a group for each case, and whether it is right: got {len(groups)} groups "
            f"and {tuple(right.shape)} {right.dtype}"
        )
    return {
        name: torch.tensor([i for i, group in enumerate(groups) if group == name])
        for name in sorted(set(groups))
    }
