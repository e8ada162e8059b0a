"""Where verbs write: nothing that is there is replaced unasked, nor before the new is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from vlm_edit.ground.errors import BadArgument


def expect_free(places: Iterable[Path], overwrite: bool, mend: str) -> None:
    """Refuse to replace what is there, unless that is asked for.

    Args:
        places: Files and folders that the verb will write.
        overwrite: Whether ``--overwrite`` was given.
        mend: What else helps, such as "name another file with --save".

    Raises:
        BadArgument: One of them is there already.
    """
    there = [place for place in places if place.exists() and not _is_device(place)]
    if there and not overwrite:
        raise BadArgument(
            f"{there[0]} is there already, and nothing has changed: {mend}, or replace it with "
            "--overwrite"
        )


def way_back(page: str | None, folder: Path) -> str | None:
    """Return where a page lies as seen from those of a folder.

    Args:
        page: As it was typed; None for none.
        folder: Where the page that leads back will be written.

    Raises:
        BadArgument: It is not there.
    """
    if page is None:
        return None
    if not Path(page).is_file():
        raise BadArgument(f"--back {page}: there is no such page; vlm-edit report writes a run's")
    # As browsers read it: a name may hold what means something in an address.
    return quote(Path(os.path.relpath(page, folder)).as_posix())


def _is_device(place: Path) -> bool:
    """Say whether bytes go there and nothing is replaced, such as a terminal or /dev/null."""
    return not place.is_file() and not place.is_dir()
