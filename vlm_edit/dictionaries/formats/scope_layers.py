"""The format of Gemma Scope 2's dictionaries of several layers, with a file for each.

Features of a file, ``params_layer_0.safetensors`` and on, read its layer and write it and later
ones: the residual stream of a weakly causal crosscoder, MLPs of a cross-layer transcoder. Which of
the two it is, ``clt/width_262k_l0_medium`` and ``crosscoder/layer_7_13_17_22_width_65k_l0_medium``
tell, a ``config.json`` beside the files, or a skip, which crosscoders have none of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

CONFIG, FIRST = "config.json", "params_layer_0.safetensors"

_FILE = re.compile(r"params_layer_\d+\.safetensors")
_NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_HOOK, _SKIP = "hf_hook_point_in", "affine_skip_connection"
_LAYERS = re.compile(r"layer_(\d+(?:_\d+)*)(?=_|$)")
_TOLD = re.compile(r"layers\.\{(\d+(?:, ?\d+)*)\}")
# What folders and configs call the two kinds, with what each reads and writes.
_ENDS = {"clt": ("mlp_in", "mlp_out"), "crosscoder": ("", "")}
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
    skips = [skip for _, skip in layers if skip is not None]
    kind = _kind(source, bool(skips))
    stored = joined(source.path, [file for file, _ in layers], _info(source, count, kind))
    skip = torch.block_diag(*skips) if skips else None
    reads, writes = (None, None) if kind is None else _ENDS[kind]
    return Transcoder(stored, reads, writes, parts=count, skip=skip)


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


def _config(source: Source) -> dict[str, Any]:
    return source.json(CONFIG) if source.has(CONFIG) else {}


def _kind(source: Source, skips: bool) -> str | None:
    """Return which of ``_ENDS`` it is, by the nearest that tells; None where nothing does.

    Raises:
        DamagedFile: What tells does not agree.
    """
    path, kind = source.path.absolute(), _config(source).get("type")
    nearest = next((name for name in (path.name, path.parent.name) if name in _ENDS), None)
    told = {
        f"{CONFIG}'s type": kind if kind in list(_ENDS) else None,
        f"the folder {nearest!r}": nearest,
        f"the name {path.name!r}": "crosscoder" if _LAYERS.match(path.name) else None,
        f"{_SKIP} in its files": "clt" if skips else None,
    }
    return _agreed(path, {what: name for what, name in told.items() if name is not None})


def _agreed(path: Path, told: Mapping[str, str]) -> str | None:
    """Return what all say, or None where none says anything."""
    if len(set(told.values())) > 1:
        words = ", ".join(f"{what} says {value!r}" for what, value in told.items())
        raise DamagedFile(
            f"{path}: {words}: lay the files in a folder named as in the repository that they are "
            "of, clt/width_... or crosscoder/layer_7_13_..."
        )
    return next(iter(told.values()), None)


def _info(source: Source, count: int, kind: str | None) -> dict[str, str]:
    """Take host and layers from the names of the folders, and from the config."""
    path, info = source.path.absolute(), {}
    repository = _REPOSITORY.search(path.as_posix())
    if repository:
        name = repository[1]
        info["model_name"] = (
            f"google/gemma-3-{name.removesuffix('-pt') if '270m' in name else name}"
        )
    named, told = _LAYERS.match(path.name), _TOLD.search(str(_config(source).get(_HOOK)))
    every = ", ".join(str(number) for number in range(count)) if kind == "clt" else None
    said = {
        f"the name {path.name!r}": named and ", ".join(named[1].split("_")),
        f"{CONFIG}'s {_HOOK}": told and ", ".join(re.findall(r"\d+", told[1])),
        f"{count} files of a clt": every,
    }
    layers = _agreed(path, {what: value for what, value in said.items() if value})
    if layers and len(layers.split(",")) != count:
        raise DamagedFile(
            f"{path}: it tells of the {len(layers.split(','))} layers {layers}, and there are "
            f"{count} files"
        )
    return info | ({"layers": layers} if layers else {})
