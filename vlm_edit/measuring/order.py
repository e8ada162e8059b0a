"""The order in which pairs are read: all captions of an image together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measuring.gathering import Held
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import size_of
from vlm_edit.measuring.sources import image_digest

Whole = NDArray[np.int64]

_END = 1024  # bytes at the end of a file, which differ between nearly all images
_THREADS = 8
_SIZE = 16


@dataclass(frozen=True, eq=False)
class Order:
    """How pairs are read, batch by batch.

    Attributes:
        images: [n] int64, the number of the first pair that shows a pair's image.
        batches: Numbers of the pairs of each batch. Captions of one image are in one batch, which
            is longer than asked where an image has more of them.
    """

    images: Whole
    batches: Sequence[Sequence[int]]

    @classmethod
    def of(cls, pairs: Pairs, batch_size: int, images: Whole | None = None) -> Order:
        """Plan reading pairs in their own order, but for captions of images seen before.

        Args:
            pairs: All of them; files of equal size are compared by what is in them.
            batch_size: Pairs in a batch, at least 1.
            images: [n], where it is known which image each pair shows.

        Example:
            >>> pairs = Pairs.of([("a.png", "a cat"), ("b.png", "a dog"), ("a.png", "a tom")])
            >>> Order.of(pairs, 2).batches
            [[0, 2], [1]]
        """
        if batch_size < 1:
            raise BadArgument(f"batch size is {batch_size}; it must be at least 1")
        images = shown(pairs) if images is None else images
        if not cls(images, ()).repeated:
            return cls(images, list(pairs.batches(batch_size)))
        return cls(images, list(_whole(images, batch_size)))

    @property
    def repeated(self) -> bool:
        """Return whether any image comes twice."""
        return bool((self.images != np.arange(len(self.images))).any())

    @property
    def digest(self) -> str | None:
        """Return 32 digits by which a run that goes on knows the order; None for the pairs' own."""
        if not self.repeated:
            return None
        return hashlib.blake2b(self.images.tobytes(), digest_size=_SIZE).hexdigest()


def shown(pairs: Pairs) -> Whole:
    """Return for each pair the number of the first one with its image, [n] int64.

    Images are the same where their path is, or their bytes, or, in memory, their pixels. An image
    that was compressed anew is another one.

    Example:
        >>> shown(Pairs.of([("a.png", "a cat"), ("b.png", "a dog"), ("a.png", "a tom")])).tolist()
        [0, 1, 0]
    """
    first: dict[Hashable, int] = {}
    files: dict[int, Path] = {}
    digests: dict[int, bytes] = {}
    numbers = np.empty(len(pairs.images), np.int64)
    for i, source in enumerate(pairs.images):  # a dataset's are read one by one, and let go
        key: Hashable
        if isinstance(source, Path):
            key = os.fspath(source)
            if key not in first:
                files[i] = source
        elif isinstance(source, Held):
            key = hashlib.blake2b(source.data, digest_size=_SIZE).digest()
        elif isinstance(pairs.images, list):  # which keeps its images, and so their ids
            if id(source) not in digests:
                digests[id(source)] = image_digest(source)
            key = digests[id(source)]
        else:
            key = image_digest(source)
        numbers[i] = first.setdefault(key, i)
    return _of_equal_files(files, numbers)


def _of_equal_files(files: Mapping[int, Path], numbers: Whole) -> Whole:
    """Number alike what differs by path alone: of files of equal size, the ends, then all bytes."""
    same: dict[int, int] = {}
    alike = [list(files)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for key in (size_of, _end, _bytes):
            alike = [
                some
                for group in alike
                for some in _split(group, list(pool.map(key, (files[i] for i in group))))
            ]
    for group in alike:
        same |= dict.fromkeys(group[1:], group[0])
    return np.array([same.get(i, i) for i in numbers.tolist()], np.int64) if same else numbers


def _split(group: list[int], keys: list[Hashable]) -> Iterator[list[int]]:
    """Split by key, and leave out what is alone, or cannot be read."""
    by_key: dict[Hashable, list[int]] = {}
    for i, key in zip(group, keys, strict=True):
        by_key.setdefault(key, []).append(i)
    return (some for key, some in by_key.items() if key is not None and len(some) > 1)


def _end(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(-min(_END, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
    except OSError:
        return None


def _bytes(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _whole(images: Whole, size: int) -> Iterator[list[int]]:
    """Cut pairs into batches that hold all captions of their images."""
    order = np.argsort(images, kind="stable")
    ends = np.flatnonzero(np.diff(images[order])) + 1
    batch: list[int] = []
    for some in np.split(order, ends):
        if batch and len(batch) + len(some) > size:
            yield batch
            batch = []
        batch += some.tolist()
    yield batch
