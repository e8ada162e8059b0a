"""The format of gytdau/clip-sae-128: one ``.pth`` with four tensors, relu, no input bias."""

from __future__ import annotations

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary

_NAMES = {"encoder.weight", "enc_bias", "decoder.weight", "dec_bias"}


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
    return StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "encoder.weight"), "encoder.weight"),
        bias=expect_vector(path, tensors, "enc_bias"),
        decoder=Rows(expect_matrix(path, tensors, "decoder.weight").T, "decoder.weight"),
        decoder_bias=expect_vector(path, tensors, "dec_bias"),
    )


FORMAT = Format("gytdau", "a .pth with encoder.weight and enc_bias", recognises, read)
