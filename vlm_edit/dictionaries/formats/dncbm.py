"""The format of ai-safety-foundation's sparse_autoencoder, which DN-CBM saves: relu, tied bias.

``sparse_autoencoder_final.pt`` is a state dict; where it was trained on a list of places, each
tensor has an axis of them before its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile, UnknownName

_BIAS = "tied_bias"
_NAMES = {_BIAS, "encoder.weight", "encoder.bias", "decoder.weight"}
_UNDERSCORE = re.compile(r"\._(weight|bias)$")
_COPIES = {f"{place}_bias._bias_reference" for place in ("pre_encoder", "post_decoder")}


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has this state dict's names."""
    return set(_spelled(peek_mapping(source))) >= _NAMES


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, several places in one file, or tensors that do
            not fit.
    """
    del hints
    path, state = source.path, _spelled(open_mapping(source))
    expect_names(path, state, _NAMES, _COPIES)
    tensors = {name: _one(path, state, name) for name in state}
    bias = expect_vector(path, tensors, _BIAS)
    for name in sorted(_COPIES & set(tensors)):
        if not torch.equal(expect_vector(path, tensors, name), bias):
            raise DamagedFile(f"{path}: {name} differs from {_BIAS}, whose copy it is")
    return StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "encoder.weight"), "encoder.weight"),
        bias=expect_vector(path, tensors, "encoder.bias"),
        decoder=Rows(expect_matrix(path, tensors, "decoder.weight").T, "decoder.weight"),
        decoder_bias=bias,
        subtract=bias,
    )


FORMAT = Format("dncbm", "a .pt with tied_bias and encoder.weight", recognises, read)


def _spelled(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return tensors by the names of later versions, which leave out an underscore."""
    return {_UNDERSCORE.sub(r".\1", str(name)): value for name, value in state.items()}


def _one(path: object, state: Mapping[str, Any], name: str) -> Any:
    """Return a tensor without the axis of places, which must be one."""
    value = state[name]
    axes = 2 if name.endswith(".weight") else 1
    if not isinstance(value, Tensor) or value.ndim != axes + 1:
        return value
    if len(value) != 1:
        raise UnknownName(
            f"{path} holds dictionaries of {len(value)} places, one behind the other: take one of "
            "each tensor's first axis and save it with torch.save"
        )
    return value[0]
