"""The one torch file that is meant: the source itself, or the only one of its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.ground.errors import BadArgument, DamagedFile

# What Lightning keeps beside a model's tensors, and what it keeps these under.
LIGHTNING, STATE = "pytorch-lightning_version", "state_dict"


def torch_files(source: Source) -> list[str]:
    """List the torch files right in a folder, sorted, or the source if it is one."""
    return sorted(name for pattern in ("*.pt", "*.pth", "*.ckpt") for name in source.names(pattern))


def the_torch_file(source: Source) -> str | None:
    """Return what to hand to ``Source.torch``: the folder's torch file's name, None for a file.

    Raises:
        VlmEditError: The folder has none, or several.
    """
    if not source.is_folder:
        return None
    files = torch_files(source)
    if not files:
        raise BadArgument(f"{source.path} holds no .pt, .pth or .ckpt file")
    if len(files) > 1:
        some = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
        raise BadArgument(f"{source.path} holds {len(files)} torch files: name one with file= "
                           f"({some})")  # fmt: skip
    return files[0]


def peek_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """Return what a source's torch file holds, of several the first's; empty if no mapping.

    Of a checkpoint of Lightning, whose tensors are all of one module, that module's tensors.
    """
    names = torch_files(source)
    if not names:
        return {}
    contents = source.peek_torch(names[0] if source.is_folder else None, allow)
    return _inside(contents) if isinstance(contents, Mapping) else {}


def open_mapping(source: Source, allow: Sequence[Any] = ()) -> Mapping[str, Any]:
    """Open what a source's one torch file holds, as ``peek_mapping`` returns it.

    Raises:
        VlmEditError: As ``the_torch_file`` and ``Source.torch``, or not a mapping.
    """
    contents = source.torch(the_torch_file(source), allow)
    if not isinstance(contents, Mapping):
        raise DamagedFile(f"{source.path} holds a {type(contents).__name__}, expected a dictionary")
    return _inside(contents)


def _inside(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    state = contents.get(STATE)
    if LIGHTNING not in contents or not isinstance(state, Mapping) or not state:
        return contents
    modules = [str(name).split(".")[:-1] for name in state]
    shared = len(os.path.commonprefix(modules))
    return {".".join(str(name).split(".")[shared:]): value for name, value in state.items()}


def mapping(where: object, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping inside what has been opened.

    Raises:
        VlmEditError: Missing, or something else.
    """
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise DamagedFile(f"{where}: {name} is missing or is not a dictionary")
    return value
