"""Tar files as webdataset writes them: files of one name are a sample, whose endings say what."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import DamagedFile
from vlm_edit.measuring.gathering import TEXT_COLUMNS, Encoded, Source, Stretch
from vlm_edit.measuring.pictures import IMAGE_ENDINGS
from vlm_edit.measuring.shards.source import Sample, texts_of

_IMAGES = (*IMAGE_ENDINGS, ".avif", ".ppm")
_TEXTS = (".txt", ".text", ".caption")
_MOST_TEXT = 1 << 20  # bytes of a text, or of a sample's JSON


def read_tar(path: Path, image: str | None = None, text: str | None = None) -> Iterator[Sample]:
    """Yield the samples of a tar file; of one that is not compressed no image is read.

    Args:
        path: The file.
        image: The ending of images, such as ``jpg``; by default any of images.
        text: The ending of texts, or the name of the caption in the sample's JSON.

    Raises:
        DamagedFile: It is no tar file, or ends early; samples before that have come.
    """
    key: str | None = None
    parts: dict[str, Any] = {}
    try:
        plain = _is_plain(path)
        with tarfile.open(path, "r:*") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                if not member.isfile():
                    continue
                name, ending = _split(member.name)
                if name != key and parts:
                    yield _sample(key or "", parts, image, text)
                    parts = {}
                key = name
                parts[ending] = _part(archive, member, path, ending, plain)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedFile(f"{path}: {error or type(error).__name__}") from error
    if parts:
        yield _sample(key or "", parts, image, text)


def _is_plain(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head[257:262] == b"ustar"


def _split(name: str) -> tuple[str, str]:
    """Return the path up to the first dot of the file's name, and the rest."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _part(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, ending: str, plain: bool
) -> Source | bytes | None:
    """Return where an image is, or its bytes, or those of a text; None for what else there is."""
    name = f"{path}: {member.name}"
    if ending.endswith(_IMAGES):
        if plain:
            return Stretch(path, member.offset_data, member.size, name)
        return Encoded(_bytes(archive, member), name)
    if ending.endswith((*_TEXTS, ".json")) and member.size <= _MOST_TEXT:
        return _bytes(archive, member)
    return None


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _sample(key: str, parts: dict[str, Any], image: str | None, text: str | None) -> Sample:
    wanted = _IMAGES if image is None else (f".{image.lstrip('.').lower()}",)
    shown = next((v for e, v in parts.items() if v is not None and e.endswith(wanted)), None)
    said, columns = _said(parts, text)
    if not isinstance(shown, Encoded | Stretch):
        return Sample(key, None, (), columns, f"no image among {', '.join(parts) or 'its files'}")
    if not said:
        return Sample(key, None, (), columns, "it has no text")
    return Sample(key, shown, said, columns)


def _said(parts: dict[str, Any], text: str | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the texts of a sample, and what else its JSON says."""
    facts: Any = {}
    for ending, value in parts.items():
        if ending.endswith(".json") and isinstance(value, bytes):
            try:
                facts = json.loads(value)
            except (ValueError, RecursionError):
                facts = {}
    facts = facts if isinstance(facts, dict) else {}
    columns = {
        str(k): str(v) for k, v in facts.items() if isinstance(v, str | int | float) and k != text
    }
    if text is not None and text in facts:
        return texts_of(facts[text]), columns
    endings = _TEXTS if text is None else (f".{text.lstrip('.').lower()}",)
    for ending, value in parts.items():
        if ending.endswith(endings) and isinstance(value, bytes):
            return texts_of(value), columns
    names = TEXT_COLUMNS if text is None else (text,)
    named = next((facts[name] for name in names if name in facts), "")
    return texts_of(named), columns
