"""Activations on the disk, read as training needs them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm_edit.dictionaries.activation_store.index import (
    BEGUN,
    DTYPES,
    PAIRS,
    Index,
    Part,
    read_index,
)
from vlm_edit.dictionaries.activation_store.rows import MappedRows
from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.files import CHECKSUM, has_checksum, read_header, read_tensors
from vlm_edit.ground.notebook import one_line

_MEND = "put the file back as it was written, or collect anew with overwrite=True"


class Split(NamedTuple):
    """Rows to train on, and rows of other pairs to try the result on.

    Attributes:
        training: By stream.
        held_out: By stream.
        pairs: How many the held-out rows are of.
    """

    training: dict[str, MappedRows]
    held_out: dict[str, MappedRows]
    pairs: int


class StoredActivations(Mapping[str, MappedRows]):
    """Activations on the disk by stream, as ``collect(..., out=folder)`` wrote them; read-only.

    Attributes:
        folder: Where they lie.
        index: What they are of.
    """

    def __init__(self, folder: Path, index: Index, verify: bool) -> None:
        self.folder, self.index = folder, index
        self._files = [_PartFile(folder, part, index, verify) for part in index.parts]
        for file in self._files:
            file.expect_there()
        sums = " ".join(part.checksum for part in index.parts)
        self._mark = hashlib.sha256(sums.encode()).hexdigest()
        self._streams = {name: self._rows(name) for name in index.streams}

    def __getitem__(self, stream: str) -> MappedRows:
        """Return the rows [n, d] of a stream."""
        return self._streams[stream]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the streams."""
        return iter(self._streams)

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._streams)

    def __repr__(self) -> str:
        """Say what they are on a line."""
        rows = ", ".join(f"{len(rows):,} of {name}" for name, rows in self.items())
        what = f"{rows}, width {self.index.width}, {self.index.dtype}, at {self.index.site}"
        return one_line(f"StoredActivations({what}, in {self.folder})")

    def pairs(self, stream: str) -> Tensor:
        """Return the number of each row's pair, int64 [n].

        Where nobody can tell pairs of a batch apart it is -1 less the number of the batch.
        """
        return self.beside(stream + PAIRS)

    def beside(self, name: str) -> Tensor:
        """Return what the parts keep by a name, joined."""
        return torch.cat([file.tensor(name) for file in self._files])

    def verify(self) -> None:
        """Read all parts, and refuse what is not what was written.

        Raises:
            DamagedFile: Names the file.
        """
        for file in self._files:
            file.check()

    def split(self, held_out: float) -> Split:
        """Hold out the rows of the last pairs, so that no pair and no image is on both sides.

        Captions of one image stay together, on the side of the first of them, and so do equal
        texts where there are texts alone. Where nobody can tell pairs of a batch apart, a batch
        that is of both sides is on neither.

        Args:
            held_out: Share of the pairs, between 0 and 1.

        Raises:
            BadArgument: A side would have no rows.
        """
        sides, held = self._sides(held_out)
        return Split(*sides, int(held.sum()))

    def held_out(self, share: float) -> list[int]:
        """Return the numbers of the pairs whose rows ``split`` holds out.

        Args:
            share: As for ``split``.

        Raises:
            BadArgument: As ``split``.
        """
        numbers: list[int] = self._sides(share)[1].nonzero()[:, 0].tolist()
        return numbers

    def _sides(
        self, held_out: float
    ) -> tuple[tuple[dict[str, MappedRows], dict[str, MappedRows]], Tensor]:
        """Return the rows of both sides, and which pairs are held out, bool [pairs]."""
        images = self._images()
        if not math.isfinite(held_out):
            raise BadArgument(
                f"held_out is {held_out}; it is a share of the pairs, between 0 and 1"
            )
        kept = round(len(images) * (1 - held_out))
        sides: tuple[dict[str, MappedRows], dict[str, MappedRows]] = ({}, {})
        held = torch.zeros(len(images), dtype=torch.bool)
        for stream, rows in self.items():
            numbers = self.pairs(stream)
            first, last = self._span(images, numbers)
            sides[0][stream] = rows.select(_places(last < kept))
            sides[1][stream] = rows.select(_places(first >= kept))
            for number in numbers[first >= kept].unique().tolist():
                held[self._of(number)] = True
        if not all(len(rows) for side in sides for rows in side.values()):
            raise BadArgument(
                f"held_out {held_out} of {len(images)} pairs leaves {kept} to train on: both parts "
                "need at least one activation, of pairs whose image is not in the other"
            )
        return sides, held

    def _of(self, number: int) -> int | slice:
        """Return the pair, or the pairs, that a row may be of."""
        size, batch = self.index.batch_size, -1 - number
        return number if number >= 0 else slice(batch * size, (batch + 1) * size)

    def _span(self, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the last image that each row may be of."""
        if bool((numbers >= 0).all()):
            return images[numbers], images[numbers]
        batches = images.split(self.index.batch_size)
        ends = torch.tensor([[int(some.min()), int(some.max())] for some in batches])
        low, high = ends[(-1 - numbers).clamp(0)].unbind(1)
        one = images[numbers.clamp(0)]
        known = numbers >= 0
        return torch.where(known, one, low), torch.where(known, one, high)

    def _images(self) -> Tensor:
        """Return for each pair the number of the first one with its image, int64 [pairs]."""
        part = self.index.pairs
        assert part is not None
        _PartFile(self.folder, part, self.index, True).expect_there()
        header, tensors = read_tensors(self.folder / part.file, "images of pairs")
        if header.get(CHECKSUM) != part.checksum:
            raise DamagedFile(f"{self.folder / part.file} is of another store: {_MEND}")
        return tensors["images"]

    def _rows(self, stream: str) -> MappedRows:
        return MappedRows(
            [partial(file.tensor, stream) for file in self._files],
            [file.part.rows[stream] for file in self._files],
            self.index.width,
            DTYPES[self.index.dtype],
            f"{stream} {self._mark}",
        )


class _PartFile:
    """A part as it lies on the disk, opened when it is first read."""

    def __init__(self, folder: Path, part: Part, index: Index, verify: bool) -> None:
        self.path, self.part, self.index, self.verify = folder / part.file, part, index, verify
        self._tensors: dict[str, Tensor] = {}

    def expect_there(self) -> None:
        """Refuse a file that is missing, of another size, or another store's."""
        try:
            size = os.stat(self.path).st_size
        except OSError as error:
            raise DamagedFile(f"{self.path} is missing ({error.strerror}): {_MEND}") from error
        if size != self.part.size:
            raise DamagedFile(
                f"{self.path} is damaged: it has {size:,} bytes of {self.part.size:,}: {_MEND}"
            )
        header = read_header(self.path) or {}
        if header.get(CHECKSUM) != self.part.checksum:
            raise DamagedFile(f"{self.path} is of another store than its index: {_MEND}")

    def tensor(self, name: str) -> Tensor:
        """Return what is in it by this name, mapped; looked at by its checksum the first time."""
        if not self._tensors:
            tensors = self._open()
            if self.verify:
                self.check(tensors)
            self._tensors = tensors
        return self._tensors[name]

    def check(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Refuse what does not have its checksum."""
        header: dict[str, Any] = read_header(self.path) or {}
        header.setdefault(CHECKSUM, "")
        if not has_checksum(header, self._open() if tensors is None else tensors):
            raise DamagedFile(
                f"{self.path} is damaged: a byte or more of it has changed since it was written: "
                f"{_MEND}"
            )

    def _open(self) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DamagedFile(f"{self.path} cannot be read ({error}): {_MEND}") from error
        for stream, rows in self.part.rows.items():
            x, pairs = (tensors.get(name, torch.empty(0)) for name in (stream, stream + PAIRS))
            right = x.dtype == DTYPES[self.index.dtype] and pairs.dtype == torch.long
            if not right or x.shape != (rows, self.index.width) or pairs.shape != (rows,):
                raise DamagedFile(f"{self.path} does not hold what its index says: {_MEND}")
        return tensors


def load_activations(folder: str | os.PathLike[str], *, verify: bool = True) -> StoredActivations:
    """Open activations that ``collect(..., out=folder)`` or ``vlm-edit collect`` wrote.

    Nothing but the index is read; rows are read where they are asked for, also in training
    (``train_dictionary(load_activations(folder))``).

    Args:
        folder: Where they lie.
        verify: Compare each part with its checksum when it is first read, which reads all of it;
            False leaves it out, and ``store.verify()`` reads all parts at once.

    Returns:
        The rows [n, d] of each stream by name.

    Raises:
        VlmEditError: There are none, or not all yet, or a file is missing, damaged or another's;
            it names the file and what helps.

    Example:
        >>> import tempfile
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.dictionaries import load_activations
        >>> from vlm_edit.measuring import collect
        >>> folder, host = tempfile.mkdtemp(), Host.of(*zoo.load_host())
        >>> _ = collect(host, zoo.load_pairs().select(range(8)), out=folder, progress=False)
        >>> load_activations(folder)["image"].shape
        torch.Size([8, 192])
    """
    path = Path(folder)
    index = read_index(path)
    if index is None:
        begun = read_index(path, begun=True)
        if begun is not None:
            raise BadArgument(
                f"the activations in {path} are not all there yet, as {path / BEGUN} says: "
                f"{begun.next_batch} of {begun.batches} batches; collect into it again, which goes "
                "on where it stopped"
            )
        raise BadArgument(
            f"no activations in {str(path)!r}: it has no activations.json; collect(..., out=folder)"
            " or vlm-edit collect writes them"
        )
    return StoredActivations(path, index, verify)


def _places(mask: Tensor) -> range | Tensor:
    """Return where a mask is true, as a range where these follow each other."""
    places = mask.nonzero()[:, 0]
    if not len(places):
        return range(0)
    first, last = int(places[0]), int(places[-1])
    return range(first, last + 1) if last - first + 1 == len(places) else places
