"""What is kept with a run of its single features, as its page takes it."""

from __future__ import annotations

from pathlib import Path

from vlm_edit.cli import kept
from vlm_edit.report import Details, facts_of


def details_of(run: Path, checksum: str) -> Details | None:
    """Return what tells of a feature its name, effects, neighbours and maps; None where none are.

    Args:
        run: The folder.
        checksum: Of the run in it.

    Raises:
        VlmEditError: A file that is kept is damaged.
    """
    names, maps = kept.names(run, checksum), kept.maps(run, checksum)
    return None if names is None and maps is None else facts_of(maps, names)
