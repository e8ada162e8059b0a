"""Open numpy's ``.npz`` as views of the mapped file, without numpy's unpickler."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.cause import cause
from vlm_edit.ground.errors import DamagedFile

_MOST_ENTRIES = 100
_LOCAL = struct.Struct("<26xHH")  # of a zip's own header before each entry: two lengths at its end
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npz_names(path: Path) -> frozenset[str]:
    """List the arrays of an ``.npz`` from its list of entries alone; none if it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # a damaged zip raises anything
        return frozenset()


def read_npz(path: Path) -> dict[str, Tensor]:
    """Open the arrays that ``numpy.savez`` wrote, as views of the file.

    Raises:
        VlmEditError: No such file, damaged, compressed, arrays of objects, or one that claims more
            numbers than the file holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ENTRIES:
                raise DamagedFile(f"{path} holds {len(entries)} arrays: not one dictionary")
            return {e.filename.removesuffix(".npy"): _view(path, archive, e) for e in entries}
    except DamagedFile:
        raise
    except Exception as error:  # damaged bytes raise anything
        reason = cause(path) or f"is not a readable .npz file: {str(error)[:200]}"
        raise DamagedFile(f"{path} {reason}") from error


def _view(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    name = entry.filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise DamagedFile(f"{path}: {name!r} is compressed: save it anew with numpy.savez")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise DamagedFile(f"{path}: {name!r} is of version {version} of numpy's format")
        shape, fortran, dtype = _HEADERS[version](file)
        begin = file.tell()
    if dtype.kind != "f" or not dtype.isnative:
        raise DamagedFile(f"{path}: {name!r} holds {dtype}, expected floating-point numbers")
    count = _count(shape)
    if count * dtype.itemsize != entry.file_size - begin:
        raise DamagedFile(
            f"{path}: {name!r} claims shape {shape}, and holds {entry.file_size - begin} bytes"
        )
    return _map(path, entry.header_offset, begin, (shape, fortran, dtype))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:  # numpy's product would wrap around
        count *= size
    return count


def _map(path: Path, offset: int, begin: int, kind: tuple[tuple[int, ...], bool, Any]) -> Tensor:
    """Map an array whose entry begins at an offset of the file."""
    shape, fortran, dtype = kind
    with path.open("rb") as file:
        file.seek(offset)
        lengths = _LOCAL.unpack(file.read(_LOCAL.size))
    begin += offset + _LOCAL.size + sum(lengths)
    if begin + _count(shape) * dtype.itemsize > path.stat().st_size:
        raise DamagedFile(f"{path} claims more bytes than it has: the file is damaged")
    if not _count(shape):
        return torch.empty(shape)
    # A private copy of each page that is written to, which nobody does: torch wants it writable.
    mapped = np.memmap(path, dtype, "c", begin, shape, "F" if fortran else "C")
    return torch.from_numpy(mapped)
