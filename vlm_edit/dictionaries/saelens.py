"""The SAELens v6 format: ``cfg.json`` beside ``sae_weights.safetensors``.

Beside them we keep ``centers.safetensors``, a vector per stream that is subtracted after the
norm. SAELens does not know it and reads the rest.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_edit.dictionaries.dictionary import Activation, Dictionary, Encoder, Norm
from vlm_edit.errors import VlmEditError

CONFIG, WEIGHTS, CENTERS = "cfg.json", "sae_weights.safetensors", "centers.safetensors"

_ACTIVATIONS: dict[str, Activation] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_NORMS: dict[str, Norm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_INFO = ("model_name", "hook_name", "dataset_path")


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
    architecture = config.get("architecture")
    if architecture not in _ACTIVATIONS:
        raise VlmEditError(
            f"{path}: architecture {architecture!r} is not supported; supported: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    activation = _ACTIVATIONS[architecture]
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
        subtract=tensors["b_dec"] if config.get("apply_b_dec_to_input", True) else None,
        norm=_read_norm(path, config),
        centers=_read_centers(path),
    )
    metadata = config.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    info = {key: str(known[key]) for key in _INFO if known.get(key) is not None}
    dictionary = Dictionary(encoder, tensors["W_dec"], tensors["b_dec"], info)
    if config.get("rescale_acts_by_decoder_norm"):
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
        "metadata": dict(dictionary.info),
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
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    if encoder.centers:
        save_file({k: v.contiguous() for k, v in encoder.centers.items()}, folder / CENTERS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > 1 << 20:
        raise VlmEditError(f"{path} is larger than 1 MiB: not the config of a dictionary")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise VlmEditError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise VlmEditError(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VlmEditError(f"{path} is not a readable safetensors file: {error}") from error
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


def _read_norm(path: Path, config: dict[str, Any]) -> Norm:
    norm = config.get("normalize_activations", "none")
    if norm not in _NORMS:
        raise VlmEditError(
            f"{path}: normalize_activations {norm!r} is not supported; supported: "
            f"{', '.join(_NORMS)}. Fold it into the weights before saving"
        )
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
    norm = dictionary.decoder.norm(dim=-1)
    encoder = replace(
        dictionary.encoder,
        weight=dictionary.encoder.weight * norm,
        bias=dictionary.encoder.bias * norm,
    )
    return replace(dictionary, encoder=encoder, decoder=dictionary.decoder / norm[:, None])
