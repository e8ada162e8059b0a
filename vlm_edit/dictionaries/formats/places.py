"""What files of transcoders call the places that they read and write, and what they skip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.source import expect_matrix
from vlm_edit.dictionaries.inside import place_of as place_of
from vlm_edit.dictionaries.origin import layer_said
from vlm_edit.ground.errors import DamagedFile


def places_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what is read and what is written, as a config in SAELens' words says it."""
    ends = []
    for end in ("", "_out"):
        place = place_of(config.get(f"hf_hook_name{end}"))
        ends.append(place_of(config.get(f"hook_name{end}")) if place is None else place)
    return ends[0], ends[1]


def one_layer(where: object, said: Mapping[str, object]) -> str | None:
    """Return the one layer of which all hooks and names are; None where none of them says any.

    Args:
        where: The file, for messages.
        said: By what says it: a hook's name, or the number of a layer.

    Raises:
        DamagedFile: They say several.

    Example:
        >>> one_layer("a file", {"hook_in": "blocks.3.hook_resid_mid", "hook_out": "hook_mlp_out"})
        '3'
    """
    layers = {}
    for what, value in said.items():
        if isinstance(value, int) and not isinstance(value, bool):
            layers[what] = value
        elif (number := layer_said(value)) is not None:
            layers[f"{what} {value!r}"] = number
    if len(set(layers.values())) > 1:
        words = ", ".join(f"{what} says layer {number}" for what, number in layers.items())
        raise DamagedFile(
            f"{where}: {words}: what leads from a layer to another is not supported; if it does "
            "not, one of them is another dictionary's: name the file or its folder as it was named"
        )
    return str(next(iter(layers.values()))) if layers else None


def skip_of(where: object, tensors: Mapping[str, Any], name: str) -> Tensor:
    """Return what a skip transcoder adds of its input, [d, d] float32, of a file's [d_out, d_in].

    Raises:
        VlmEditError: Missing, or numbers that are not finite.
    """
    matrix = expect_matrix(where, tensors, name).to(torch.float32)
    if not bool(torch.stack(matrix.aminmax()).isfinite().all()):
        raise DamagedFile(f"{where}: {name} holds NaN or infinity: the file is damaged")
    return matrix.T.contiguous()
