"""The scores to expect where modality has no effect."""

from __future__ import annotations

import torch

from vlm_edit.measures.dominance.flips import LEVELS, flipped_sums
from vlm_edit.measures.dominance.result import Dominance

_DRAWS = 100


def null_histogram(dominance: Dominance, bins: int) -> list[float]:
    """Count the features per bin to expect if image and text are swapped at random inside pairs.

    Args:
        dominance: What was measured.
        bins: Between 0 and 1.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> dominance = modality_dominance(torch.ones(400, 3), torch.zeros(400, 3))
        >>> middle = null_histogram(dominance, 5)[2]
        >>> round(middle, 3)
        3.0
    """
    active = dominance.drawn_active
    pairs = active if dominance.zeros == "skip" else torch.full_like(active, dominance.images)
    centre = 0.5 * (active / pairs if dominance.zeros == "epsilon" else torch.ones(len(pairs)))
    sums = flipped_sums(dominance.levels, _DRAWS, 0).double() / (2 * LEVELS)
    scores = (centre + sums / pairs)[:, active > 0].clamp(0, 1)
    return [float(c) / _DRAWS for c in torch.histc(scores.float(), bins, 0.0, 1.0)]
