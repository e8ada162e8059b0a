"""The format of PatchSAE and ConceptScope: ``{cfg, state_dict}`` in one torch file, relu.

Those whose ``cfg`` is an object of the library, as its ancestors saved it, need code from it to be
read, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import mapping, open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile, UnknownName

_CONFIGS, _STATE = ("cfg", "config"), "state_dict"
_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has a config and a state dict of these names."""
    contents = peek_mapping(source)
    state = contents.get(_STATE)
    return isinstance(state, Mapping) and set(state) >= _NAMES and _config(contents) is not None


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, a gated SAE, or contents that do not fit.
    """
    del hints
    path, contents = source.path, open_mapping(source)
    config = _config(contents)
    if config is None:
        raise DamagedFile(f"{path}: there is neither cfg nor config beside {_STATE}")
    tensors = mapping(path, contents, _STATE)
    if config.get("gated_sae"):
        raise UnknownName(
            f"{path} is a gated SAE, whose codes the library itself never finished: load another"
        )
    expect_names(path, tensors, _NAMES)
    decoder_bias = expect_vector(path, tensors, "b_dec")
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "W_enc").T, "W_enc"),
        bias=expect_vector(path, tensors, "b_enc"),
        decoder=Rows(expect_matrix(path, tensors, "W_dec"), "W_dec"),
        decoder_bias=decoder_bias,
        subtract=decoder_bias,
        info=_info(config),
    )
    for name, size in (("d_in", stored.width), ("d_sae", stored.n_features)):
        if config.get(name, size) != size:
            raise DamagedFile(f"{path}: the config says {name}={config[name]}, W_enc has {size}")
    return stored


FORMAT = Format("patchsae", "a .pt with cfg and a state_dict of W_enc", recognises, read)


def _config(contents: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = [contents[name] for name in _CONFIGS if isinstance(contents.get(name), Mapping)]
    return found[0] if found else None


def _info(config: Mapping[str, Any]) -> dict[str, str]:
    """Name the host, and the layer unless it is counted from the end of a tower of any depth."""
    name, layer = config.get("model_name"), config.get("block_layer")
    info = {"model_name": name} if isinstance(name, str) and name else {}
    if isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0:
        info |= {"layer": str(layer), "hook_name": f"vision.blocks.{layer}.hook_resid_post"}
    return info
