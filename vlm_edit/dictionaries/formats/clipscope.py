"""The format of clipscope: one ``.pt`` with ``model_state_dict``, ``k``, ``n_features``, ``d_in``.

The published ones were trained on standardised activations, whose mean and deviation no file
keeps.
"""

from __future__ import annotations

import re
import warnings

import torch

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import mapping, open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile

_STATE = "model_state_dict"
_NAMES = {"pre_b", "enc", "dec"}
_FOLDER = re.compile(r"(\d{1,3})_resid")


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has a state dict of ``pre_b``, ``enc`` and ``dec``."""
    contents = peek_mapping(source)
    state = contents.get(_STATE)
    return isinstance(state, dict) and set(state) >= _NAMES and "n_features" in contents


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one; warn of what it needs.

    Raises:
        VlmEditError: Not a readable torch file, or contents that do not fit.
    """
    del hints
    path, contents = source.path, open_mapping(source)
    # The library reads these alone; the state of training beside them has no part in a code.
    tensors = mapping(path, contents, _STATE)
    expect_names(path, tensors, _NAMES)
    pre_bias = expect_vector(path, tensors, "pre_b")
    decoder = expect_matrix(path, tensors, "dec")
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "enc").T, "enc"),
        bias=torch.zeros(len(decoder)),
        decoder=Rows(decoder, "dec"),
        decoder_bias=pre_bias,
        activation="topk_signed",
        k=expect_whole(path, contents, "k"),
        subtract=pre_bias,
        info=_info(source),
    )
    sizes = (expect_whole(path, contents, "d_in"), expect_whole(path, contents, "n_features"))
    if sizes != (stored.width, stored.n_features):
        raise DamagedFile(
            f"{path}: the file states d_in, n_features = {sizes}, but enc is "
            f"{(stored.width, stored.n_features)}: it is damaged"
        )
    warnings.warn(
        f"{path}: dictionaries of clipscope were trained on standardised activations, and the "
        "file keeps neither mean nor deviation: measure both on the host's activations and use "
        "dictionary.standardised(mean, deviation)",
        UserWarning,
        stacklevel=4,  # at who called load_dictionary
    )
    return stored


def _info(source: Source) -> dict[str, str]:
    """Take the layer from the files' folder, which is named for it, such as ``22_resid``."""
    path = source.path.absolute()
    folder = _FOLDER.fullmatch(path.name if source.is_folder else path.parent.name)
    info = {"needs": "standardised activations"}
    return info | {"hook_name": folder[0], "layer": folder[1]} if folder else info


FORMAT = Format(
    "clipscope", "a .pt with model_state_dict, k, n_features and d_in", recognises, read
)
