"""Pairs from what one has at hand: lists, pandas' tables, datasets of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, overload

from PIL import Image

from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, line

IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "path")
TEXT_COLUMNS = ("text", "caption", "title")
_KINDS = (
    "Pairs, a list of (image, text), a DataFrame, a dataset of Hugging Face or the path of a CSV "
    "file or a folder; a processor goes into Host.of(model, processor)"
)


@dataclass(frozen=True)
class Encoded:
    """An image as the bytes of its file, which a dataset holds.

    Attributes:
        data: The file.
        name: What the dataset calls it, or its place.
    """

    data: bytes = field(repr=False)
    name: str


@dataclass(frozen=True)
class Stretch:
    """An image as a stretch of a file, which an archive is; read when it is opened.

    Attributes:
        path: The archive.
        start: Where the image begins, in bytes.
        length: Its bytes.
        name: What the archive calls it.
    """

    path: Path
    start: int
    length: int
    name: str

    @property
    def data(self) -> bytes:
        """Read the bytes.

        Raises:
            DamagedFile: The archive is gone, or ends before them.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.length)
        except OSError as error:
            raise DamagedFile(str(error)) from error
        if len(data) != self.length:
            raise DamagedFile("the archive ends within it")
        return data


Held = Encoded | Stretch
Source = Image.Image | Path | Encoded | Stretch


class Gathered(NamedTuple):
    """What ``Pairs`` is made of."""

    images: Sequence[Source]
    texts: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    name: str


