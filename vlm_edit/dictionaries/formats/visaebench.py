"""The format of VisAEBench: ``config.json`` or YAML beside ``sae.pt`` or ``model.safetensors``.

Tensors are of its own, both matrices [m, d], or as overcomplete names them; unlike overcomplete it
leaves the dictionary's rows as long as they are. A code equal to a BatchTopK's threshold stays.
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
    expect_scalar,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import CannotKnow, DamagedFile, UnknownName, VlmEditError

CONFIG = "config.json"
YAML = ("config.yaml", "config.yml")  # read where there is no config.json

_FILES = ("sae.pt", "model.safetensors", "model.pt")
_OWN = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_OVERCOMPLETE = (
    *("encoder.final_block.0.weight", "encoder.final_block.0.bias"),
    *("dictionary._weights", "dictionary.multiplier"),
)
_KINDS = ("topk", "batchtopk", "jumprelu")
_RUNNING = "_running_threshold"
_JUMPS = ("jump_thresholds", "thresholds")


def recognises(source: Source) -> bool:
    """Say whether a source is a folder with such a config and either kind of tensors."""
    file = _file(source)
    if file is None or not is_config(source):
        return False
    names = set(_peek(source, file))
    return names >= set(_OWN[:3]) or names >= set(_OVERCOMPLETE[:3])


def is_config(source: Source) -> bool:
    """Say whether a config beside the weights is one of this library's."""
    home = source if source.is_folder else Source(source.path.parent)
    try:
        config = _config(home)
    except VlmEditError:
        return False
    return _kind(config) in _KINDS and bool({"input_dim", "hidden_dim", "backbone"} & set(config))


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a folder in this format.

    Raises:
        VlmEditError: A file is missing or not valid, thresholds that nothing says, or tensors that
            do not fit.
    """
    file = _file(source)
    if file is None:
        raise DamagedFile(f"{source.path} has none of {', '.join(_FILES)}")
    path, config = source.path, _config(source)
    tensors = source.tensors(file) if file.endswith(".safetensors") else source.torch(file)
    if not isinstance(tensors, Mapping):
        raise DamagedFile(f"{path} holds a {type(tensors).__name__}, expected a state dict")
    layout = _OWN if _OWN[0] in tensors else _OVERCOMPLETE
    expect_names(path, tensors, set(layout[:3]), {layout[3], _RUNNING, *_JUMPS})
    decoder, decoder_bias = _decoder(path, tensors, layout)
    bias = expect_vector(path, tensors, layout[1])
    kind = _kind(config)
    if kind not in _KINDS:
        raise UnknownName(
            f"{path}: activation {str(kind)[:60]!r} is not supported; supported: "
            f"{', '.join(_KINDS)}"
        )
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, layout[0]), layout[0]),
        bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation="topk" if kind == "topk" else "jumprelu",
        k=expect_whole(path, config, "k") if kind == "topk" else None,
        threshold=None if kind == "topk" else _threshold(source, tensors, hints, len(bias)),
        info=_info(config),
    )
    for name, size in (("input_dim", stored.width), ("hidden_dim", stored.n_features)):
        if config.get(name, size) != size:
            raise DamagedFile(f"{path}: the config says {name}={config[name]}, the file has {size}")
    return stored


FORMAT = Format(
    "visaebench",
    f"{CONFIG} or {YAML[0]} with activation and input_dim, and {_FILES[0]} or {_FILES[1]}",
    recognises,
    read,
    frozenset({"threshold"}),
)


def _config(source: Source) -> Mapping[str, Any]:
    there = [name for name in YAML if source.has(name)]
    return source.yaml(there[0]) if there and not source.has(CONFIG) else source.json(CONFIG)


def _file(source: Source) -> str | None:
    there = [name for name in _FILES if source.has(name)]
    return there[0] if there else None


def _peek(source: Source, file: str) -> Mapping[str, Any]:
    try:
        tensors = source.tensors(file) if file.endswith(".safetensors") else source.torch(file)
    except DamagedFile:
        return {}
    return tensors if isinstance(tensors, Mapping) else {}


def _kind(config: Mapping[str, Any]) -> str | None:
    names = [config.get(name) for name in ("activation", "sae_type", "architecture")]
    told = [name.lower() for name in names if isinstance(name, str)]
    return told[0] if told else None


def _decoder(
    path: object, tensors: Mapping[str, Any], layout: tuple[str, ...]
) -> tuple[Rows, Tensor]:
    """Return the rows, and the bias: of its own layout alone, where there is one."""
    rows = expect_matrix(path, tensors, layout[2])
    zeros = torch.zeros(rows.shape[1])
    if layout is _OWN:
        bias = expect_vector(path, tensors, layout[3]) if layout[3] in tensors else zeros
        return Rows(rows, layout[2]), bias
    factor = expect_scalar(path, tensors, layout[3]) if layout[3] in tensors else 0.0
    gain = torch.full((len(rows),), factor).exp()
    if not bool(gain.isfinite().all()):
        raise DamagedFile(f"{path}: exp({layout[3]}) is not finite: the file is damaged")
    return Rows(rows, layout[2], gain=gain), zeros


def _threshold(source: Source, tensors: Mapping[str, Any], hints: Hints, m: int) -> Tensor:
    """Return thresholds that codes are above."""
    path, config = source.path, _config(source)
    jumps = [name for name in _JUMPS if name in tensors]
    if _kind(config) == "jumprelu" and jumps:
        return expect_vector(path, tensors, jumps[0])
    level: float | None = hints.threshold
    if _kind(config) == "batchtopk" and config.get("threshold") is not None:
        level = expect_scalar(path, config, "threshold")
    elif _kind(config) == "batchtopk" and _RUNNING in tensors:
        level = expect_scalar(path, tensors, _RUNNING)
    if level is None:
        default = "0.01" if _kind(config) == "jumprelu" else "0"
        raise CannotKnow(
            f"{path}: neither {CONFIG} nor the weights keep a threshold, where the library takes "
            f"{default}: say threshold={default} to do as it does"
        )
    whole = torch.full((m,), level)
    if _kind(config) == "jumprelu":
        return whole
    return torch.nextafter(whole, torch.tensor(-torch.inf))


def _info(config: Mapping[str, Any]) -> dict[str, str]:
    layer = config.get("layer", config.get("hook_layer"))
    known = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    return {"layer": str(layer)} if known else {}
