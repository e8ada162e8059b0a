"""Gated encoders, which SAELens and Prisma write alike, as the JumpReLU that they are in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries.formats.source import expect_vector
from vlm_edit.ground.errors import DamagedFile


def gate_of(where: object, tensors: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, bias and threshold of a magnitude let through where x W + b_gate > 0, [m] each.

    The gate is open where x W exp(r_mag) + b_mag exceeds this threshold.

    Raises:
        VlmEditError: A vector that is missing, not finite, or of another size than the others.
    """
    bias, gate = expect_vector(where, tensors, "b_mag"), expect_vector(where, tensors, "b_gate")
    gain = expect_vector(where, tensors, "r_mag").exp()
    if not bool(gain.isfinite().all()) or not bias.shape == gate.shape == gain.shape:
        raise DamagedFile(f"{where}: b_gate, b_mag and exp(r_mag) are not finite vectors of one "
                           "size: the file is damaged")  # fmt: skip
    return gain, bias, bias - gate * gain
