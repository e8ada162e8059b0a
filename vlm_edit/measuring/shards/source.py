"""Pairs in shards, which are read one after the other and never all held."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.measuring.gathering import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    Source,
    column_of,
    source_of,
)
from vlm_edit.measuring.lists import read_list
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import IMAGE_ENDINGS, size_of
from vlm_edit.measuring.sources import stamp

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ENDINGS = (".tar", ".tgz", ".tar.gz", ".parquet")
_LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")


class Sample(NamedTuple):
    """An image of a shard with its texts, a pair for each.

    Attributes:
        key: What the shard calls it.
        image: The image, its path or its bytes; None where it is broken.
        texts: Its captions; none where it is broken.
        columns: What else is known of it.
        broken: Why it is no pair, where it is none.
    """

    key: str
    image: Source | None
    texts: Sequence[str]
    columns: Mapping[str, str] = {}
    broken: str = ""


@runtime_checkable
class Shards(Protocol):
    """Pairs in shards: what ``measure`` takes in the place of pairs that are all known.

    Those of one's own need these three members; ``shards_of`` makes them of files, datasets and
    iterables. Captions of an image stand side by side in their shard.
    """

    @property
    def name(self) -> str:
        """Return where they come from."""

    def shards(self) -> Sequence[str]:
        """Return the names of the shards, always the same in the same order."""

    def read(self, shard: str) -> Iterator[Sample]:
        """Yield what is in a shard, always in the same order; nothing is opened before its turn.

        Args:
            shard: Its name.
        """


@dataclass(frozen=True, eq=False)
class Files:
    """Shards that are files, of one kind or of several.

    Attributes:
        paths: The files, in their order.
        name: Where they come from.
        image: The column of images, where there are columns; by default a usual one.
        text: Likewise of texts.
    """

    paths: Sequence[Path]
    name: str
    image: str | None = None
    text: str | None = None

    def shards(self) -> Sequence[str]:
        """Return their paths."""
        return [str(path) for path in self.paths]

    def read(self, shard: str) -> Iterator[Sample]:
        """Yield what is in a file.

        Raises:
            VlmEditError: It cannot be read, or has no column of images or texts.
        """
        path, given = Path(shard), (self.image, self.text)
        if path.name.lower().endswith(".parquet"):
            from vlm_edit.measuring.shards.parquet import read_parquet

            return read_parquet(path, *given)
        if path.suffix.lower() in _LISTS:
            images, texts, columns, _ = read_list(path, *given)
            return (
                Sample(str(i), image, (texts[i],), {n: v[i] for n, v in columns.items()})
                for i, image in enumerate(images)
            )
        from vlm_edit.measuring.shards.tars import read_tar

        return read_tar(path, *given)

    def stamp(self, shard: str) -> int:
        """Digest a file's size and the times of its last changes."""
        return stamp(Path(shard))

    def listing(self) -> str:
        """Digest the files' names and sizes, wherever they are."""
        return _digest([[path.name, size_of(path)] for path in self.paths])


@dataclass(frozen=True, eq=False)
class Streams:
    """Shards that are iterables.

    Attributes:
        makers: By the shard's name, what makes an iterator of it, each time anew.
        name: Where they come from.
        image: The column of images, where there are columns; by default a usual one.
        text: Likewise of texts.
    """

    makers: Mapping[str, Callable[[], Iterable[Any]]]
    name: str
    image: str | None = None
    text: str | None = None

    def shards(self) -> Sequence[str]:
        """Return their names."""
        return list(self.makers)

    def read(self, shard: str) -> Iterator[Sample]:
        """Yield what is in a shard."""
        for i, item in enumerate(self.makers[shard]()):
            yield sample_of(item, i, f"{self.name}, {shard}", self.image, self.text)


def shards_of(source: Any, image: str | None = None, text: str | None = None) -> Shards:
    """Make shards of files, of a stream of Hugging Face ``datasets``, or of iterables.

    Args:
        source: Paths of ``.tar`` files as webdataset writes them (``000001.jpg`` beside
            ``000001.txt``, or a ``.json`` with a caption or several), of ``.parquet`` files or of
            CSV files and JSON lines: one, a list of them, a folder that holds them, or a pattern
            such as ``cc3m/{00000..00331}.tar`` or ``cc3m/*.parquet``; an ``IterableDataset``; a
            ``webdataset`` pipeline; any iterable that can be begun anew, of (image, text), of
            (key, image, text) or of mappings; a function that makes one, or a mapping of several
            by name. Shards come back as they are.
        image: The column of images, where there are columns; by default a usual one.
        text: Likewise of texts.

    Raises:
        BadArgument: No such files, another kind of thing, or an iterator, which is used up by
            being read once.

    Example:
        >>> from PIL import Image
        >>> square = Image.new("RGB", (8, 8))
        >>> shards = shards_of({"a": lambda: [(square, "a square")], "b": lambda: []})
        >>> [sample.texts for name in shards.shards() for sample in shards.read(name)]
        [('a square',)]
    """
    if isinstance(source, str | os.PathLike):
        paths = _paths(os.fspath(source))
        return Files(paths, os.fspath(source), image, text)
    if isinstance(source, Shards):
        return source
    if hasattr(source, "shard") and hasattr(source, "features"):
        from vlm_edit.measuring.shards.streaming import of_dataset

        return of_dataset(source, image, text)
    if isinstance(source, Mapping):
        return Streams({str(k): _maker(v) for k, v in source.items()}, "the shards", image, text)
    items = list(source) if isinstance(source, list | tuple) else []
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        found = [path for item in items for path in _paths(os.fspath(item))]
        return Files(found, f"{len(found)} files, the first {found[0]}", image, text)
    return Streams({"0": _maker(source)}, "the stream", image, text)


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Return whether a path, a folder or a pattern is of shards rather than of pairs.

    Example:
        >>> is_sharded("cc3m/{00000..00331}.tar"), is_sharded("pairs.csv")
        (True, False)
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return bool(_inside(name))
    return name.lower().endswith(_ENDINGS) or (
        name.lower().endswith(_LISTS) and not os.path.exists(name) and _is_pattern(name)
    )


