"""Texts without the folders of the machine they were made on, which concern no reader."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from vlm_edit.measuring import Measurement, Pairs, is_sharded

# A path from a root that stands in a sentence, up to what cannot be of it; addresses of the web
# have their slashes behind a colon or a letter.
_PATH = re.compile(
    r"(?<![\w/:.~\\])(?:~?/|[A-Za-z]:[\\/]|file://+)[^\s'\"<>|,;()\[\]]*[\\/][^\s'\"<>|,;()\[\]]*"
)
_QUOTED = re.compile(r"(['\"])((?:~?/|[A-Za-z]:[\\/]|file://)[^'\"]*)\1")
_ROOTED = re.compile(r"~?/|[A-Za-z]:[\\/]|file://|\\\\")


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    """Return a text with the last part of every path from a root in the path's place.

    Args:
        text: A path, or a sentence that may hold some.
        known: Folders that may stand in it; others are found up to a space.

    Example:
        >>> without_folders("/home/me/some photos/pairs.csv")
        'pairs.csv'
        >>> without_folders("see /home/me/pairs.csv: 3 pairs, at https://site.org/a/b")
        'see pairs.csv: 3 pairs, at https://site.org/a/b'
    """
    if _ROOTED.match(text) and not re.search(r"[:;]\s", text):
        return _last(text)
    for folder in sorted(known, key=len, reverse=True):
        text = text.replace(f"{folder}/", "").replace(f"{folder}\\", "")
    text = _QUOTED.sub(lambda match: f"{match[1]}{_last(match[2])}{match[1]}", text)
    return _PATH.sub(lambda match: _last(match[0]), text)


def folders_of(pairs: Pairs, measurement: Measurement) -> set[str]:
    """Return the folders that reasons of pairs left out may name."""
    listed = measurement.provenance.get("pairs", {})
    names = [pairs.name, *([str(listed.get("name"))] if isinstance(listed, dict) else [])]
    numbers = [number for number, _ in measurement.skipped]
    images = [] if is_sharded(pairs.name) else [pairs.images[n] for n in numbers if pairs.has(n)]
    files = [Path(name) for name in names] + [one for one in images if isinstance(one, Path)]
    return {str(file.parent) for file in files if file.is_absolute()}


def _last(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    end = path[len(path.rstrip(":.")) :]
    return (kind(path.rstrip(":.")).name or path.rstrip(":.")) + end
