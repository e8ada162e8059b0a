"""The format of Gemma Scope 2's dictionaries of several layers, with a file for each.

Features of a file, ``params_layer_0.safetensors`` and on, read its layer and write it and later
ones: the residual stream of a weakly causal crosscoder, MLPs of a cross-layer transcoder.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vlm_edit.dictionaries.encoder import expect
from vlm_edit.dictionaries.formats.blocks import LayerFile, joined
from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.places import skip_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
    safetensors_names,
)
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import DamagedFile

FIRST = "params_layer_0.safetensors"

_FILE = re.compile(r"params_layer_\d+\.safetensors")
_NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_SKIP = "affine_skip_connection"
_LAYERS = re.compile(r"layer((?:_\d+)+)")
_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[bm]-(?:pt|it))(?=/|$)")


def recognises(source: Source) -> bool:
    """Say whether a source is a folder with a file of each layer."""
    return source.has(FIRST) and {"w_enc", "w_dec"} <= safetensors_names(source.file(FIRST))


def read(source: Source, hints: Hints) -> Transcoder[StoredDictionary]:
    """Read a folder with a file of each layer.

    Raises:
        VlmEditError: A file is missing or not valid, or files that do not fit each other.
    """
    del hints
    count = len([name for name in source.names() if _FILE.fullmatch(name)])
    layers = [_layer(source, number, count) for number in range(count)]
    stored = joined(source.path, [file for file, _ in layers], _info(source, count))
    ends = ("mlp_in", "mlp_out") if _is_cross_layer(source) else ("", "")
    skips = [skip for _, skip in layers if skip is not None]
    return Transcoder(stored, *ends, parts=count, skip=torch.block_diag(*skips) if skips else None)


FORMAT = Format("gemma_scope_layers", f"{FIRST} and on, with w_enc", recognises, read)


def _layer(source: Source, number: int, count: int) -> tuple[LayerFile, Tensor | None]:
    """Read a file and its skip, and refuse what does not fit as many layers as there are files."""
    name = f"params_layer_{number}.safetensors"
    if not source.has(name):
        raise DamagedFile(
            f"{source.path}: {name} is missing, and there are {count} such files: fetch it too"
        )
    path, tensors = source.file(name), source.tensors(name)
    expect_names(path, tensors, _NAMES, {_SKIP})
    weight = expect_matrix(path, tensors, "w_enc").T
    decoder = expect_matrix(path, tensors, "w_dec", axes=3)
    if decoder.shape[1] != count:
        raise DamagedFile(
            f"{path}: w_dec has shape {tuple(decoder.shape)}, whose features write "
            f"{decoder.shape[1]} layers, and there are {count} such files: fetch all of them"
        )
    bias, decoder_bias, threshold = (
        expect_vector(path, tensors, name) for name in ("b_enc", "b_dec", "threshold")
    )
    skip = None
    if _SKIP in tensors:  # theirs is [d_in, d_out]
        skip = skip_of(path, tensors, _SKIP).T.contiguous()
        expect(f"{path}: {_SKIP}", skip, (weight.shape[1], weight.shape[1]))
    return LayerFile(weight, bias, decoder, decoder_bias, threshold), skip


def _is_cross_layer(source: Source) -> bool:
    return "clt" in source.path.absolute().parts


def _info(source: Source, count: int) -> dict[str, str]:
    """Take host and layers from the names of the folders."""
    path, info = source.path.absolute(), {}
    repository = _REPOSITORY.search(path.as_posix())
    if repository:
        name = repository[1]
        info["model_name"] = (
            f"google/gemma-3-{name.removesuffix('-pt') if '270m' in name else name}"
        )
    named = _LAYERS.match(path.name)
    layers = named[1].strip("_").split("_") if named else []
    if _is_cross_layer(source):
        layers = [str(number) for number in range(count)]
    if layers and len(layers) != count:
        raise DamagedFile(
            f"{path}: its name tells of {len(layers)} layers, and there are {count} files"
        )
    return info | ({"layers": ", ".join(layers)} if layers else {})
