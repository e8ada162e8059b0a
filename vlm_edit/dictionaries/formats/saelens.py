"""The SAELens v6 format: ``cfg.json`` beside ``sae_weights.safetensors``.

Beside them we keep ``centers.safetensors``, a vector per stream that is subtracted after the
norm. SAELens does not know it and reads the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import Activation, Norm
from vlm_edit.dictionaries.formats.format import Format, Told
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.errors import VlmEditError

CONFIG, WEIGHTS, CENTERS = "cfg.json", "sae_weights.safetensors", "centers.safetensors"

_ACTIVATIONS: dict[str, Activation] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_NORMS: dict[str, Norm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_VERSION = "sae_lens_version"


def recognises(source: Source) -> bool:
    """Whether a source is a folder in this format."""
    return source.has(CONFIG, WEIGHTS)


def read(source: Source, told: Told) -> StoredDictionary:
    """Read a folder in this format.

    Raises:
        VlmEditError: A file is missing or not valid, an architecture or normalisation that is
            not supported, or tensors that do not fit the config.
    """
    del told
    path, config = source.path, source.json(CONFIG)
    tensors = source.tensors(WEIGHTS)
    _expect_version_6(path, config)
    activation = _ACTIVATIONS[_choice(path, config, "architecture", None, _ACTIVATIONS)]
    names = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if activation == "jumprelu":
        names.add("threshold")
    expect_names(path, tensors, names)
    weight, decoder = (expect_matrix(path, tensors, name) for name in ("W_enc", "W_dec"))
    bias, decoder_bias = (expect_vector(path, tensors, name) for name in ("b_enc", "b_dec"))
    gain = None
    if activation == "topk" and _flag(path, config, "rescale_acts_by_decoder_norm", False):
        # Features compete by pre-activation times their decoder row's norm.
        gain = decoder.float().norm(dim=-1).clamp_min(1e-8)
    metadata = config.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    stored = StoredDictionary(
        weight=Rows(weight.T, "W_enc", gain),
        bias=bias if gain is None else bias * gain,
        decoder=Rows(decoder, "W_dec", None if gain is None else 1 / gain),
        decoder_bias=decoder_bias,
        activation=activation,
        threshold=expect_vector(path, tensors, "threshold") if activation == "jumprelu" else None,
        k=_read_k(path, config) if activation == "topk" else None,
        subtract=decoder_bias if _flag(path, config, "apply_b_dec_to_input", True) else None,
        norm=_read_norm(path, config),
        centers=_read_centers(source),
        info={k: v for k, v in known.items() if isinstance(v, str) and k != _VERSION},
    )
    stated = (config.get("d_in"), config.get("d_sae"))
    if stated != (stored.width, stored.n_features):
        raise VlmEditError(
            f"{path}: cfg.json states d_in, d_sae = {stated}, but W_enc is "
            f"{tuple(weight.shape)}: the two files are not of one dictionary"
        )
    return stored


FORMAT = Format("saelens", f"{CONFIG} and {WEIGHTS}", recognises, read)


def save_saelens(
    dictionary: Dictionary, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32
) -> None:
    """Write a dictionary as a folder that SAELens v6 reads.

    Args:
        dictionary: With activation relu, jumprelu or topk.
        path: The folder, made if need be.
        dtype: Of the weights in the file.

    Raises:
        VlmEditError: An activation that the format does not have.
    """
    encoder = dictionary.encoder
    architectures = {value: key for key, value in _ACTIVATIONS.items()}
    if encoder.activation not in architectures:
        raise VlmEditError(
            f"SAELens has no architecture for activation {encoder.activation!r}; "
            "raw neurons need no file: use Dictionary.identity(width)"
        )
    subtracts = encoder.subtract is not None
    if subtracts and not torch.equal(encoder.subtract, dictionary.decoder_bias):  # type: ignore[arg-type]
        raise VlmEditError("SAELens subtracts the decoder's bias or nothing; this one differs")
    config: dict[str, Any] = {
        "architecture": architectures[encoder.activation],
        "d_in": dictionary.width,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": encoder.norm,
        "reshape_activations": "none",
        "metadata": {_VERSION: "6.0.0", **dictionary.info},
    }
    tensors = {
        "W_enc": encoder.weight,
        "b_enc": encoder.bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if encoder.threshold is not None:
        tensors["threshold"] = encoder.threshold
    if encoder.k is not None:
        config |= {"k": encoder.k, "rescale_acts_by_decoder_norm": False}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(tensors, folder / WEIGHTS, dtype)
    (folder / CENTERS).unlink(missing_ok=True)  # of a dictionary saved here before
    if encoder.centers:
        _write_tensors(encoder.centers, folder / CENTERS, torch.float32)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {k: v.detach().to("cpu", dtype, copy=True).contiguous() for k, v in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(copies, path)
    path.chmod(mode)  # safetensors writes files that only their owner may read


def _expect_version_6(path: Path, config: dict[str, Any]) -> None:
    """Refuse what older versions wrote beside the fields read here and that changes the code."""
    name = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if name != "relu" or config.get("finetuning_scaling_factor"):
        raise VlmEditError(
            f"{path}: written by SAELens before version 6 with activation_fn {name!r} and "
            f"finetuning_scaling_factor {config.get('finetuning_scaling_factor')!r}: load it with "
            "SAELens 6, save it there and read that"
        )


def _choice(
    path: Path, config: dict[str, Any], key: str, default: str | None, known: Mapping[str, str]
) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise VlmEditError(
            f"{path}: {key} {value!r} is not supported; supported: {', '.join(known)}"
        )
    return value


def _flag(path: Path, config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise VlmEditError(f"{path}: {key} must be true or false, got {value!r}")
    return value


def _read_norm(path: Path, config: dict[str, Any]) -> Norm:
    norm = _choice(path, config, "normalize_activations", "none", _NORMS)
    if config.get("reshape_activations", "none") not in ("none", None):
        raise VlmEditError(
            f"{path}: reshape_activations {config['reshape_activations']!r} is not supported"
        )
    return _NORMS[norm]


def _read_k(path: Path, config: dict[str, Any]) -> int:
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool):
        raise VlmEditError(f"{path}: a topk dictionary needs a whole number k, got {k!r}")
    return k


def _read_centers(source: Source) -> dict[str, Tensor]:
    if not source.has(CENTERS):
        return {}
    tensors = source.tensors(CENTERS)
    return {name: expect_vector(source.file(CENTERS), tensors, name) for name in tensors}
