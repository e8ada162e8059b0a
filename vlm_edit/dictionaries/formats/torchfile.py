"""The one torch file that is meant: the source itself, or the only one of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.ground.errors import VlmEditError


def torch_files(source: Source) -> list[str]:
    """Names of the torch files right in a folder, sorted, or of the source if it is one."""
    return sorted(name for pattern in ("*.pt", "*.pth") for name in source.names(pattern))


def the_torch_file(source: Source) -> str | None:
    """What to hand to ``Source.torch``: the name of the folder's torch file, None for a file.

    Raises:
        VlmEditError: The folder has none, or several.
    """
    if not source.is_folder:
        return None
    found = torch_files(source)
    if not found:
        raise VlmEditError(f"{source.path} holds no .pt or .pth file")
    if len(found) > 1:
        some = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise VlmEditError(f"{source.path} holds {len(found)} torch files: name one with file= "
                           f"({some})")  # fmt: skip
    return found[0]


def peek_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """What a source's torch file holds, of several the first's; empty if it is no mapping."""
    names = torch_files(source)
    if not names:
        return {}
    found = source.peek_torch(names[0] if source.is_folder else None, allow)
    return found if isinstance(found, Mapping) else {}


def open_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """What a source's one torch file holds.

    Raises:
        VlmEditError: As ``the_torch_file`` and ``Source.torch``, or not a mapping.
    """
    found = source.torch(the_torch_file(source), allow)
    if not isinstance(found, Mapping):
        raise VlmEditError(f"{source.path} holds a {type(found).__name__}, expected a dictionary")
    return found


def mapping(where: object, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside what has been opened.

    Raises:
        VlmEditError: Missing, or something else.
    """
    found = values.get(name)
    if not isinstance(found, Mapping):
        raise VlmEditError(f"{where}: {name} is missing or is not a dictionary")
    return found
