"""Which features of a class come first."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_edit.measures.dominance.result import Dominance

_MIDDLE = 0.5


def sureness(dominance: Dominance, kind: str) -> Tensor:
    """Return how sure each feature's class is, [m] float64, by the ends of its score's interval.

    Of vision-dominant features the low end, of language-dominant ones minus the high end, of
    cross-modal ones minus how far the farther end lies from .5; of others 0. NaN for dead ones.

    Args:
        dominance: Of any kind of dictionary.
        kind: ``vision``, ``language``, ``cross``, ``undecided`` or ``dead``.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> few, many = (
        ...     modality_dominance(torch.ones(4, 1), torch.zeros(4, 1)),
        ...     modality_dominance(torch.ones(40, 1), torch.zeros(40, 1)),
        ... )
        >>> bool(sureness(few, "vision") < sureness(many, "vision"))
        True
    """
    low, high = dominance.intervals()
    if kind == "vision":
        return low
    if kind == "language":
        return -high
    if kind == "cross":
        return -torch.maximum(high - _MIDDLE, _MIDDLE - low)
    return torch.zeros_like(low)
