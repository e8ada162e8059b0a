"""The formats of circuit-tracer: a transcoder in a file, or a cross-layer one in a folder.

``config.yaml`` beside them, or a folder above, says which places they read and write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries.formats.blocks import LayerFile, joined
from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.places import one_layer, place_of, skip_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
    safetensors_names,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import DamagedFile

CONFIG = "config.yaml"

_HOOKS = ("feature_input_hook", "feature_output_hook")
_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_SKIP, _THRESHOLD = "W_skip", "activation_function.threshold"
_LAYER = re.compile(r"layer_?(\d+)")
_READER = re.compile(r"W_enc_\d+\.safetensors")
_LINE = re.compile(
    r"""^(feature_(?:in|out)put_hook|model_name):\s*["']?([\w./-]+)["']?\s*$""", re.M
)
_MOST = 1 << 20


def recognises(source: Source) -> bool:
    """Say whether a source is a file with a transcoder, by its tensors, its name and its config.

    The four tensors alone may be an SAE.
    """
    if source.is_folder or source.path.suffix != ".safetensors":
        return False
    names, more = safetensors_names(source.path), {_SKIP, _THRESHOLD}
    told = bool(names & more) or any(name.startswith("feature_") for name in _config(source.path))
    named = bool(_LAYER.fullmatch(source.path.stem))
    return named and told and _NAMES <= names <= _NAMES | more


def read(source: Source, hints: Hints) -> Transcoder[StoredDictionary]:
    """Read a file with a transcoder.

    Raises:
        VlmEditError: Not a readable file, or tensors that do not fit.
    """
    del hints
    path, tensors = source.path, source.tensors(source.path.name)
    expect_names(path, tensors, _NAMES, {_SKIP, _THRESHOLD})
    threshold = _threshold(path, tensors, _THRESHOLD)
    config = _config(path)
    named = _LAYER.fullmatch(path.stem)
    said: dict[str, object] = {f"{CONFIG}'s {hook}": config.get(hook) for hook in _HOOKS}
    said[f"the file {path.name!r}"] = int(named[1]) if named else None
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "W_enc"), "W_enc"),
        bias=expect_vector(path, tensors, "b_enc"),
        decoder=Rows(expect_matrix(path, tensors, "W_dec"), "W_dec"),
        decoder_bias=expect_vector(path, tensors, "b_dec"),
        activation="relu" if threshold is None else "jumprelu",
        threshold=threshold,
        info=_info(config, one_layer(path, said)),
    )
    skip = skip_of(path, tensors, _SKIP) if _SKIP in tensors else None
    return Transcoder(stored, *_ends(config), skip=skip)


def recognises_layers(source: Source) -> bool:
    """Say whether a source is a folder with a cross-layer transcoder."""
    return source.has("W_enc_0.safetensors", "W_dec_0.safetensors")


def read_layers(source: Source, hints: Hints) -> Transcoder[StoredDictionary]:
    """Read a folder with a cross-layer transcoder.

    Raises:
        VlmEditError: A file is missing or not valid, or files that do not fit each other.
    """
    del hints
    count = len([name for name in source.names() if _READER.fullmatch(name)])
    files = [_layer(source, number, count) for number in range(count)]
    if len({file.threshold is None for file in files}) > 1:
        raise DamagedFile(f"{source.path}: some layers have a threshold and others have not")
    config = _config(source.file("W_enc_0.safetensors"))
    info = _info(config, None) | {"layers": ", ".join(map(str, range(count)))}
    stored = joined(source.path, files, info)
    return Transcoder(stored, *_ends(config), parts=count)


FORMAT = Format("circuit_tracer", "layer_N.safetensors with W_enc", recognises, read)
LAYERS = Format(
    *("circuit_tracer_layers", "W_enc_0.safetensors and W_dec_0.safetensors, and on"),
    *(recognises_layers, read_layers),
)


def _layer(source: Source, number: int, count: int) -> LayerFile:
    """Read the two files of a layer, whose features write it and all later ones."""
    names = [f"W_{way}_{number}.safetensors" for way in ("enc", "dec")]
    if not source.has(*names):
        raise DamagedFile(
            f"{source.path}: {' or '.join(names)} is missing, and there are {count} layers: fetch "
            "it too"
        )
    path, tensors = source.file(names[0]), source.tensors(names[0])
    needed = {f"{name}_{number}" for name in ("W_enc", "b_enc", "b_dec")}
    expect_names(path, tensors, needed, {f"threshold_{number}"})
    weight = expect_matrix(path, tensors, f"W_enc_{number}")
    bias, decoder_bias = (
        expect_vector(path, tensors, f"b_{end}_{number}") for end in ("enc", "dec")
    )
    threshold = _threshold(path, tensors, f"threshold_{number}")
    path, written = source.file(names[1]), source.tensors(names[1])
    expect_names(path, written, {f"W_dec_{number}"})
    decoder = expect_matrix(path, written, f"W_dec_{number}", axes=3)
    if decoder.shape[1] != count - number:
        raise DamagedFile(
            f"{path}: W_dec_{number} has shape {tuple(decoder.shape)}, whose features write "
            f"{decoder.shape[1]} layers: of {count} they write layer {number} and the "
            f"{count - number - 1} later ones; fetch what is missing"
        )
    return LayerFile(weight, bias, decoder, decoder_bias, threshold)


def _threshold(path: Path, tensors: Mapping[str, Any], name: str) -> Tensor | None:
    if name not in tensors:
        return None
    value = tensors[name]
    flat = {name: value.flatten()} if isinstance(value, Tensor) else tensors
    return expect_vector(path, flat, name)


def _config(path: Path) -> dict[str, str]:
    """Return the lines of a config beside a file, or in the folder above, that are of use here."""
    for folder in path.absolute().parents[:2]:
        config = folder / CONFIG
        if config.is_file() and config.stat().st_size < _MOST:
            return dict(_LINE.findall(config.read_text("utf-8", errors="replace")))
    return {}


def _ends(config: Mapping[str, str]) -> tuple[str | None, str | None]:
    read, written = (place_of(config.get(hook)) for hook in _HOOKS)
    return read, written


def _info(config: Mapping[str, str], layer: str | None) -> dict[str, str]:
    hook, model = config.get("feature_input_hook"), config.get("model_name")
    info = {} if hook is None else {"hook_name": hook}
    info |= {} if model is None else {"model_name": model}
    return info | ({} if layer is None else {"layer": layer})
