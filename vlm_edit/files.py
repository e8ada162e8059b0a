"""Tensors with a JSON header in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vlm_edit.errors import VlmEditError

HEADER = "vlm_edit"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file: first beside the target, then moved there whole.

    Args:
        path: The file; its folder must exist.
        data: What it holds.

    Raises:
        OSError: It cannot be written; what was there before is still there.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    what: str = "tensors",
) -> None:
    """Write tensors and a header.

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
        >>> header, tensors["sums"]
        ({'version': 1}, tensor([1., 1.]))
    """
    # A copy: safetensors refuses tensors that share memory, as those of two edits may.
    owned = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
    try:
        # Not save_file: it writes files that only their owner may read.
        write_bytes(path, save(owned, metadata={HEADER: json.dumps(header)}))
    except (OSError, SafetensorError) as error:
        raise VlmEditError(f"cannot write the {what} to {str(path)!r}: {error}") from error


def read_tensors(
    path: str | os.PathLike[str], what: str = "tensors"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file that ``write_tensors`` wrote.

    Args:
        path: The file.
        what: Name of what it should hold, for messages.

    Raises:
        VlmEditError: No such file, damaged, or without a header of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise VlmEditError(f"no {what} at {str(path)!r}: the file does not exist")
    try:
        data = path.read_bytes()
        tensors = load(data)
        length = struct.unpack("<Q", data[:8])[0]
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        header = (
            json.loads(metadata[HEADER], parse_constant=_refuse) if HEADER in metadata else None
        )
    except (SafetensorError, OSError, LookupError, ValueError, RecursionError) as error:
        raise VlmEditError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise VlmEditError(
            f"{path} is a safetensors file but not a {what}: it has no {HEADER!r} header"
        )
    return header, tensors


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")
