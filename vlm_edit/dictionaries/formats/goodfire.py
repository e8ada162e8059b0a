"""The format of Goodfire: one ``.pth`` or ``.pt`` with four tensors of two linear layers, relu."""

from __future__ import annotations

import re

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping, torch_files
from vlm_edit.dictionaries.stored import Rows, StoredDictionary

_NAMES = {f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias")}
_FILE = re.compile(r"(.+)-SAE-l(\d{1,3})\.pth?")


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has these four tensors and no other."""
    return set(peek_mapping(source)) == _NAMES


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, or tensors that do not fit.
    """
    del hints
    path, tensors = source.path, open_mapping(source)
    expect_names(path, tensors, _NAMES)
    names = torch_files(source)
    told = _FILE.fullmatch(names[0])
    layer = {"hook_name": f"blocks.{told[2]}.hook_resid_post", "layer": told[2]} if told else {}
    return StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "encoder_linear.weight"), "encoder_linear.weight"),
        bias=expect_vector(path, tensors, "encoder_linear.bias"),
        decoder=Rows(
            expect_matrix(path, tensors, "decoder_linear.weight").T, "decoder_linear.weight"
        ),
        decoder_bias=expect_vector(path, tensors, "decoder_linear.bias"),
        info=layer | ({"model_name": f"meta-llama/{told[1]}"} if told else {}),
    )


FORMAT = Format("goodfire", "a .pth with encoder_linear.weight", recognises, read)
