"""The one torch file that is meant: the source itself, or the only one of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.ground.errors import BadArgument, DamagedFile


def torch_files(source: Source) -> list[str]:
    """List the torch files right in a folder, sorted, or the source if it is one."""
    return sorted(name for pattern in ("*.pt", "*.pth") for name in source.names(pattern))


def the_torch_file(source: Source) -> str | None:
    """Return what to hand to ``Source.torch``: the folder's torch file's name, None for a file.

    Raises:
        VlmEditError: The folder has none, or several.
    """
    if not source.is_folder:
        return None
    files = torch_files(source)
    if not files:
        raise BadArgument(f"{source.path} holds no .pt or .pth file")
    if len(files) > 1:
        some = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
        raise BadArgument(f"{source.path} holds {len(files)} torch files: name one with file= "
                           f"({some})")  # fmt: skip
    return files[0]


def peek_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """Return what a source's torch file holds, of several the first's; empty if no mapping."""
    names = torch_files(source)
    if not names:
        return {}
    contents = source.peek_torch(names[0] if source.is_folder else None, allow)
    return contents if isinstance(contents, Mapping) else {}


def open_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """Open what a source's one torch file holds.

    Raises:
        VlmEditError: As ``the_torch_file`` and ``Source.torch``, or not a mapping.
    """
    contents = source.torch(the_torch_file(source), allow)
    if not isinstance(contents, Mapping):
        raise DamagedFile(f"{source.path} holds a {type(contents).__name__}, expected a dictionary")
    return contents


def mapping(where: object, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping inside what has been opened.

    Raises:
        VlmEditError: Missing, or something else.
    """
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise DamagedFile(f"{where}: {name} is missing or is not a dictionary")
    return value
