"""The formats of Gemma Scope 2 (JumpReLU) and Qwen-Scope (TopK); neither subtracts ``b_dec``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.places import one_layer, place_of, skip_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
    expect_whole,
    safetensors_names,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName

CONFIG, PARAMS = "config.json", "params.safetensors"

_HOOKS = ("hf_hook_point_in", "hf_hook_point_out")
_SKIP = "affine_skip_connection"
_GEMMA = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_QWEN = {"W_enc", "W_dec", "b_enc", "b_dec"}
_LAYER = re.compile(r"layer_?(\d+)")
_GEMMA_REPOSITORY = re.compile(r"gemma-scope-2-([\w.-]+?)(?=/|$)")
# What a folder's parent is called, which says its place where it has no config.
_PLACES = {
    "resid_post": "model.layers.{}.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
}
_QWEN_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_QWEN_REPOSITORY = re.compile(r"SAE-Res-(.+)-W(\d+)K-L0_(\d+)")


def recognises_gemma(source: Source) -> bool:
    """Say whether a source is a folder of Gemma Scope 2."""
    return source.has(PARAMS) and {"w_enc", "w_dec"} <= safetensors_names(source.file(PARAMS))


def read_gemma(source: Source, hints: Hints) -> StoredDictionary | Transcoder[StoredDictionary]:
    """Read a folder of Gemma Scope 2.

    Raises:
        VlmEditError: A file is missing or not valid, or tensors that do not fit.
    """
    del hints
    path, tensors = source.path, source.tensors(PARAMS)
    config = source.json(CONFIG) if source.has(CONFIG) else {}
    ends = [config.get(end) for end in _HOOKS]
    named = path.absolute().parent.name.startswith("transcoder")
    apart = named if None in ends else ends[0] != ends[1]
    skips = _SKIP in tensors
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise UnknownName(
            f"{path}: architecture {config['architecture']!r} is not supported, jump_relu is"
        )
    expect_names(path, tensors, _GEMMA | ({_SKIP} if skips else set()))
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "w_enc").T, "w_enc"),
        bias=expect_vector(path, tensors, "b_enc"),
        decoder=Rows(expect_matrix(path, tensors, "w_dec"), "w_dec"),
        decoder_bias=expect_vector(path, tensors, "b_dec"),
        activation="jumprelu",
        threshold=expect_vector(path, tensors, "threshold"),
        info=_gemma_info(source, config),
    )
    if not apart and not skips:
        return stored
    reads, writes = ("mlp_in", "mlp_out") if None in ends else map(place_of, ends)
    # Theirs is [d_in, d_out], others' the other way round.
    skip = skip_of(path, tensors, _SKIP).T.contiguous() if skips else None
    return Transcoder(stored, reads, writes, skip=skip)


def recognises_qwen(source: Source) -> bool:
    """Say whether a source is a file of Qwen-Scope, by its tensors and its name."""
    if not _QWEN_FILE.fullmatch(source.path.name):
        return False
    return set(peek_mapping(source)) == _QWEN


def read_qwen(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file of Qwen-Scope; k is in the repository's name, or told.

    Raises:
        VlmEditError: Not a readable torch file, tensors that do not fit, or no k.
    """
    path, tensors = source.path, open_mapping(source)
    expect_names(path, tensors, _QWEN)
    repository = _QWEN_REPOSITORY.search(str(path.absolute()))
    k = int(repository[3]) if repository else None
    if hints.k is None and k is None:
        raise BadArgument(
            f"{path}: k is neither in the file nor in the name of a folder above it "
            "(...-W32K-L0_50 means 50): say k="
        )
    if hints.k is not None and k is not None and hints.k != k:
        raise BadArgument(f"{path}: k={hints.k} was told, the repository's name says {k}")
    layer = _QWEN_FILE.fullmatch(path.name)
    info = {"hook_name": f"model.layers.{layer[1]}", "layer": layer[1]} if layer else {}
    if repository:
        info["model_name"] = f"Qwen/{repository[1]}"
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "W_enc"), "W_enc"),
        bias=expect_vector(path, tensors, "b_enc"),
        decoder=Rows(expect_matrix(path, tensors, "W_dec").T, "W_dec"),
        decoder_bias=expect_vector(path, tensors, "b_dec"),
        activation="topk",
        k=expect_whole(path, {"k": hints.k if hints.k is not None else k}, "k"),
        info=info,
    )
    if repository and stored.n_features != int(repository[2]) * 1024:
        raise DamagedFile(
            f"{path}: the repository's name says {repository[2]}K features, the file has "
            f"{stored.n_features}"
        )
    return stored


GEMMA = Format("gemma_scope", f"{PARAMS} with w_enc, beside {CONFIG}", recognises_gemma, read_gemma)
QWEN = Format(
    "qwen_scope", "layerN.sae.pt with W_enc and W_dec", recognises_qwen, read_qwen, frozenset({"k"})
)


def _gemma_info(source: Source, config: Mapping[str, Any]) -> dict[str, str]:
    """Take host, place and layer from the config, or from the names of the folders."""
    info = {}
    path = source.path.absolute()
    named = _LAYER.search(path.name)
    name, hook = config.get("model_name"), config.get("hf_hook_point_in")
    repository = _GEMMA_REPOSITORY.search(path.as_posix())
    if not config and repository:
        name = f"gemma-3-{repository[1]}"
    if not config and named:
        hook = _PLACES.get(path.parent.name.removesuffix("_all"), "").format(named[1])
    said: dict[str, object] = {f"{CONFIG}'s {end}": config.get(end) for end in _HOOKS}
    said[f"the folder {path.name!r}"] = int(named[1]) if named else None
    layer = one_layer(path, said)
    if isinstance(name, str) and name:
        info["model_name"] = _gemma_name(name)
    if isinstance(hook, str) and hook:
        info["hook_name"] = hook
    if layer is not None:
        info["layer"] = layer
    return info


def _gemma_name(name: str) -> str:
    """Return the hub's name of a host that configs call ``gemma-v3-4b-pt``."""
    name = name.removeprefix("google/").replace("gemma-v3", "gemma-3")
    # The hub's smallest has no such ending.
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)
