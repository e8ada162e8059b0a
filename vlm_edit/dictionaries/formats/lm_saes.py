"""The format of OpenMOSS's later files (Llama Scope R1): config.json and sae_weights.safetensors.

Activations are scaled to a mean length of sqrt(d) before the encoder and back after the decoder, by
means that lie beside the weights. A feature is active where its pre-activation, times the length of
its decoder's row, exceeds its threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.llama_scope import NEEDED, decoder_bias_of, expect_plain, hook_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
    safetensors_names,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary, row_lengths
from vlm_edit.ground.errors import DamagedFile, UnknownName

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"

_THRESHOLD, _NORM = "log_jumprelu_threshold", "dataset_average_activation_norm."
_R1, _HOST = "Llama-Scope-R1-Distill", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def recognises(source: Source) -> bool:
    """Say whether a source is a folder of such a config and of such weights."""
    if not source.has(CONFIG, WEIGHTS) or "hook_point_in" not in source.peek_json(CONFIG):
        return False
    return safetensors_names(source.file(WEIGHTS)) >= NEEDED


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a folder in this format; transcoders are refused.

    Raises:
        VlmEditError: A file is missing or not valid, an option that is not known, or tensors that
            do not fit.
    """
    del hints
    path, config, tensors = source.path, source.json(CONFIG), source.tensors(WEIGHTS)
    expect_plain(path, config)
    act, kind = str(config.get("act_fn")).lower(), config.get("sae_type", "sae")
    if act not in ("jumprelu", "relu") or kind != "sae":
        raise UnknownName(
            f"{path}: act_fn {act[:60]!r} of a {str(kind)[:60]!r} is not supported; supported: "
            "jumprelu and relu of an 'sae'"
        )
    norms = {name for name in tensors if name.startswith(_NORM)}
    extra = {_THRESHOLD} if act == "jumprelu" else set()
    expect_names(path, tensors, NEEDED | extra, {"decoder.bias", *norms})
    weight = expect_matrix(path, tensors, "encoder.weight")
    decoder = expect_matrix(path, tensors, "decoder.weight").T
    m, d = weight.shape
    scale = _scale(path, config, tensors, d)
    bias = decoder_bias_of(path, config, tensors, d)
    _expect_sizes(path, config, m, d)
    before = expect_flag(path, config, "apply_decoder_bias_to_pre_encoder")
    return StoredDictionary(
        weight=Rows(weight, "encoder.weight", scale=torch.full((d,), scale)),
        bias=expect_vector(path, tensors, "encoder.bias"),
        decoder=Rows(decoder, "decoder.weight", scale=torch.full((d,), 1 / scale)),
        decoder_bias=bias / scale,
        activation=act,
        threshold=_threshold(path, config, tensors, decoder) if act == "jumprelu" else None,
        subtract=bias / scale if before else None,
        norm="constant_norm_rescale" if config.get("norm_activation") == "token-wise" else "none",
        info=_info(path, config),
    )


FORMAT = Format(
    "lm_saes", f"{CONFIG} with hook_point_in and act_fn, and {WEIGHTS}", recognises, read
)


def _scale(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], d: int) -> float:
    """Return what activations are multiplied with before the encoder, and divided by after."""
    kind = config.get("norm_activation", "dataset-wise")
    if kind in ("inference", "token-wise"):  # folded by the library, or by each token's own length
        return 1.0
    if kind != "dataset-wise":
        raise UnknownName(
            f"{path}: norm_activation {str(kind)[:60]!r} is not supported; supported: "
            "dataset-wise, token-wise, inference"
        )
    length = expect_scalar(path, tensors, f"{_NORM}{config.get('hook_point_in')}")
    if length <= 0:
        raise DamagedFile(f"{path}: {_NORM}{config.get('hook_point_in')} is {length}, not above 0")
    return float(d**0.5 / length)


def _threshold(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], decoder: Tensor
) -> Tensor:
    """Return thresholds of pre-activations, [m]."""
    threshold = expect_vector(path, tensors, _THRESHOLD).exp()
    if not expect_flag(path, config, "sparsity_include_decoder_norm", True):
        return threshold
    lengths = row_lengths(decoder)
    if len(lengths) != len(threshold) or not bool((lengths > 0).all()):
        raise DamagedFile(
            f"{path}: {_THRESHOLD} is of {len(threshold)} features, and the decoder has "
            f"{int((lengths > 0).sum())} rows that are not zero"
        )
    return threshold / lengths


def _expect_sizes(path: Path, config: Mapping[str, Any], m: int, d: int) -> None:
    width, factor = expect_whole(path, config, "d_model"), config.get("expansion_factor")
    told = config.get("d_sae", width * factor if isinstance(factor, int | float) else m)
    if (width, told) != (d, m):
        raise DamagedFile(
            f"{path}: the config says {told} features of {width}, the file has {m} of {d}"
        )


def _info(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    return hook_of(config) | ({"model_name": _HOST} if _R1 in path.absolute().as_posix() else {})
