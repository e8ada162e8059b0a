"""Pairs from a file with a line for each: CSV, whatever separates its fields, and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm_edit.ground.errors import DamagedFile, UnknownName
from vlm_edit.measuring.gathering import IMAGE_COLUMNS, TEXT_COLUMNS, Gathered, column_of

NAMES = ("metadata.csv", "pairs.csv", "metadata.jsonl", "pairs.jsonl")
_JSON_ENDINGS = (".jsonl", ".ndjson")
_DELIMITERS = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}


class _Lines(NamedTuple):
    """The lines of a file: names of the columns, then number and values of each."""

    header: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str]]]


def read_list(path: Path, image: str | None, text: str | None) -> Gathered:
    """Read what pairs are made of; paths of images are relative to the file.

    Args:
        path: A CSV file with a header, separated by commas, semicolons, tabs or bars; or JSON
            lines (``.jsonl``), an object a line.
        image: Name of the column; by default a usual one.
        text: Likewise.

    Raises:
        DamagedFile: The file, or a line of it, cannot be understood: it names line and column.
        UnknownName: A column is not there.
    """
    content = text_of(path)
    reader = _json_lines if path.suffix.lower() in _JSON_ENDINGS else _csv_lines
    header, rows = reader(path, content, (image, text))
    image, text = _columns(header, (image, text), str(path))
    if not rows:
        raise DamagedFile(f"{path} holds a header but no pairs")
    for number, row in rows:
        if not row[image].strip():
            raise DamagedFile(f"{path}: line {number} names no image in column {image!r}")
    empty = [number for number, row in rows if not row[text].strip()]
    if empty:
        raise DamagedFile(
            f"{path}: {len(empty)} of {len(rows)} pairs have no text, the first is line "
            f"{empty[0]}, in column {text!r}: give it one or take it out"
        )
    return Gathered(
        [path.parent / row[image] for _, row in rows],
        tuple(row[text] for _, row in rows),
        {n: tuple(row[n] for _, row in rows) for n in header if n not in (image, text)},
        str(path),
    )


def has_columns(path: Path) -> bool:
    """Return whether a file begins with usual names of a column of images and one of texts."""
    first = text_of(path).split("\n", 1)[0]
    for delimiter in _DELIMITERS:
        try:
            _columns(next(csv.reader([first], delimiter=delimiter), []), (None, None), str(path))
            return True
        except (UnknownName, csv.Error):
            continue
    return False


def _columns(
    header: Sequence[str], given: tuple[str | None, str | None], source: str
) -> tuple[str, str]:
    image = column_of(header, IMAGE_COLUMNS, given[0], "images", source, "image")
    return image, column_of(header, TEXT_COLUMNS, given[1], "texts", source, "text")


def text_of(path: Path) -> str:
    """Return what a file of UTF-8 says.

    Raises:
        DamagedFile: It is none.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DamagedFile(
            f"{path} is not a readable UTF-8 file, at line {line}: {error.reason}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise DamagedFile(f"{path} is not a readable UTF-8 file: {error}") from error


def _csv_lines(path: Path, content: str, given: tuple[str | None, str | None]) -> _Lines:
    lines = list(io.StringIO(content, newline=""))
    delimiter = _delimiter(lines, given, str(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[tuple[int, Mapping[str, str]]] = []
    try:
        header = next(reader, [])
        for number, cells in _numbered(reader):
            if len(cells) != len(header):
                first = header[min(len(cells), len(header) - 1)]
                raise DamagedFile(
                    f"{path}: line {number} does not have {len(header)} fields but {len(cells)}, "
                    f"at column {first!r}; quote texts with {_DELIMITERS[delimiter]}"
                )
            rows.append((number, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DamagedFile(
            f"{path} is not a readable UTF-8 CSV file, at line {reader.line_num}: {error}"
        ) from error
    return _Lines([name for name in header if name], rows)


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the line that each begins at, but for empty ones."""
    number = reader.line_num + 1
    for cells in reader:
        if cells:
            yield number, cells
        number = reader.line_num + 1


def _delimiter(lines: Sequence[str], given: tuple[str | None, str | None], source: str) -> str:
    """Find what separates the header's names: the first that gives both columns, or most names."""
    names = {}
    for delimiter in _DELIMITERS:
        try:
            names[delimiter] = next(csv.reader(lines, delimiter=delimiter), [])
            _columns(names[delimiter], given, source)
            return delimiter
        except (UnknownName, csv.Error):
            continue
    return max(names, key=lambda delimiter: len(names[delimiter]), default=",")


def _json_lines(path: Path, content: str, _: object) -> _Lines:
    header: dict[str, None] = {}
    found = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DamagedFile(f"{path}: line {number}{at} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}: line {number} is no JSON object, such as {{'text': ...}}")
        values = {name: _told(value) for name, value in row.items()}
        header |= dict.fromkeys(values)
        found.append((number, values))
    return _Lines(
        list(header), [(n, {name: values.get(name, "") for name in header}) for n, values in found]
    )


def _told(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
