"""Write activations to the disk, part after part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.activation_store.index import (
    BEGUN,
    DTYPES,
    PAIRS,
    VERSION,
    WHOLE,
    Index,
    Part,
    read_index,
)
from vlm_edit.dictionaries.activation_store.store import StoredActivations
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.files import write_joined

_WHAT = "activations"
# Pairs of a part at most, however narrow they are: so many are read again after a kill.
_MOST_PAIRS = 8192


class ActivationsWriter:
    """Write activations batch by batch: what was killed goes on from the last whole part.

    Args:
        folder: Where.
        index: What is written, with the parts that lie there already.
        part_size: Bytes of a part, at most but for its last batch.
    """

    def __init__(self, folder: Path, index: Index, part_size: int) -> None:
        if part_size < 1:
            raise BadArgument(f"part_size is {part_size}; give bytes, such as 256 << 20")
        self.folder, self.index, self.part_size = folder, index, part_size
        self._pieces: dict[str, list[Tensor]] = {}
        self._told: dict[str, Any] = {}
        self._bytes = self._batches = 0

    def add(
        self,
        batch: int,
        rows: Mapping[str, tuple[Tensor, Tensor]],
        beside: Mapping[str, Tensor],
        **told: Any,
    ) -> None:
        """Take what a batch gave, and write a part where it is time.

        Args:
            batch: Its number, the next one.
            rows: By stream [n, d] and int64 [n], the numbers of their pairs; none of a batch
                that gave nothing.
            beside: What else the part keeps of the batch.
            told: Fields of the index that have changed.
        """
        dtype = DTYPES[self.index.dtype]
        for stream, (x, pairs) in rows.items():
            self._put(stream, x.to(dtype))
            self._put(stream + PAIRS, pairs)
        for name, value in beside.items():
            self._put(name, value)
        self._told, self._batches = told, self._batches + 1
        assert batch + 1 == self.index.next_batch + self._batches
        pairs_held = self._batches * self.index.batch_size
        if self._bytes >= self.part_size or pairs_held >= _MOST_PAIRS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken as a part."""
        if not self._batches:
            return
        index, streams = self.index, self.index.streams
        begin, end = index.next_batch, index.next_batch + self._batches
        for stream in streams:
            if stream not in self._pieces:  # no image of any batch could be read
                self._put(stream, torch.empty(0, index.width, dtype=DTYPES[index.dtype]))
                self._put(stream + PAIRS, torch.empty(0, dtype=torch.long))
        rows = {stream: sum(map(len, self._pieces[stream])) for stream in streams}
        part = write_part(
            *(self.folder / f"{index.name}-{len(index.parts):06}.safetensors", self._pieces),
            *(rows, (begin, end)),
        )
        told = {"next_batch": end, "parts": (*index.parts, part), **self._told}
        self.index = replace(index, **told)
        self.index.write(self.folder / BEGUN)
        self._pieces, self._bytes, self._batches = {}, 0, 0

    def finish(self) -> StoredActivations:
        """Write what is left, and make the store whole: only now a former one goes.

        Raises:
            DamagedFile: There is not one row.
        """
        self.flush()
        if not any(self.index.rows(stream) for stream in self.index.streams):
            first = self.index.left_out[0][1] if self.index.left_out else "there are no pairs"
            raise DamagedFile(f"not one image could be read; the first: {first}")
        former = None
        with suppress(VlmEditError):  # what cannot be read is replaced all the same
            former = read_index(self.folder)
        self.index.write(self.folder / WHOLE)
        (self.folder / BEGUN).unlink(missing_ok=True)
        if former is not None and former.name != self.index.name:
            delete_parts(self.folder, former)
        return StoredActivations(self.folder, self.index, verify=True)

    def _put(self, name: str, value: Tensor) -> None:
        self._pieces.setdefault(name, []).append(value)
        self._bytes += value.nbytes


def write_part(
    path: Path,
    pieces: Mapping[str, Sequence[Tensor]],
    rows: Mapping[str, int] | None = None,
    batches: tuple[int, int] = (0, 0),
) -> Part:
    """Write a file of a store, whole or not at all, and return what its index says of it."""
    checksum = write_joined(path, pieces, {"version": VERSION}, _WHAT)
    return Part(path.name, checksum, path.stat().st_size, rows or {}, batches)


def delete_parts(folder: Path, index: Index) -> None:
    """Delete the files of a store, but for its index."""
    for file in folder.glob(f"{index.name}-*.safetensors"):
        file.unlink(missing_ok=True)
