"""The format of Llama Scope (OpenMOSS): ``hyperparams.json`` and ``checkpoints/final.safetensors``.

Activations are scaled to a mean length of sqrt(d) before the encoder, by a mean over the training's
data that the config keeps, and back after the decoder. The threshold is in the scaled space, where
the library compares. (The reader of sae-lens 6 multiplies it with the scale, too.)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
    read_json,
    read_safetensors,
    safetensors_names,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName

CONFIG, FOLDER, WEIGHTS = "hyperparams.json", "checkpoints", "final.safetensors"

NEEDED = {"encoder.weight", "encoder.bias", "decoder.weight"}

_DATASET, _INFERENCE, _TOKEN = "dataset-wise", "inference", "token-wise"
_NAME = re.compile(r"(Llama3_1-8B)-Base-L(\d{1,2})(R|A|M|TC)-\d+x")
_LOOKED_AT, _ABOUT_ONE = 1024, 0.02


def recognises(source: Source) -> bool:
    """Say whether a source is a folder of Llama Scope, or its folder of checkpoints."""
    home = _home(source)
    if not source.is_folder or not (home / CONFIG).is_file():
        return False
    return safetensors_names(home / FOLDER / WEIGHTS) >= NEEDED


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a folder of Llama Scope; transcoders are refused.

    Raises:
        VlmEditError: A file is missing or not valid, a transcoder, an option that is not known,
            or tensors that do not fit.
    """
    del hints
    path = _home(source)
    config, tensors = read_json(path / CONFIG), read_safetensors(path / FOLDER / WEIGHTS)
    expect_plain(path, config)
    expect_names(path, tensors, NEEDED, {"decoder.bias"})
    weight = expect_matrix(path, tensors, "encoder.weight")
    decoder = expect_matrix(path, tensors, "decoder.weight").T
    m, d = weight.shape
    scale_in, scale_out = _scales(path, config, d)
    bias = decoder_bias_of(path, config, tensors, d)
    before = expect_flag(path, config, "apply_decoder_bias_to_pre_encoder")
    activation, k, threshold = _activation(path, config, decoder)
    for name, size in (("d_model", d), ("d_sae", m)):
        if expect_whole(path, config, name) != size:
            raise DamagedFile(f"{path}: the config says {name}={config[name]}, the file has {size}")
    return StoredDictionary(
        weight=Rows(weight, "encoder.weight", scale=torch.full((d,), scale_in)),
        bias=expect_vector(path, tensors, "encoder.bias"),
        decoder=Rows(decoder, "decoder.weight", scale=torch.full((d,), 1 / scale_out)),
        decoder_bias=bias / scale_out,
        activation=activation,
        k=k,
        threshold=None if threshold is None else torch.full((m,), threshold),
        subtract=bias / scale_in if before else None,
        norm="constant_norm_rescale" if config.get("norm_activation") == _TOKEN else "none",
        info=_info(path, config),
    )


FORMAT = Format("llama_scope", f"{CONFIG} and {FOLDER}/{WEIGHTS}", recognises, read)


def _home(source: Source) -> Path:
    return source.path.parent if source.path.name == FOLDER else source.path


def expect_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what reads one place and writes another, and encoders of two matrices."""
    ends = [config.get(f"hook_point_{end}") for end in ("in", "out")]
    if ends[0] != ends[1]:
        raise UnknownName(
            f"{path} is a transcoder (from {ends[0]} to {ends[1]}): its decoder's rows mean "
            "nothing where its codes are read; load an SAE"
        )
    if expect_flag(path, config, "use_glu_encoder"):
        raise UnknownName(f"{path}: a GLU encoder is not one matrix and is not supported")


def decoder_bias_of(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], d: int
) -> Tensor:
    """Return the decoder's bias, [d]: zeros where the config says that there is none."""
    if not expect_flag(path, config, "use_decoder_bias", True):
        return torch.zeros(d)
    return expect_vector(path, tensors, "decoder.bias")


def hook_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the place that was trained on, as ``Encodes.info`` says it, if the config does."""
    hook = config.get("hook_point_in")
    return {"hook_name": hook} if isinstance(hook, str) and hook else {}


def _scales(path: Path, config: Mapping[str, Any], d: int) -> tuple[float, float]:
    """Return what activations are multiplied with before the encoder, and divided by after."""
    kind = config.get("norm_activation", _DATASET)
    if kind in (_INFERENCE, _TOKEN):  # folded by the library, or by each token's own length
        return 1.0, 1.0
    if kind != _DATASET:
        raise UnknownName(
            f"{path}: norm_activation {str(kind)[:60]!r} is not supported; supported: {_DATASET}, "
            f"{_TOKEN}, {_INFERENCE}"
        )
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, Mapping):
        raise DamagedFile(f"{path}: dataset_average_activation_norm is missing or has no parts")
    lengths = [expect_scalar(path, norms, end) for end in ("in", "out")]
    if min(lengths) <= 0:
        raise DamagedFile(f"{path}: dataset_average_activation_norm is {lengths}, not above 0")
    return d**0.5 / lengths[0], d**0.5 / lengths[1]


def _activation(
    path: Path, config: Mapping[str, Any], decoder: Tensor
) -> tuple[str, int | None, float | None]:
    name = str(config.get("act_fn", "jumprelu")).lower()
    some = decoder[:: max(1, len(decoder) // _LOOKED_AT)].float().norm(dim=1)
    weighted = expect_flag(path, config, "sparsity_include_decoder_norm", True)
    if weighted and bool(((some - 1).abs() > _ABOUT_ONE).any()):
        if name == "topk":
            raise UnknownName(
                f"{path}: its TopK chooses by codes times the lengths of the decoder's rows, which "
                f"reach from {some.min():.3g} to {some.max():.3g}: no activation here does that"
            )
        warnings.warn(
            f"{path}: rows of its decoder have lengths from {some.min():.3g} to {some.max():.3g}, "
            "and later versions of its library compare the threshold with codes times lengths: "
            "read as when it was published, without; ask dictionary.check()",
            UserWarning,
            stacklevel=5,  # at who called load_dictionary
        )
    if name == "relu":
        return "relu", None, None
    if name == "topk":
        return "topk", expect_whole(path, config, "top_k"), None
    if name != "jumprelu":
        raise UnknownName(
            f"{path}: act_fn {name[:60]!r} is not supported; supported: jumprelu, topk, relu"
        )
    threshold = expect_scalar(path, config, "jump_relu_threshold")
    if threshold < 0:
        raise BadArgument(f"{path}: jump_relu_threshold is {threshold}, below 0")
    return "jumprelu", None, threshold


def _info(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    told = _NAME.search(path.absolute().as_posix())
    return hook_of(config) | ({"model_name": "meta-llama/Llama-3.1-8B"} if told else {})
