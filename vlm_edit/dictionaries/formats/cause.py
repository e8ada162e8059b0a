"""Tell why a file of weights cannot be read: what lies there in their place."""

from __future__ import annotations

import json
import struct
from pathlib import Path

# What torch.save wrote up to version 1.5, and what pickle.dump writes: a protocol, then opcodes.
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")
_SAFETENSORS = ".safetensors"
_AGAIN = "fetch it again"


def cause(path: Path) -> str | None:
    """Say what is wrong with a file of weights, by its first bytes and its size.

    Args:
        path: A file in any format of weights; its ending says which is expected.

    Returns:
        What is wrong and how to mend it, to follow the path in a message; None where nothing of
        what is known to go wrong is seen.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "sae.pt")
        ...     _ = path.write_bytes(b"")
        ...     cause(path)
        'is empty: fetch it again'
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"cannot be read: {error}"
    if not size:
        return f"is empty: {_AGAIN}"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a pointer of Git LFS, not the weights it stands for: run `git lfs pull` in the "
            "repository, or name the repository on the hub"
        )
    if head.lstrip().lower().startswith(_PAGES):
        return (
            "is a web page, not weights, such as a page that asks to log in or says that nothing "
            f"is there: {_AGAIN}, logged in where the repository asks for it"
        )
    if path.suffix == _SAFETENSORS:
        return _short_safetensors(path, head, size)
    if head.startswith(_PICKLES):
        return (
            "is a pickle, as torch.save wrote up to version 1.5 or with "
            "_use_new_zipfile_serialization=False: reading it would run code from it; open it "
            "where you trust it and save its state_dict() anew with torch.save"
        )
    return _short_zip(path, head)


def _short_safetensors(path: Path, head: bytes, size: int) -> str | None:
    """Compare a file's size with what its header says of it."""
    length = int(struct.unpack("<Q", head[:8])[0]) if len(head) >= 8 else size
    if length + 8 > size:
        known = head[8:9] == b"{" or len(head) < 8
        return f"is cut off within its header, at {size} bytes: {_AGAIN}" if known else None
    if length > 100 << 20:
        return None
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        ends = [item["data_offsets"][1] for n, item in header.items() if n != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
        short = size < whole
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    if not short:
        return None
    return f"is cut off: it holds {size} of the {whole} bytes that its header names: {_AGAIN}"


def _short_zip(path: Path, head: bytes) -> str | None:
    """Look for the list of entries, which stands at a zip's end."""
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - (1 << 16) - 22))
            whole = b"PK\x05\x06" in file.read()
    except OSError:
        return None
    return None if whole else f"is cut off: it begins as a zip and has no end: {_AGAIN}"
