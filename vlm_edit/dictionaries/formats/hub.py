"""Find a dictionary: a path, or a repository on the hub."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from glob import escape
from itertools import islice
from pathlib import Path, PurePosixPath

from vlm_edit.dictionaries.formats.source import INDEX
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.ground.hub import REPOSITORY, asked, listed, listing

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".npz")
_LOOKED_AT = 5000
# Files of which a folder may hold one for each layer, each a dictionary by itself.
_LAYER = re.compile(r"layer_?\d+\.safetensors")


def locate(path: str | os.PathLike[str], file: str | None, revision: str | None) -> Path:
    """Return the file or folder that is meant.

    Args:
        path: A path, which wins, or ``owner/name`` of a repository on the hub.
        file: A file or folder in it; None for the whole, if it holds one dictionary.
        revision: Of a repository.

    Returns:
        A path that exists. Of a repository only what is meant, and the configs and READMEs beside
        and above it, are fetched into huggingface_hub's cache, or taken from there.

    Raises:
        VlmEditError: There is none, it cannot be fetched, or it holds several.
    """
    if not os.fspath(path):
        raise BadArgument("no dictionary at '': the path is empty")
    root = Path(path)
    if root.exists():
        if revision is not None:
            raise BadArgument(f"{root} is a path: revision={revision!r} goes with a repository")
        return _inside(root, file)
    if not REPOSITORY.fullmatch(str(path)):
        raise BadArgument(f"no dictionary at {str(path)!r}: the path does not exist")
    return _fetch(str(path), file, revision)


def candidates(path: Path) -> list[str]:
    """List folders below a folder that hold weights, or files of layers, as ``file`` names them."""
    files = [p for p in islice(path.rglob("*"), _LOOKED_AT) if p.suffix in WEIGHTS]
    of_layers = Counter(p.parent for p in files if _LAYER.fullmatch(p.name))
    alone = (_LAYER.fullmatch(p.name) and of_layers[p.parent] > 1 for p in files)
    places = (p if one else p.parent for p, one in zip(files, alone, strict=True))
    return sorted({place.relative_to(path).as_posix() for place in places} - {"."})


def _inside(root: Path, file: str | None) -> Path:
    place = root if file is None else root / file
    if not place.exists():
        there = listed(candidates(root)) if root.is_dir() else ""
        raise BadArgument(
            f"no dictionary at {str(place)!r}: {file!r} is not in {str(root)!r}"
            + (f", which has {there}" if there else "")
        )
    return place


def _fetch(name: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files, cache = listing(name, revision)
    place = _wanted(name, files, file)
    if cache is not None:
        return cache / place
    patterns = [escape(f) for f in files if _belongs(PurePosixPath(f), PurePosixPath(place))]
    folder = asked(
        name, lambda: snapshot_download(name, revision=revision, allow_patterns=patterns)
    )
    return Path(folder) / place


def _wanted(name: str, files: Sequence[str], file: str | None) -> str:
    """Return the file or folder of a repository that is meant."""
    if file is not None:
        place = PurePosixPath(file).as_posix()
        if place in files or any(f.startswith(f"{place}/") for f in files):
            return place
        raise BadArgument(
            f"the repository {name} (or what is cached of it) has no {file!r}; it has "
            f"{listed(_places(files)) or 'no weights'}"
        )
    places = _places(files)
    if len(places) == 1:
        return places[0]
    if places == ["image", "text"]:  # one dictionary for each stream
        return "."
    if not places:
        raise VlmEditError(f"the repository {name} (or what is cached of it) has no weights")
    raise BadArgument(
        f"the repository {name} holds several dictionaries: say which with file=, one of "
        f"{listed(places)}"
    )


def _places(files: Sequence[str]) -> list[str]:
    """List folders with weights, or the files where a folder has several that stand alone."""
    folders: dict[str, list[str]] = {}
    for file in files:
        if file.endswith(WEIGHTS):
            folders.setdefault(PurePosixPath(file).parent.as_posix(), []).append(file)
    places = []
    for folder, contents in folders.items():
        alone = [file for file in contents if _is_alone(PurePosixPath(file))]
        places += alone if len(alone) > 1 else [folder]
    return sorted(places)


def _is_alone(file: PurePosixPath) -> bool:
    return file.suffix != ".safetensors" or bool(_LAYER.fullmatch(file.name))


def _belongs(file: PurePosixPath, wanted: PurePosixPath) -> bool:
    """Say whether a file is needed: in what is wanted, a part of it, or what tells of it above."""
    if wanted == PurePosixPath("."):
        return len(file.parts) == 1 or str(file.parent) in ("image", "text")
    if wanted == file or wanted in file.parents:
        return True
    whole = wanted.name.removesuffix(f".safetensors{INDEX}")
    if whole != wanted.name and file.parent == wanted.parent and file.suffix == ".safetensors":
        return file.name.startswith(f"{whole}-")  # model-00001-of-00002.safetensors
    told = file.suffix in (".json", ".yaml", ".yml") or file.name == "README.md"
    return told and file.parent in wanted.parents
