"""Find a dictionary: a path, or a repository on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_edit.errors import VlmEditError


def locate(path: str | os.PathLike[str], file: str | None, revision: str | None) -> Path:
    """The file or folder that is meant.

    Raises:
        VlmEditError: There is none.
    """
    del revision
    found = Path(path) if file is None else Path(path) / file
    if not found.exists():
        raise VlmEditError(f"no dictionary at {str(found)!r}: the path does not exist")
    return found
