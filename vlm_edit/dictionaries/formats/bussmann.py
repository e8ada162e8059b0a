"""The format of Bussmann's BatchTopK: ``config.json`` with sae_type, beside ``sae.pt``.

No threshold is in the file of a BatchTopK, whose library chooses among the codes of a whole batch:
what an edit of single tokens takes in its place is told.
"""

from __future__ import annotations

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
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import CannotKnow, DamagedFile, UnknownName

CONFIG = "config.json"

_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_LOG = "jumprelu.log_threshold"
_KINDS = ("vanilla", "topk", "batchtopk", "jumprelu")
_SIGNS = {"sae_type", "act_size", "dict_size"}


def recognises(source: Source) -> bool:
    """Say whether a source is a state dict of these names beside such a config."""
    return set(_config(source)) >= _SIGNS and set(peek_mapping(source)) >= _NAMES


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a folder in this format, or its torch file.

    Raises:
        VlmEditError: A file is missing or not valid, an option that is not supported, or tensors
            that do not fit.
    """
    path, config, tensors = source.path, _config(source), open_mapping(source)
    kind = config.get("sae_type")
    if kind not in _KINDS or config.get("activation", "relu") != "relu":
        raise UnknownName(
            f"{path}: sae_type {str(kind)[:40]!r} with activation "
            f"{str(config.get('activation', 'relu'))[:40]!r} is not supported; supported: "
            f"{', '.join(_KINDS)}, each with relu"
        )
    expect_names(path, tensors, _NAMES | ({_LOG} if kind == "jumprelu" else set()))
    weight = Rows(expect_matrix(path, tensors, "W_enc").T, "W_enc")
    decoder = Rows(expect_matrix(path, tensors, "W_dec"), "W_dec")
    bias, decoder_bias = (expect_vector(path, tensors, name) for name in ("b_enc", "b_dec"))
    # A TopK of the newest version leaves its bias out, and it stays as it was made: zero.
    used = kind in ("vanilla", "jumprelu") or bool(config.get("use_encoder_bias", False))
    activation, k, threshold = _activation(source, tensors, hints)
    stored = StoredDictionary(
        weight=weight,
        bias=bias if used else torch.zeros_like(bias),
        decoder=weight if config.get("tied_weights") and kind != "vanilla" else decoder,
        decoder_bias=decoder_bias,
        activation=activation,
        k=k,
        threshold=threshold,
        subtract=None if kind == "jumprelu" else decoder_bias,
        norm="layer_norm" if config.get("input_unit_norm") else "none",
        info=_info(config),
    )
    for name, size in (("act_size", stored.width), ("dict_size", stored.n_features)):
        if expect_whole(path, config, name) != size:
            raise DamagedFile(f"{path}: the config says {name}={config[name]}, W_enc has {size}")
    return stored


FORMAT = Format(
    "bussmann",
    f"{CONFIG} with sae_type and act_size, and sae.pt",
    recognises,
    read,
    frozenset({"k", "threshold"}),
)


def _config(source: Source) -> Mapping[str, Any]:
    home = source if source.is_folder else Source(source.path.parent)
    return home.peek_json(CONFIG)


def _activation(
    source: Source, tensors: Mapping[str, Any], hints: Hints
) -> tuple[str, int | None, Tensor | None]:
    """Say which codes stay."""
    path, config = source.path, _config(source)
    kind, m = config["sae_type"], expect_matrix(path, tensors, "W_enc").shape[1]
    if kind == "batchtopk":
        if (hints.k is None) == (hints.threshold is None):
            raise CannotKnow(
                f"{path} is a BatchTopK, and its file keeps no threshold: say threshold= as "
                f"measured on its training's activations, or k={config.get('top_k')} for the k "
                "largest of each token"
            )
        if hints.threshold is None:
            return "topk", hints.k, None
        return "jumprelu", None, torch.full((m,), float(hints.threshold))
    if hints.given():
        raise CannotKnow(f"{path}: its files keep {', '.join(hints.given())}: leave it out")
    if kind == "topk":
        return "topk", expect_whole(path, config, "top_k"), None
    if kind == "vanilla":
        return "relu", None, None
    return "jumprelu", None, expect_vector(path, tensors, _LOG).exp()


def _info(config: Mapping[str, Any]) -> dict[str, str]:
    pairs = (("model_name", "model_name"), ("hook_name", "hook_point"))
    found = {key: config.get(name) for key, name in pairs}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}
