"""Tensors with a JSON header and a checksum of both in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.files.whole import write_bytes, write_pieces

HEADER = "vlm_edit"
CHECKSUM = "checksum"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    what: str = "tensors",
) -> None:
    """Write tensors and a header, with a checksum of both.

    Args:
        path: The file; its folder must exist.
        tensors: Any, on any device.
        header: JSON-able values.
        what: Name of what the file holds, for messages.

    Raises:
        VlmEditError: It cannot be written; what was there before is still there.

    Example:
        >>> import pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "sums.safetensors")
        ...     write_tensors(file, {"sums": torch.ones(2)}, {"version": 1})
        ...     header, tensors = read_tensors(file)
        >>> header["version"], tensors["sums"]
        (1, tensor([1., 1.]))
    """
    try:
        data = pack_tensors(tensors, header)
    except SafetensorError as error:
        raise VlmEditError(f"cannot write the {what} to {str(path)!r}: {error}") from error
    write_bytes(path, data, what)


def pack_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return the bytes that ``write_tensors`` writes."""
    # A copy: safetensors refuses tensors that share memory, as those of two edits may.
    copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
    fields = {key: value for key, value in header.items() if key != CHECKSUM}
    fields[CHECKSUM] = checksum(fields, copies)
    return save(copies, metadata={HEADER: json.dumps(fields)})


def write_joined(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Sequence[Tensor]],
    header: Mapping[str, Any],
    what: str = "tensors",
) -> str:
    """Write tensors that are there in pieces, as ``write_tensors`` does, without a copy of them.

    Args:
        path: The file; its folder must exist.
        tensors: One piece or more of each, on the CPU, that joined along their first axis are it.
        header: JSON-able values.
        what: Name of what the file holds, for messages.

    Returns:
        The checksum in the file.

    Raises:
        VlmEditError: It cannot be written; what was there before is still there.

    Example:
        >>> import pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "x.safetensors")
        ...     _ = write_joined(file, {"x": [torch.ones(1), torch.zeros(2)]}, {})
        ...     read_tensors(file)[1]["x"]
        tensor([1., 0., 0.])
    """
    fields = {key: value for key, value in header.items() if key != CHECKSUM}
    fields[CHECKSUM] = _checksum(fields, tensors)
    # The widest numbers first, so that every tensor begins where a mapped one may.
    order = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    listed: dict[str, Any] = {"__metadata__": {HEADER: json.dumps(fields)}}
    end = 0
    for name in order:
        begin, end = end, end + sum(piece.nbytes for piece in tensors[name])
        listed[name] = {
            "dtype": _NAMES[tensors[name][0].dtype],
            "shape": _shape(tensors[name]),
            "data_offsets": [begin, end],
        }
    head = json.dumps(listed).encode()
    head += b" " * (-len(head) % 8)
    pieces = (_bytes(piece) for name in order for piece in tensors[name])
    write_pieces(path, (struct.pack("<Q", len(head)), head, *pieces), what)
    return str(fields[CHECKSUM])


def read_tensors(
    path: str | os.PathLike[str], what: str = "tensors", verify: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file that ``write_tensors`` wrote.

    Args:
        path: The file.
        what: Name of what it should hold, for messages.
        verify: Refuse what does not have its checksum; files of former versions may have none.

    Raises:
        VlmEditError: No such file, damaged, or without a header of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise BadArgument(f"no {what} at {str(path)!r}: the file does not exist")
    try:
        data = path.read_bytes()
        tensors = load(data)
        length = struct.unpack("<Q", data[:8])[0]
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        header = (
            json.loads(metadata[HEADER], parse_constant=_refuse) if HEADER in metadata else None
        )
    except (SafetensorError, OSError, LookupError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFile(
            f"{path} is a safetensors file but not a {what}: it has no {HEADER!r} header"
        )
    if verify and CHECKSUM in header and not has_checksum(header, tensors):
        raise DamagedFile(
            f"{path} is damaged: it does not hold what was saved, a byte or more of the {what} has "
            "changed; take a copy of it, or delete it and make it anew"
        )
    return header, tensors


def read_header(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the header of a safetensors file alone, without its tensors; None where it has none.

    Args:
        path: The file.

    Raises:
        DamagedFile: It cannot be read as such a file.

    Example:
        >>> import pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "sums.safetensors")
        ...     write_tensors(file, {"sums": torch.ones(2)}, {"version": 1})
        ...     read_header(file)["version"]
        1
    """
    try:
        with Path(path).open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError("it is cut off")
            metadata = json.loads(file.read(length)).get("__metadata__") or {}
            header = json.loads(metadata[HEADER]) if HEADER in metadata else None
    except (OSError, LookupError, ValueError, AttributeError, struct.error) as error:
        raise DamagedFile(f"{path} is not a readable safetensors file: {error}") from error
    return header if isinstance(header, dict) else None


def has_checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether header and tensors are those that the header's checksum was made of."""
    rest = {key: value for key, value in header.items() if key != CHECKSUM}
    return bool(header[CHECKSUM] == checksum(rest, tensors))


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return 32 hexadecimal digits of all that a file holds."""
    return _checksum(header, {name: (tensor,) for name, tensor in tensors.items()})


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Sequence[Tensor]]) -> str:
    fields = json.loads(json.dumps(header))  # keys as they will be read, for their order
    hasher = hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        pieces = tensors[name]
        hasher.update(f"\n{name} {pieces[0].dtype} {_shape(pieces)}\n".encode())
        for piece in pieces:
            hasher.update(_bytes(piece))
    return hasher.hexdigest()


def _shape(pieces: Sequence[Tensor]) -> list[int]:
    first = list(pieces[0].shape)
    return first if len(pieces) == 1 else [sum(map(len, pieces)), *first[1:]]


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")