def listing_of(shards: Shards) -> str:
    """Digest shards without reading them."""
    own = getattr(shards, "listing", None)
    return str(own()) if callable(own) else _digest(list(shards.shards()))


def read_all(shards: Shards) -> Pairs:
    """Read all pairs of some shards, whose images are opened when they are needed.

    Args:
        shards: Of as many pairs as fit in memory, images in tar files excepted.

    Raises:
        VlmEditError: One of them is no pair.
    """
    images: list[Source] = []
    texts: list[str] = []
    rows: list[Mapping[str, str]] = []
    for shard in shards.shards():
        for sample in shards.read(shard):
            if sample.image is None or not sample.texts:
                raise VlmEditError(f"{shard}: {sample.key}: {sample.broken}")
            images += [sample.image] * len(sample.texts)
            texts += sample.texts
            rows += [sample.columns] * len(sample.texts)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: tuple(row.get(name, "") for row in rows) for name in names}
    return Pairs(images, tuple(texts), columns, shards.name)


def sample_of(item: Any, number: int, name: str, image: str | None, text: str | None) -> Sample:
    """Return what an iterable yields as a sample; what is none is a broken one.

    Args:
        item: A sample, (image, text), (key, image, text), the same with columns, or a mapping.
        number: Its place.
        name: Of the shard.
        image: The column of images in a mapping.
        text: Likewise of texts.
    """
    if isinstance(item, Sample):
        return item
    key = str(number)
    try:
        if isinstance(item, Mapping):
            key = str(item.get("__key__", number))
            shown, said = _columns(item, name, image, text)
        elif isinstance(item, tuple | list) and 2 <= len(item) <= 4:
            rest = item[-1] if isinstance(item[-1], Mapping) else None
            plain = item[:-1] if rest is not None else item
            key = str(plain[0]) if len(plain) == 3 else key
            shown, said = plain[-2:]
        else:
            return Sample(key, None, (), broken=f"a {type(item).__name__}, and no pair")
        texts = texts_of(said)
        if not texts:
            return Sample(key, None, (), broken="it has no text")
        return Sample(key, _image(shown, number, name), texts)
    except BadArgument as error:
        return Sample(key, None, (), broken=str(error))


def texts_of(value: Any) -> tuple[str, ...]:
    """Return the texts of a sample: of one, or of a list of them; those that say nothing go."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        return ()
    return tuple(one.strip() for one in values if isinstance(one, str) and one.strip())


def _columns(
    item: Mapping[str, Any], name: str, image: str | None, text: str | None
) -> tuple[Any, Any]:
    """Return image and text of a mapping, by column or by the ending of a file."""
    endings = tuple(ending[1:] for ending in IMAGE_ENDINGS)
    header = list(item)
    shown = column_of(header, (*IMAGE_COLUMNS, *endings), image, "images", name, "image")
    said = column_of(header, (*TEXT_COLUMNS, "txt"), text, "texts", name, "text")
    return item[shown], item[said]


def _image(value: Any, number: int, name: str) -> Source:
    if isinstance(value, bytes):
        value = {"bytes": value, "path": f"{name}, {number}"}
    return source_of(value, number, name)


def _maker(source: Any) -> Callable[[], Iterable[Any]]:
    if callable(source) and not hasattr(source, "__iter__"):
        return source  # type: ignore[no-any-return]
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise BadArgument(
            f"a {type(source).__name__} is no shard: give an iterable of (image, text), or a "
            "function that makes one"
        )
    if iter(source) is source:
        raise BadArgument(
            f"a {type(source).__name__} is used up by being read once: give the function that "
            "makes it"
        )
    return lambda: source


def _paths(source: str) -> list[Path]:
    """Return the files that a path, a folder or a pattern names."""
    if os.path.isdir(source):
        found = _inside(source)
        if not found:
            raise BadArgument(f"{source!r} holds no shards ({', '.join(_ENDINGS)})")
        return found
    names = [source]
    while match := _BRACES.search(names[0]):
        first, last = match[1], match[2]
        numbers = range(int(first), int(last) + 1)
        names = [
            _BRACES.sub(f"{number:0{len(first)}d}", name, count=1)
            for name in names
            for number in numbers
        ]
    if len(names) == 1 and any(mark in source for mark in "*?[") and not os.path.exists(source):
        names = sorted(glob.glob(source))
    missing = [name for name in names if not os.path.isfile(name)]
    if missing or not names:
        first = missing[0] if missing else source
        raise BadArgument(
            f"no shard at {first!r}: the file does not exist, or is out of your reach"
        )
    return [Path(name) for name in names]


def _inside(folder: str) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [Path(folder, name) for name in names if name.lower().endswith(_ENDINGS)]


def _is_pattern(name: str) -> bool:
    return bool(_BRACES.search(name)) or any(mark in name for mark in "*?[")


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
