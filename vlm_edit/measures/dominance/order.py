"""Which features of a class come first, whether or not they are proven to be of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_edit.measures.dominance.classes import Cut, members

if TYPE_CHECKING:
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


def candidates(
    dominance: Dominance,
    kind: str,
    rule: Cut = "interval",
    low: float = 0.4,
    high: float = 0.6,
    alpha: float = 0.05,
    least: int = 0,
) -> Tensor:
    """Mark the features to choose from for an edit, [m] bool.

    By the rule ``interval`` those whose score lies on the class's side of the cuts, proven or not;
    by another rule its members.

    Args:
        dominance: Of any kind of dictionary.
        kind: ``vision``, ``language``, ``cross``, ``undecided`` or ``dead``.
        rule: As in ``Dominance.classes``, like the next three.
        low: Lower cut.
        high: Upper cut.
        alpha: Error of a label, or false discovery rate.
        least: Images in which a feature must be active.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> candidates(modality_dominance(torch.ones(2, 1), torch.ones(2, 1)), "cross")
        tensor([True])
    """
    if rule == "interval" and kind in ("vision", "language", "cross"):
        rule = "fixed"
    marked = members(dominance, rule, low, high, alpha)[kind]
    return marked & (dominance.active_images >= least)
