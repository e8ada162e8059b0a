"""What files call the places that transcoders read and write, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.source import expect_matrix
from vlm_edit.ground.errors import DamagedFile

# The ends of hooks of TransformerLens, whose names SAELens and circuit-tracer use. ``hook_mlp_in``
# is the stream before the norm there, and what SAELens calls Gemma Scope 2's input, behind it.
_HOOKS = {
    "mlp.hook_in": "mlp_in",
    "hook_resid_mid": "mid",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp",
    "hook_resid_post": "",
}
# The ends of paths of modules, with which of their two ends is meant.
_MODULES = {
    "pre_feedforward_layernorm.output": "mlp_in",
    "pre_feedforward_layernorm.input": "mid",
    "post_feedforward_layernorm.output": "mlp_out",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp",
}
_LAYER = re.compile(r"(?:^|\.)\d+\.")


def place_of(hook: object) -> str | None:
    """Return the place inside of a layer that a hook's name means; None where that is not sure.

    Example:
        >>> place_of("blocks.3.hook_mlp_out"), place_of("model.layers.3.mlp.input")
        ('mlp_out', 'mlp_in')
        >>> place_of("blocks.3.ln2.hook_normalized") is None
        True
    """
    if not isinstance(hook, str):
        return None
    ending = _LAYER.split(hook)[-1]
    return {**_HOOKS, **_MODULES}.get(ending)


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
