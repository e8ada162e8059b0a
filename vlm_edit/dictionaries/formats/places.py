"""What files of transcoders call the places that they read and write, and what they skip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.source import expect_matrix
from vlm_edit.dictionaries.inside import place_of as place_of
from vlm_edit.ground.errors import DamagedFile


def places_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what is read and what is written, as a config in SAELens' words says it."""
    ends = []
    for end in ("", "_out"):
        place = place_of(config.get(f"hf_hook_name{end}"))
        ends.append(place_of(config.get(f"hook_name{end}")) if place is None else place)
    return ends[0], ends[1]


def skip_of(where: object, tensors: Mapping[str, Any], name: str) -> Tensor:
    """Return what a skip transcoder adds of its input, [d, d] float32, of a file's [d_out, d_in].

    Raises:
        VlmEditError: Missing, or numbers that are not finite.
    """
    matrix = expect_matrix(where, tensors, name).to(torch.float32)
    if not bool(torch.stack(matrix.aminmax()).isfinite().all()):
        raise DamagedFile(f"{where}: {name} holds NaN or infinity: the file is damaged")
    return matrix.T.contiguous()
