"""How well names tell the pairs in which features fire from those in which they do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CELLS = 1 << 24  # areas held at once


def average_ranks(scores: Tensor) -> Tensor:
    """Rank each column from 1, equals by their mean, [n, w] float64.

    Example:
        >>> import torch
        >>> average_ranks(torch.tensor([[0.5], [2.0], [0.5]])).flatten()
        tensor([1.5000, 3.0000, 1.5000], dtype=torch.float64)
    """
    columns = scores.mT.contiguous()
    order = columns.sort(dim=1).values
    under = torch.searchsorted(order, columns)
    up_to = torch.searchsorted(order, columns, right=True)
    return ((under + up_to + 1).double() / 2).mT


def areas(fires: Tensor, ranks: Tensor) -> Tensor:
    """Compute the area under the ROC curve of every score for every feature, [t, w] float64.

    Args:
        fires: [n, t] bool.
        ranks: [n, w], from ``average_ranks``.

    Returns:
        NaN for a feature that fires in all examples or in none.

    Example:
        >>> import torch
        >>> fires = torch.tensor([[True], [False], [False]])
        >>> areas(fires, average_ranks(torch.tensor([[3.0], [1.0], [3.0]])))
        tensor([[0.7500]], dtype=torch.float64)
    """
    positive = fires.double()
    yes = positive.sum(0)[:, None]
    no = len(fires) - yes
    wins = positive.mT @ ranks - yes * (yes + 1) / 2
    return torch.where(yes * no > 0, wins / (yes * no), math.nan)


def best_of(fires: Tensor, scores: Tensor, tried: Tensor) -> Tensor:
    """Find for each feature which of the scores tried tells best where it fires, [t].

    Args:
        fires: [n, t] bool.
        scores: [n, w].
        tried: [t, c], columns of the scores, of which the first wins among equals.

    Returns:
        Columns of the scores; the first tried where no area is known.
    """
    ranks, chosen = average_ranks(scores), []
    for some, columns in zip(*_blocks(fires.mT, tried, scores.shape[1]), strict=True):
        found = areas(some.mT, ranks).gather(1, columns).nan_to_num(-1.0)
        first = (found >= found.amax(1, keepdim=True)).double().argmax(1, keepdim=True)
        chosen.append(columns.gather(1, first)[:, 0])
    return torch.cat(chosen)


def of_others(fires: Tensor, scores: Tensor, own: Tensor, often: Tensor) -> Tensor:
    """Average over other features' names how well they tell where a feature fires, [t].

    Args:
        fires: [n, t] bool.
        scores: [n, w], a column a name.
        own: [t], the column of each feature's own name; -1 where it is not among them.
        often: [w], how many features have each name, those of ``own`` among them.

    Returns:
        NaN where there is no other feature, or the feature fires in all examples or none.

    Example:
        >>> import torch
        >>> fires, scores = torch.eye(2).bool(), torch.eye(2)
        >>> of_others(fires, scores, torch.tensor([0, 1]), torch.ones(2))
        tensor([0., 0.], dtype=torch.float64)
    """
    ranks, parts = average_ranks(scores), []
    for some, columns in zip(*_blocks(fires.mT, own, scores.shape[1]), strict=True):
        found = areas(some.mT, ranks)
        mine = found.gather(1, columns.clamp_min(0)[:, None])[:, 0]
        total = found @ often.double() - torch.where(columns < 0, 0.0, mine)
        others = often.sum() - (columns >= 0).double()
        parts.append(torch.where(others > 0, total / others, math.nan))
    return torch.cat(parts)


def _blocks(
    rows: Tensor, beside: Tensor, width: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    step = max(1, _CELLS // max(1, width))
    return rows.split(step), beside.split(step)
