"""The format of ViT-Prisma: ``config.json`` beside a state dict such as ``n_images_N.pt``.

An older form keeps the config as an object of the library inside the ``.pt``; reading it would run
code, so it is refused. A missing key has the library's default, which differs from null.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.gated import gate_of
from vlm_edit.dictionaries.formats.places import place_of, skip_of
from vlm_edit.dictionaries.formats.source import (
    MOST_PICKLE,
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping, torch_files
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName

CONFIG = "config.json"

_UNFOLDED = "openai/clip-vit-base-patch32"
_NAMES = {"W_enc", "b_enc", "W_dec", "b_dec"}
_GATED = {"b_gate", "r_mag", "b_mag"}
_SIGNS = {"hook_point_layer", "layer_subtype", "expansion_factor", "activation_fn_str"}
_NORMS: dict[str, str] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def recognises(source: Source) -> bool:
    """Say whether a source is a Prisma config with a state dict, or a file of the older form."""
    config = _home(source).peek_json(CONFIG)
    if "d_in" in config and _SIGNS & set(config) and set(peek_mapping(source)) >= _NAMES:
        return True
    return _is_old(source)


def read(source: Source, hints: Hints) -> StoredDictionary | Transcoder[StoredDictionary]:
    """Read a folder in this format, or one of its torch files.

    Raises:
        VlmEditError: A file is missing, not valid or of the older form, or contents that do not
            fit each other.
    """
    del hints
    _expect_new(source)
    path, tensors = source.path, open_mapping(source)
    config = {key: _plain(value) for key, value in _home(source).json(CONFIG).items()}
    gated = _architecture(path, config)
    transcodes = expect_flag(path, config, "is_transcoder")
    skips = transcodes and expect_flag(path, config, "transcoder_with_skip_connection", True)
    written = ({"b_dec_out"} if transcodes else set()) | ({"W_skip"} if skips else set())
    expect_names(path, tensors, (_NAMES | _GATED if gated else _NAMES) | written)
    weight = expect_matrix(path, tensors, "W_enc")
    decoder_bias = expect_vector(path, tensors, "b_dec")
    activation, k, cap = _activation(path, config)
    if gated and k is not None:
        raise UnknownName(
            f"{path}: a gated dictionary with activation_fn_str 'topk' is not supported; "
            "supported: relu, tanh-relu"
        )
    # A gated dictionary has b_enc too, and no part for it.
    bias, gain, threshold = expect_vector(path, tensors, "b_enc"), None, None
    if gated:
        activation = "jumprelu"
        gain, bias, threshold = gate_of(path, tensors)
    _expect_shape(path, config, weight.shape)
    stored = StoredDictionary(
        weight=Rows(weight.T, "W_enc", gain),
        bias=bias,
        decoder=Rows(expect_matrix(path, tensors, "W_dec"), "W_dec"),
        decoder_bias=expect_vector(path, tensors, "b_dec_out") if transcodes else decoder_bias,
        activation=activation,
        threshold=threshold,
        k=k,
        subtract=decoder_bias,
        norm=_norm(path, config),
        soft_cap=cap,
        info=_info(config),
    )
    if not transcodes:
        return stored
    skip = skip_of(path, tensors, "W_skip") if skips else None
    return Transcoder(stored, *_places(path, config), skip=skip)


FORMAT = Format("prisma", f"{CONFIG} with hook_point_layer, and a .pt", recognises, read)


def _home(source: Source) -> Source:
    return source if source.is_folder else Source(source.path.parent)


def _plain(value: Any) -> Any:
    """Take out the value inside an object, as some versions write ``dtype`` and ``device``."""
    return value.get("value") if isinstance(value, dict) and "__type__" in value else value


def _is_old(source: Source) -> bool:
    """Say whether the first torch file's pickle names a class of the library."""
    names = torch_files(source)
    if not names:
        return False
    path = source.file(names[0]) if source.is_folder else source.path
    return _names_the_library(path)


