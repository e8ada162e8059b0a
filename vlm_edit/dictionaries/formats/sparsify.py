"""The format of sparsify (EleutherAI; LMMs-Lab's dictionaries of LLaVA).

A folder per hookpoint, with ``cfg.json`` and ``sae.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.places import skip_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_vector,
    expect_whole,
    safetensors_names,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import DamagedFile, UnknownName

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

_NAMES = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
_MLP = re.compile(r"(^|\.)mlp$")
_ACTIVATIONS: dict[str, str] = {"topk": "topk", "groupmax": "groupmax"}


def recognises(source: Source) -> bool:
    """Say whether a source is a folder of sparsify's."""
    if not source.has(CONFIG, WEIGHTS):
        return False
    return "encoder.weight" in safetensors_names(source.file(WEIGHTS))


def read(source: Source, hints: Hints) -> StoredDictionary | Transcoder[StoredDictionary]:
    """Read a folder of sparsify's.

    Raises:
        VlmEditError: A file is missing or not valid, an activation that is not known, or tensors
            that do not fit the config.
    """
    del hints
    path, config = source.path, source.json(CONFIG)
    skips, told = expect_flag(path, config, "skip_connection"), "transcode" in config
    # Before February 2025 files did not say it, and of a transcoder too b_dec was subtracted; what
    # has a skip is one.
    transcodes = expect_flag(path, config, "transcode", default=skips)
    if skips and not transcodes:
        raise UnknownName(
            f"{path} adds its input's image under W_skip to what it decodes of the same place: no "
            "dictionary here does that; load an SAE without skip_connection, or a transcoder"
        )
    # Signed, of 2024: the strongest of either sign.
    signed = expect_flag(path, config, "signed")
    activation = "topk_abs" if signed else _activation(path, config)
    info = {"hook_name": path.name} if re.search(r"\d", path.name) else {}
    tensors = source.tensors(WEIGHTS)
    expect_names(path, tensors, _NAMES | ({"W_skip"} if skips else set()))
    decoder_bias = expect_vector(path, tensors, "b_dec")
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "encoder.weight"), "encoder.weight"),
        bias=expect_vector(path, tensors, "encoder.bias"),
        decoder=Rows(expect_matrix(path, tensors, "W_dec"), "W_dec"),
        decoder_bias=decoder_bias,
        activation=activation,
        k=expect_whole(path, config, "k"),
        subtract=None if transcodes and told else decoder_bias,
        info=info,
    )
    _expect_size(path, "d_in", expect_whole(path, config, "d_in"), stored.width)
    latents = config.get("num_latents") or 0
    if not latents and "expansion_factor" in config:
        latents = stored.width * expect_whole(path, config, "expansion_factor")
    if latents:
        _expect_size(path, "num_latents", latents, stored.n_features)
    if not transcodes:
        return stored
    skip = skip_of(path, tensors, "W_skip") if skips else None
    # It was trained from what a module is called with to what it gives.
    reads, writes = ("mlp_in", "mlp") if _MLP.search(path.name) else (None, None)
    return Transcoder(stored, reads, writes, skip=skip)


FORMAT = Format("sparsify", f"{CONFIG} and {WEIGHTS}", recognises, read)


def _activation(path: object, config: Mapping[str, Any]) -> str:
    name = config.get("activation", "topk")  # older files do not say
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnknownName(f"{path}: activation {name!r} is not supported; supported: {known}")
    return _ACTIVATIONS[name]


def _expect_size(path: object, name: str, stated: object, there: int) -> None:
    if stated != there:
        raise DamagedFile(
            f"{path}: the config states {name} = {stated}, the tensors have {there}: the two files "
            "are not of one dictionary"
        )
