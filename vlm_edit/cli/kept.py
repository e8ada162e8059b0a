"""What commands leave with a run for its page: edits, drawings, a census, maps, names."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import PngImagePlugin

from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.ground.files import locked, make_folder, packed, write_new, write_text
from vlm_edit.measures.nulls import Census
from vlm_edit.measuring import Maps, load_maps, open_image, size_of
from vlm_edit.report import Examples, Picture, Table

EDITS, DRAWINGS, CENSUS, NAMES = "edits", "drawings", "census.json", "names.json"
MAPS = "maps.safetensors"
_ENDINGS = {EDITS: ".json", DRAWINGS: ".png"}
_RUN = "run"
# Keywords of the PNG standard.
_TITLE, _TOLD, _NOTE, _SOURCE = "Title", "Description", "Comment", "Source"

Kept = TypeVar("Kept")


def clear(run: Path) -> None:
    """Delete what is kept, such as that of a run that was here before."""
    for folder in (EDITS, DRAWINGS):
        shutil.rmtree(run / folder, ignore_errors=True)
    for file in (CENSUS, NAMES, MAPS):
        (run / file).unlink(missing_ok=True)


def save_edit(run: Path, table: Table, examples: Examples, of: str) -> None:
    """Keep what an edit did, of the run with this checksum."""
    document = {
        _RUN: of,
        "table": [table.title, list(table.columns), [list(row) for row in table.rows], table.note],
        "examples": [
            examples.title,
            [[number, list(lines)] for number, lines in examples.items],
            examples.note,
        ],
    }
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    _keep(run, EDITS, text.encode("utf-8", "replace"), _edit)


def save_picture(run: Path, picture: Picture, of: str) -> None:
    """Keep a grid of drawings, likewise; its words stand in the file itself."""
    words = PngImagePlugin.PngInfo()
    texts = {_TITLE: picture.title, _TOLD: picture.told, _NOTE: picture.note, _SOURCE: of}
    for key, text in texts.items():
        # Arguments may hold halves of characters that UTF-8 cannot write.
        words.add_itxt(key, text.encode("utf-8", "replace").decode("utf-8"))
    data = packed(lambda file: picture.image.save(file, "PNG", pnginfo=words))
    _keep(run, DRAWINGS, data, _picture)


def save_census(run: Path, census: Census, of: str) -> Path:
    """Keep a census, likewise, in place of a former one; return its file."""
    return _replace(run / CENSUS, {_RUN: of, "census": census.as_json()}, "census")


def save_names(run: Path, names: Mapping[int, Mapping[str, Any]], of: str) -> Path:
    """Keep what is told of features by name, likewise; return the file.

    Args:
        run: The run's folder.
        names: By feature, JSON-able: ``name``, ``score``, ``low``, ``high``, ``held`` and
            ``words``, and ``promotes`` and ``neighbours`` where they are known.
        of: The run's checksum.
    """
    document = {_RUN: of, "names": {str(feature): told for feature, told in names.items()}}
    return _replace(run / NAMES, document, "names")


def names(run: Path, of: str) -> dict[int, dict[str, Any]] | None:
    """Read the names of the run with this checksum, by feature, if some were kept.

    Raises:
        VlmEditError: Their file is damaged.
    """
    there = _names(run / NAMES)
    return there[1] if there is not None and there[0] == of else None


def _names(file: Path) -> tuple[str, dict[int, dict[str, Any]]] | None:
    if not file.exists():
        return None
    try:
        document = _read(file)
        named = {int(feature): dict(told) for feature, told in document["names"].items()}
        for told in named.values():
            if not isinstance(told["name"], str) or not isinstance(told["held"], bool):
                raise TypeError("a name is no text, or does not say whether it holds")
        return str(document[_RUN]), named
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(
            f"{file} is damaged: delete it, or name again with vlm-edit name {file.parent} "
            "--overwrite"
        ) from error


def _replace(file: Path, document: dict[str, Any], what: str) -> Path:
    """Write a document of a run in place of a former one."""
    with locked(file.parent):
        text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
        write_text(file, text, what)
    return file


def _read(file: Path) -> dict[str, Any]:
    if size_of(file) is None:
        raise ValueError("not a regular file")
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def census(run: Path, of: str) -> Census | None:
    """Read the census of the run with this checksum, if one was kept.

    Raises:
        VlmEditError: Its file is damaged.
    """
    there = _census(run / CENSUS)
    return there[1] if there is not None and there[0] == of else None


def _census(file: Path) -> tuple[str, Census] | None:
    if not file.exists():
        return None
    try:
        document = _read(file)
        return str(document[_RUN]), Census.of_json(document["census"])
    except (ValueError, KeyError, TypeError, DamagedFile, RecursionError) as error:
        raise DamagedFile(
            f"{file} is damaged: delete it, or count again with --run {file.parent} --overwrite"
        ) from error


def save_maps(run: Path, maps: Maps, of: str) -> Path:
    """Keep maps, likewise; return their file."""
    with locked(run):
        maps.save(run / MAPS, of)
    return run / MAPS


def maps(run: Path, of: str) -> Maps | None:
    """Read the maps of the run with this checksum, if some were kept.

    Raises:
        VlmEditError: Their file is damaged.
    """
    file = run / MAPS
    return load_maps(file, of) if file.exists() else None


def edits(run: Path, of: str | None = None) -> tuple[list[Table], list[Examples]]:
    """Read what was kept of edits, in their order: of the run with this checksum, or all.

    Raises:
        VlmEditError: A file is damaged.
    """
    shown = _kept(run, EDITS, _edit, of)
    return [table for table, _ in shown], [examples for _, examples in shown]


def pictures(run: Path, of: str | None = None) -> list[Picture]:
    """Read what was kept of drawings, likewise.

    Raises:
        VlmEditError: A file is damaged.
    """
    return _kept(run, DRAWINGS, _picture, of)


def others(run: Path, of: str) -> list[Path]:
    """Find files of another run than the one with this checksum, left by a killed process."""
    there = (*_all(run, EDITS, _edit), *_all(run, DRAWINGS, _picture))
    former = [file for file, whose, _ in there if whose not in (None, of)]
    whole = {CENSUS: _census(run / CENSUS), NAMES: _names(run / NAMES)}
    one = [run / name for name, known in whole.items() if known is not None and known[0] != of]
    one += [run / MAPS] if (run / MAPS).exists() and maps(run, of) is None else []
    return [*former, *one]


def _kept(
    run: Path, folder: str, read: Callable[[Path], tuple[str | None, Kept]], of: str | None
) -> list[Kept]:
    """Read what is of this run; former versions did not tell whose a file is."""
    return [
        what for _, whose, what in _all(run, folder, read) if None in (of, whose) or whose == of
    ]


def _all(
    run: Path, folder: str, read: Callable[[Path], tuple[str | None, Kept]]
) -> Iterator[tuple[Path, str | None, Kept]]:
    for file in sorted((run / folder).glob(f"*{_ENDINGS[folder]}")):
        yield file, *read(file)


def _edit(file: Path) -> tuple[str | None, tuple[Table, Examples]]:
    """Read whose it is, if that is told, and what was kept."""
    try:
        document = _read(file)
        title, items, note = document["examples"]
        shown = Examples(title, [(int(n), lines) for n, lines in items], note)
        return document.get(_RUN), (Table(*document["table"]), shown)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{file} is damaged: delete it, or edit again with --run {file.parents[1]}"
        ) from error


def _picture(file: Path) -> tuple[str | None, Picture]:
    """Read the same of a drawing."""
    try:
        with open_image(file) as image:
            image.load()
            words = {key: str(image.info[key]) for key in (_TITLE, _TOLD, _NOTE)}
            whose = image.info.get(_SOURCE)
            picture = Picture(words[_TITLE], image.copy(), words[_TOLD], words[_NOTE])
            return None if whose is None else str(whose), picture
    except VlmEditError as error:
        raise DamagedFile(
            f"{file} is damaged: delete it, or draw again with --run {file.parents[1]}"
        ) from error


def _keep(run: Path, name: str, data: bytes, read: Callable[[Path], object]) -> None:
    """Write a file behind those that are there; damaged ones, which stop pages, are set aside."""
    with locked(run):
        folder, ending = make_folder(run / name), _ENDINGS[name]
        for file in folder.glob(f"*{ending}"):
            try:
                read(file)
            except VlmEditError:
                aside = file.with_name(f"{file.name}.damaged")
                file.replace(aside)
                print(f"set aside, since it is damaged: {aside}", file=sys.stderr)
        taken = [int(f.stem) for f in folder.glob(f"*{ending}") if f.stem.isdecimal()]
        for number in itertools.count(max(taken, default=0) + 1):
            if write_new(folder / f"{number:03}{ending}", data, f"page's part {name}"):
                return