def _expect_new(source: Source) -> None:
    if _is_old(source):
        raise UnknownName(
            f"{source.path} is of Prisma's older form, which keeps its config as an object, and "
            "reading it would run code from it: open it where you trust it, call "
            f"checkpoint['cfg'].save_config({CONFIG!r}), save checkpoint['state_dict'] alone with "
            "torch.save beside that, and load the folder"
        )


def _names_the_library(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
            with archive.open(entry) as file:
                return b"vit_prisma." in file.read(MOST_PICKLE)
    except Exception:  # whatever zipfile raises on damaged bytes: then it is not this
        return False


def _architecture(path: Path, config: Mapping[str, Any]) -> bool:
    """Say whether it is gated; refuse other architectures."""
    architecture = config.get("architecture", "standard")
    if architecture not in ("standard", "gated"):
        raise UnknownName(
            f"{path}: architecture {architecture!r} is not supported; supported: standard, gated"
        )
    return bool(architecture == "gated")


def _places(path: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what a transcoder reads and writes, which must be of one layer.

    ``ln2.hook_normalized`` is what the MLP is called with where Prisma left the norm's weights in
    the norm, as its training does of one host alone; else nobody can tell.
    """
    layers = [_layer(config.get(f"{end}hook_point_layer", 9)) for end in ("", "out_")]
    if layers[0] != layers[1]:
        raise UnknownName(
            f"{path}: a transcoder from layer {layers[0]} to layer {layers[1]} is not supported; "
            "load one of a layer"
        )
    read = config.get("layer_subtype", "ln2.hook_normalized")
    place = place_of(f"blocks.0.{read}")
    if read == "ln2.hook_normalized" and config.get("model_name") == _UNFOLDED:
        place = "mlp_in"
    return place, place_of(f"blocks.0.{config.get('layer_out_subtype', 'hook_mlp_out')}")


def _layer(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _activation(path: Path, config: Mapping[str, Any]) -> tuple[str, int | None, float | None]:
    """Return which it is, with its k and its soft cap."""
    name = config.get("activation_fn_str", "topk")
    if name == "relu":
        return "relu", None, None
    if name == "tanh-relu":
        return "relu", None, 1.0
    if name != "topk":
        raise UnknownName(
            f"{path}: activation_fn_str {name!r} is not supported; supported: relu, tanh-relu, topk"
        )
    options = config.get("activation_fn_kwargs", {})
    if not isinstance(options, dict) or set(options) != {"k"}:
        raise BadArgument(
            f"{path}: activation_fn_kwargs of topk must be k and nothing else, got "
            f"{str(options)[:60]}"
        )
    return "topk", expect_whole(path, options, "k"), None


def _norm(path: Path, config: Mapping[str, Any]) -> str:
    value = config.get("normalize_activations", "layer_norm")
    if value is None:
        return "none"
    if not isinstance(value, str) or value not in _NORMS:
        raise UnknownName(
            f"{path}: normalize_activations {value!r} is not supported; supported: null, "
            f"{', '.join(_NORMS)}"
        )
    return _NORMS[value]


def _expect_shape(path: Path, config: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    d = expect_whole(path, config, "d_in")
    m = d * expect_whole(path, {"expansion_factor": 16} | dict(config), "expansion_factor")
    if shape != (d, m):
        raise DamagedFile(
            f"{path}: {CONFIG} states {d} dimensions and {m} features, but W_enc is "
            f"{tuple(shape)}: the two files are not of one dictionary"
        )


def _info(config: Mapping[str, Any]) -> dict[str, str]:
    info = {}
    layer, subtype = config.get("hook_point_layer"), config.get("layer_subtype")
    if isinstance(config.get("model_name"), str):
        info["model_name"] = config["model_name"]
    layer = _layer(layer)
    if isinstance(layer, int) and not isinstance(layer, bool):
        info["layer"] = str(layer)
        if isinstance(subtype, str):
            info["hook_name"] = f"blocks.{layer}.{subtype}"
    if config.get("hook_point_head_index") is not None:
        info["head"] = str(config["hook_point_head_index"])[:20]
    if config.get("cls_token_only") is True:
        info["tokens"] = "cls"
    if config.get("use_patches_only") is True:
        info["tokens"] = "patches"
    return info
