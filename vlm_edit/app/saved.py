"""Patches as files: what a visitor takes home, and what one brings."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex

from vlm_edit.app.desk import Desk
from vlm_edit.app.pictures import without_folder
from vlm_edit.ground.errors import DamagedFile, VlmEditError, line
from vlm_edit.ground.files import make_folder
from vlm_edit.patches import Patch, load_patch


def save_patch(desk: Desk, patch: Patch, folder: Path) -> Path:
    """Write a patch where the server may hand it out, in a folder that nobody can guess.

    Args:
        desk: Whose host it is for.
        patch: As it was turned.
        folder: Of the server.

    Returns:
        The file.

    Raises:
        VlmEditError: A rule that cannot be saved.
    """
    path = make_folder(folder / token_hex(16)) / "patch.safetensors"
    patch.save(path, desk.host)
    return path


def read_patch(desk: Desk, path: str) -> Patch:
    """Read a patch that a visitor brings; nothing of it is run, and it must fit the host.

    Args:
        desk: Whose host it is to edit.
        path: Where the server has put it.

    Raises:
        VlmEditError: No patch, a damaged one, or one for another host.
    """
    name = Path(path).name
    try:
        patch = load_patch(path)
        patch.check(desk.host)
    except VlmEditError as error:
        told = without_folder(str(error), path).removeprefix(f"{name}: ")
        told = told.replace("; or pass check_host=False", "")
        raise type(error)(f"{line(name)} was not taken: {line(told)}") from error
    except Exception as error:  # whatever a stranger's file does to the reader
        raise DamagedFile(
            f"{line(name)} was not taken: it could not be read ({type(error).__name__})"
        ) from error
    return patch
