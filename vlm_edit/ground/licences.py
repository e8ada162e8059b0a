"""The licence that a model's or a dictionary's own page states; never one that is guessed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlm_edit.ground.hub import REPOSITORY, cached

CARD = "README.md"
UNKNOWN = "not known"
_MOST = 1 << 16  # bytes of a page that are looked at
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t\r]*$", re.DOTALL | re.MULTILINE)
_LONGEST = 80


def licence_in(folder: Path) -> str | None:
    r"""Return the licence that the metadata of a folder's README.md states; None without one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "README.md").write_text("---\nlicense: mit\n---\n# An SAE")
        ...     licence_in(Path(folder))
        'mit'
    """
    import yaml  # huggingface_hub brings it

    try:
        with (folder / CARD).open("rb") as file:
            text = file.read(_MOST).decode("utf-8", "replace")
        front = _FRONT.match(text)
        told: Any = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return _words(told) if isinstance(told, dict) else None


def licence_of(name: str) -> str | None:
    """Return the licence of what lies in a folder, or in the hub's cache under ``owner/name``.

    Nothing is fetched: what is not here has no licence that is known.
    """
    folder = Path(name)
    if folder.is_dir():
        return licence_in(folder)
    if not REPOSITORY.fullmatch(name):
        return None
    snapshot = cached(name, None)
    return None if snapshot is None else licence_in(snapshot)


def licence_above(place: Path) -> str | None:
    """Return the licence that is stated where a file or folder lies.

    Of what lies in the hub's cache the pages above it are looked at too, up to the repository's.
    """
    folder = place if place.is_dir() else place.parent
    pages = [folder]
    for parent in folder.absolute().parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            within = folder.absolute().relative_to(parent)
            pages = [parent.joinpath(*within.parts[:n]) for n in range(len(within.parts), 0, -1)]
    return next((found for page in pages if (found := licence_in(page))), None)


def _words(told: dict[Any, Any]) -> str | None:
    """Return the hub's name of a licence, or the one that stands for ``other``."""
    value = told.get("license")
    if value == "other" and isinstance(told.get("license_name"), str):
        value = told["license_name"]
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one.strip() for one in values):
        return None
    return " ".join(", ".join(values).split())[:_LONGEST]
