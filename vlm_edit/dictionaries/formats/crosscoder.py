"""Crosscoders in one file: features that read and write several layers, or several models.

Their encoder has an axis of places. Nothing tells whether these are layers of one model; of
several models they are of no use here, where a host is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import Source, expect_matrix, expect_names, expect_vector
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import DamagedFile, VlmEditWarning

# Their names for encoder, decoder and the two biases, and the axes of the decoder.
_SPELLINGS: tuple[tuple[tuple[str, str, str, str], str], ...] = (
    (("W_enc", "W_dec", "b_enc", "b_dec"), "m n d"),
    (("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"), "n m d"),
)


def recognises(source: Source) -> bool:
    """Say whether a source is a torch file, or a safetensors file, with such an encoder."""
    if source.is_folder:
        return False
    tensors = _peek(source)
    return any(
        set(names) <= set(tensors) and getattr(tensors[names[0]], "ndim", 0) == 3
        for names, _ in _SPELLINGS
    )


def read(source: Source, hints: Hints) -> Transcoder[StoredDictionary]:
    """Read a crosscoder; with a warning, since its file does not tell layers from models.

    Raises:
        VlmEditError: Not a readable file, or tensors that do not fit.
    """
    del hints
    path, tensors = source.path, _open(source)
    names, axes = next((n, a) for n, a in _SPELLINGS if set(n) <= set(tensors))
    expect_names(path, tensors, set(names))
    encoder, decoder = (expect_matrix(path, tensors, name, axes=3) for name in names[:2])
    bias = expect_matrix(path, tensors, names[3])
    parts, size, features = encoder.shape
    shape = (features, parts, size) if axes == "m n d" else (parts, features, size)
    if tuple(decoder.shape) != shape or tuple(bias.shape) != (parts, size):
        raise DamagedFile(
            f"{path}: {names[0]} {tuple(encoder.shape)}, {names[1]} {tuple(decoder.shape)} and "
            f"{names[3]} {tuple(bias.shape)} are not of one crosscoder"
        )
    wide = decoder if axes == "m n d" else decoder.permute(1, 0, 2)
    stored = StoredDictionary(
        weight=Rows(encoder.permute(2, 0, 1).flatten(1), names[0]),
        bias=expect_vector(path, tensors, names[2]),
        decoder=Rows(wide.flatten(1), names[1]),
        decoder_bias=expect_vector(path, {names[3]: bias.flatten()}, names[3]),
    )
    warnings.warn(
        f"{path} is a crosscoder of {parts} places, which its file does not name: of {parts} "
        "layers it is edited and measured at 'language.A+language.B', in the order of its axis; "
        "of several models it is of no use, and check() explains little",
        VlmEditWarning,
        stacklevel=4,
    )
    return Transcoder(stored, "", "", parts=parts)


FORMAT = Format("crosscoder", "a .pt or .safetensors with W_enc of three axes", recognises, read)


def _peek(source: Source) -> Mapping[Any, Any]:
    if source.path.suffix == ".safetensors":
        try:
            return source.tensors(source.path.name)
        except DamagedFile:
            return {}
    return peek_mapping(source)


def _open(source: Source) -> Mapping[str, Any]:
    if source.path.suffix == ".safetensors":
        return source.tensors(source.path.name)
    return open_mapping(source)
