"""The SAELens v6 format: ``cfg.json`` beside ``sae_weights.safetensors``.

Beside them we keep ``centers.safetensors``, a vector per stream that is subtracted after the
norm. SAELens does not know it and reads the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import Activation, Encoder, Norm
from vlm_edit.errors import VlmEditError

CONFIG, WEIGHTS, CENTERS = "cfg.json", "sae_weights.safetensors", "centers.safetensors"

_ACTIVATIONS: dict[str, Activation] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_NORMS: dict[str, Norm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_VERSION = "sae_lens_version"


def recognises(path: Path) -> bool:
    """Whether a path is a folder in this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Dictionary:
    """Read a folder in this format.

    Raises:
        VlmEditError: A file is missing or not valid, an architecture or normalisation that is
            not supported, or tensors that do not fit the config.
    """
    config = _read_config(path / CONFIG)
    tensors = _read_tensors(path / WEIGHTS)
    _expect_version_6(path, config)
    activation = _ACTIVATIONS[_choice(path, config, "architecture", None, _ACTIVATIONS)]
    names = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if activation == "jumprelu":
        names.add("threshold")
    _expect_names(path, tensors, names)
    encoder = Encoder(
        weight=tensors["W_enc"],
        bias=tensors["b_enc"],
        activation=activation,
        threshold=tensors.get("threshold"),
        k=_read_k(path, config) if activation == "topk" else None,
        subtract=tensors["b_dec"] if _flag(path, config, "apply_b_dec_to_input", True) else None,
        norm=_read_norm(path, config),
        centers=_read_centers(path),
    )
    metadata = config.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    info = {k: v for k, v in known.items() if isinstance(v, str) and k != _VERSION}
    dictionary = Dictionary(encoder, tensors["W_dec"], tensors["b_dec"], info)
    if activation == "topk" and _flag(path, config, "rescale_acts_by_decoder_norm", False):
        dictionary = _fold_decoder_norm(dictionary)
    stated = (config.get("d_in"), config.get("d_sae"))
    if stated != (dictionary.width, dictionary.n_features):
        raise VlmEditError(
            f"{path}: cfg.json states d_in, d_sae = {stated}, but W_enc is "
            f"{tuple(tensors['W_enc'].shape)}: the two files are not of one dictionary"
        )
    return dictionary


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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 20:
            raise VlmEditError(f"{path} is larger than 1 MiB: not the config of a dictionary")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise VlmEditError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise VlmEditError(f"{path} is not valid JSON: {error}") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VlmEditError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise VlmEditError(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VlmEditError(f"{path} is not a readable safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise VlmEditError(f"{path}: {name} is {tensor.dtype}, expected floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise VlmEditError(f"{path}: {name} holds NaN or infinity: the file is damaged")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _expect_names(path: Path, tensors: dict[str, Tensor], names: set[str]) -> None:
    missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
    if missing:
        raise VlmEditError(f"{path}: tensors missing: {', '.join(missing)}")
    if extra:
        raise VlmEditError(
            f"{path}: tensors that this architecture does not have: {', '.join(extra)}; "
            "reading on would give other codes than the ones trained"
        )


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


def _read_centers(path: Path) -> dict[str, Tensor]:
    file = path / CENTERS
    return _read_tensors(file) if file.exists() else {}


def _fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Features compete by their pre-activation times their decoder row's norm: fold it in."""
    norm = dictionary.decoder.norm(dim=-1).clamp_min(1e-8)  # as SAELens folds
    encoder = replace(
        dictionary.encoder,
        weight=dictionary.encoder.weight * norm,
        bias=dictionary.encoder.bias * norm,
    )
    return replace(dictionary, encoder=encoder, decoder=dictionary.decoder / norm[:, None])