class Stored(Sequence[Source]):
    """The images of a dataset, each read when it is asked for and decoded when it is opened."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._rows, self._column = dataset.select_columns([column]).with_format(None), column
        feature = self._rows.features[column]
        if _is_image(feature) and feature.decode:
            self._rows = self._rows.cast_column(column, type(feature)(decode=False))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        """Read one image, or select some."""
        if isinstance(index, slice):
            return self.pick(range(len(self))[index])
        return source_of(self._rows[int(index)][self._column], index, "the dataset")

    def pick(self, indices: Sequence[int]) -> Stored:
        """Select some of the images."""
        return Stored(self._rows.select(list(indices)), self._column)


def source_of(image: Any, number: int, name: str) -> Source:
    """Return an image as pairs hold it: paths as such, and the bytes that datasets hold.

    Raises:
        BadArgument: No image and no path.
    """
    if isinstance(image, Image.Image | Path | Held):
        return image
    if isinstance(image, str | os.PathLike) and os.fspath(image):
        return Path(os.fspath(image))
    if isinstance(image, Mapping) and {"bytes", "path"} <= set(image):
        if image["bytes"] is not None:
            return Encoded(image["bytes"], image["path"] or f"image {number}")
        if image["path"]:
            return Path(image["path"])
    mend = "; of an array Image.fromarray makes one" if hasattr(image, "shape") else ""
    mend = "; of (image, text) Pairs.of(...) makes pairs" if isinstance(image, tuple) else mend
    what = "missing" if image is None else f"a {type(image).__name__}"
    raise BadArgument(f"{name}: image {number} is {what}: pass PIL images or paths{mend}")


def gather(source: Any, image: str | None, text: str | None) -> Gathered:
    """Return what a list, a table or a dataset holds.

    Args:
        source: As for ``Pairs.of``, like the next two.
        image: Name of the column.
        text: Likewise.

    Raises:
        BadArgument: Another kind of thing, or rows that are no pairs.
        UnknownName: A column is not there.
    """
    if _is_dataset(source):
        return _of_dataset(source, image, text)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _of_table({str(n): source[n].tolist() for n in source.columns},
                         image, text, "the DataFrame")  # fmt: skip
    if isinstance(source, Mapping):
        splits = [str(name) for name, part in source.items() if hasattr(part, "column_names")]
        if splits:
            raise BadArgument(
                f"the dataset has the splits {', '.join(splits)}: pass one, such as "
                f"dataset[{splits[0]!r}]"
            )
        return _of_table({str(n): list(v) for n, v in source.items()}, image, text, "the table")
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        told = line(repr(source))
        told = told if len(told) <= 80 else f"{told[:77]}..."
        raise BadArgument(f"pairs is {told} ({type(source).__name__}); give {_KINDS}")
    return _of_list(list(source), image, text)


def _of_list(items: list[Any], image: str | None, text: str | None) -> Gathered:
    name = "the list of pairs"
    if items and all(isinstance(item, Mapping) for item in items):
        names = dict.fromkeys(str(key) for item in items for key in item)
        table = {n: [item.get(n) for item in items] for n in names}
        return _of_table(table, image, text, name)
    if image is not None or text is not None:
        raise BadArgument(f"{name} has no columns: give image= and text= with a table alone")
    for i, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            what = f"{len(item)} things" if isinstance(item, tuple | list) else type(item).__name__
            raise BadArgument(
                f"{name}: number {i} is {what}: give (image, text) for each; of two lists, "
                "Pairs(images, texts)"
            )
        if isinstance(item[1], Image.Image | Path) and isinstance(item[0], str):
            raise BadArgument(f"{name}: number {i} is (text, image): give (image, text)")
    images = [source_of(item[0], i, name) for i, item in enumerate(items)]
    return Gathered(images, _texts([item[1] for item in items], name, ""), {}, name)


def _of_table(
    table: Mapping[str, Sequence[Any]], image: str | None, text: str | None, name: str
) -> Gathered:
    image = column_of(list(table), IMAGE_COLUMNS, image, "images", name, "image")
    text = column_of(list(table), TEXT_COLUMNS, text, "texts", name, "text")
    images = [source_of(value, i, name) for i, value in enumerate(table[image])]
    rest = {n: _facts(values) for n, values in table.items() if n not in (image, text)}
    columns = {n: values for n, values in rest.items() if values is not None}
    return Gathered(images, _texts(table[text], name, text), columns, name)


def _of_dataset(dataset: Any, image: str | None, text: str | None) -> Gathered:
    called = getattr(getattr(dataset, "info", None), "dataset_name", None)
    name = f"the dataset {called}" if called else "the dataset"
    if not hasattr(dataset, "__len__"):
        raise BadArgument(
            f"{name} is a stream, which has no length: take some of it, such as "
            "list(dataset.take(1000))"
        )
    names, features = list(dataset.column_names), dataset.features
    pictures = tuple(n for n in names if _is_image(features[n]))
    known = pictures if len(pictures) == 1 else IMAGE_COLUMNS
    image = column_of(names, known, image, "images", name, "image")
    text = column_of(names, TEXT_COLUMNS, text, "texts", name, "text")
    plain = [n for n in names if n not in (image, text) and hasattr(features[n], "dtype")]
    columns = {}
    for n in (n for n in plain if n not in pictures):
        values = list(dataset.with_format(None)[n])
        if hasattr(features[n], "int2str"):
            values = [None if v is None or v < 0 else features[n].int2str(v) for v in values]
        facts = _facts(values)
        if facts is not None:
            columns[n] = facts
    texts = _texts(list(dataset.with_format(None)[text]), name, text)
    return Gathered(Stored(dataset, image), texts, columns, name)


def column_of(
    header: Sequence[str],
    names: Sequence[str],
    given: str | None,
    what: str,
    source: str,
    argument: str | None = None,
) -> str:
    """Return the column of images or texts: the one given, or the first of usual names.

    Raises:
        UnknownName: There is none.
    """
    wanted = names if given is None else (given,)
    for name in wanted:
        if name in header:
            return name
    there = ", ".join(header) or "none"
    if given is not None:
        raise UnknownName(f"{source} has no column {given!r}: it has {there}")
    mend = f"call one {' or '.join(names)}"
    mend = mend if argument is None else f"name it, Pairs.of(..., {argument}='...'), or {mend}"
    raise UnknownName(f"{source} has no column of {what}: it has {there}; {mend}")


def _texts(values: Sequence[Any], name: str, column: str) -> tuple[str, ...]:
    for i, value in enumerate(values):
        if isinstance(value, list | tuple) or hasattr(value, "tolist"):
            raise BadArgument(
                f"{name}: number {i} has {len(value)} texts{f' in {column!r}' * bool(column)}, and "
                "a pair has one: take one of each, or make a pair of each"
            )
    return tuple(value if isinstance(value, str) else "" for value in values)


def _facts(values: Sequence[Any]) -> tuple[str, ...] | None:
    """Return values as text, none of what is missing; None where they are no words or numbers."""
    if not all(value is None or isinstance(value, str | int | float) for value in values):
        return None
    return tuple("" if value is None or value != value else str(value) for value in values)


def is_stream(source: Any) -> bool:
    """Return whether something is a dataset that streams, or a pipeline of webdataset."""
    if type(source).__module__.split(".")[0] == "webdataset":
        return True
    return _is_dataset(source) and not hasattr(source, "__len__")


def _is_dataset(source: Any) -> bool:
    own = hasattr(source, "column_names") and hasattr(source, "with_format")
    return own and not isinstance(source, Mapping)


def _is_image(feature: Any) -> TypeGuard[Any]:
    return type(feature).__name__ == "Image" and hasattr(feature, "decode")
