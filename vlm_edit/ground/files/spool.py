"""A file of bytes that are too many to hold, gone with whoever keeps it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where some bytes lie.

    Attributes:
        path: The file.
        start: Where they begin.
        length: How many there are.
    """

    path: Path
    start: int
    length: int


class Spool:
    """Keep bytes in a temporary file, made when it is needed.

    Example:
        >>> spool = Spool()
        >>> spool.add(b"some").start, spool.add(b"more").start
        (0, 4)
    """

    def __init__(self) -> None:
        self._file: Any = None

    def add(self, data: bytes) -> Place:
        """Write bytes behind those that are there, and return where they are."""
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="vlm-edit-")  # noqa: SIM115
        start = self._file.seek(0, 2)
        self._file.write(data)
        self._file.flush()
        return Place(Path(self._file.name), start, len(data))
