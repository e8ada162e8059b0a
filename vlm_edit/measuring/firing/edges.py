"""Find the edges of boxes by thresholds: black before, white behind, and what changes between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlm_edit.measuring.firing.shades import LEVELS, Axis, Threshold

FIRST = 32  # thresholds along an axis, before intervals with edges in them are halved
FINEST = 256  # a ramp has no more greys
_OF_ONE_SIZE = 0.75  # logarithm of how far sizes differ at most: a box may end at a picture's edge

# Which tokens are as in a white picture, and which as in a black one, [n, t] bool each.
Look = Callable[[Sequence[Threshold]], tuple[Tensor, Tensor]]


def find_edges(look: Look, axis: Axis, count: int) -> tuple[Tensor, Tensor]:
    """Return between which coordinates each token sees the picture.

    Args:
        look: Tells of pictures which tokens see white alone, and which black alone.
        axis: Along which.
        count: How many tokens there are.

    Returns:
        Of each token the first and the last coordinate, [t] float64, to a grey of the ramp.
    """
    # An edge lies between the two: from 0 on all is white, and before 1 all is black.
    left, right = (torch.tensor([[0.0, 1.0]] * count, dtype=torch.float64) for _ in range(2))
    wanted = [i / FIRST for i in range(1, FIRST)]
    while wanted:
        whites, blacks = look([Threshold(axis, at) for at in wanted])
        for at, white, black in zip(wanted, whites, blacks, strict=True):
            _narrow(left, at, white)
            _narrow(right, at, ~black)
        open_ones = {(low, high) for low, high in torch.cat([left, right]).tolist()
                     if high - low > 1 / FINEST}  # fmt: skip
        wanted = sorted((low + high) / 2 for low, high in open_ones)
    # The one grey between two 256ths is a 255th.
    return left[:, 0] * FINEST / LEVELS, right[:, 0] * FINEST / LEVELS


def _narrow(edges: Tensor, at: float, behind: Tensor) -> None:
    """Narrow where edges lie, by which of them are not before a coordinate."""
    edges[behind, 0] = edges[behind, 0].clamp(min=at)
    edges[~behind, 1] = edges[~behind, 1].clamp(max=at)


def settle(
    first: Tensor, last: Tensor, limits: tuple[float, float, float], pixels: int
) -> tuple[Tensor, Tensor]:
    """Return edges of boxes from the coordinates of the pixels beside them.

    Args:
        first: Of each token the least coordinate of a pixel that it sees, [t].
        last: The largest, [t].
        limits: The least and the largest coordinate of all that the host sees, and the step from
            one to the next.
        pixels: Of the picture itself along this axis.

    Returns:
        Left and right edges, [t] each. Where two nearly meet they do.
    """
    low, high, step = limits
    slack = 1 / FINEST
    begin = 0.0 if low - step / 2 <= 0.5 / pixels + slack else low - step / 2
    end = 1.0 if high + step / 2 >= 1 - 0.5 / pixels - slack else high + step / 2
    left = torch.where(first <= low + slack, begin, first - step / 2).clamp(begin, end)
    right = torch.where(last >= high - slack, end, last + step / 2).clamp(begin, end)
    near = min(1.5 * slack, float((right - left).min()) / 4)
    edges, place = torch.cat([left, right, torch.tensor([begin, end])]).unique(return_inverse=True)
    group = torch.cat([torch.zeros(1), (edges.diff() > near).cumsum(0)]).long()
    means = edges.new_zeros(len(edges)).index_add_(0, group, edges)
    means = means / group.bincount(minlength=len(edges)).clamp(min=1)
    means[group[0]], means[group[-1]] = begin, end
    settled = means[group][place]
    return settled[: len(left)], settled[len(left) : 2 * len(left)]


def meet(boxes: Tensor) -> Tensor:
    """Return boxes [t, 4] that meet in the middle where they overlap the next of their row.

    Patches may overlap, and a token then sees some of what its neighbours stand for.
    """
    met = boxes.clone()
    for near, far in ((0, 2), (1, 3)):
        across = [1 - near, 3 - near]
        size = boxes[:, far] - boxes[:, near]
        for i, box in enumerate(boxes):
            rest = boxes[i + 1 :]
            level = (rest[:, across] - box[across]).abs().amax(1) < 2 / FINEST
            alike = (size[i + 1 :] / size[i]).log().abs() < _OF_ONE_SIZE
            over = (rest[:, near] > box[near]) & (rest[:, near] < box[far])
            over &= rest[:, far] > box[far]
            follower = (level & alike & over).nonzero()
            if len(follower):
                j = i + 1 + int(follower[0])
                met[i, far] = met[j, near] = (box[far] + boxes[j, near]) / 2
    return met
