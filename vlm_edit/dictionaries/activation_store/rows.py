"""Rows of numbers that stay on the disk, over one file or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument


class MappedRows:
    """Activations [n, d] over the parts of a store: read-only, read where they are asked for.

    ``rows[i]``, ``rows[10:20]`` and ``rows[numbers]`` give tensors, of all parts as of one;
    ``rows[:]`` reads all.

    Args:
        parts: What opens each part, [its rows, d].
        sizes: Rows of each.
        width: d.
        dtype: Of the numbers.
        mark: What tells these numbers from others, such as their checksums, or what works it out.
        numbers: Which rows of all parts these are, in order; by default all.

    Example:
        >>> parts = [torch.zeros(2, 3), torch.ones(2, 3)]
        >>> rows = MappedRows([lambda: parts[0], lambda: parts[1]], [2, 2], 3, torch.float32, "x")
        >>> rows.shape, rows[torch.tensor([3, 0])][:, 0]
        (torch.Size([4, 3]), tensor([1., 0.]))
    """

    ndim = 2
    device = torch.device("cpu")

    def __init__(
        self,
        parts: Sequence[Callable[[], Tensor]],
        sizes: Sequence[int],
        width: int,
        dtype: torch.dtype,
        mark: str | Callable[[], str],
        numbers: range | Tensor | None = None,
    ) -> None:
        self._parts, self._sizes, self._mark = parts, sizes, mark
        self._ends = torch.tensor([0, *sizes]).cumsum(0)
        self._numbers = range(int(self._ends[-1])) if numbers is None else numbers
        self.width, self.dtype = width, dtype

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._numbers)

    def __repr__(self) -> str:
        """Say what they are on a line."""
        return f"MappedRows({len(self):,} rows of {self.width}, {self.dtype}, on the disk)"

    @property
    def shape(self) -> torch.Size:
        """Return [n, d], as of a tensor."""
        return torch.Size([len(self), self.width])

    @property
    def mark(self) -> str:
        """Return what tells these rows from others: the same for the same rows of the same files.

        Rows that are equal and lie in other files may have another.
        """
        mark = self._mark if isinstance(self._mark, str) else self._mark()
        hasher = hashlib.sha256(f"{mark} {tuple(self.shape)} {self.dtype}".encode())
        if isinstance(self._numbers, range):
            hasher.update(str(self._numbers).encode())
        else:
            hasher.update(self._numbers.numpy().tobytes())
        return hasher.hexdigest()

    def is_floating_point(self) -> bool:
        """Return whether the numbers are, as of a tensor."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Return how many numbers they are, as of a tensor."""
        return len(self) * self.width

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Read one row, some that follow each other, or those of these numbers, [k, d]."""
        if isinstance(index, slice):
            some = self._numbers[index]
            if isinstance(some, range) and some.step == 1:
                return self._between(some.start, some.stop)
            return self._gather(torch.as_tensor(some))
        if isinstance(index, int):
            return self._gather(torch.as_tensor(self._numbers[index]).reshape(1))[0]
        if not isinstance(index, Tensor) or index.dtype != torch.long or index.ndim != 1:
            raise BadArgument(
                "rows on the disk are taken by a whole number, a slice, or a tensor [k] of whole "
                f"numbers (int64); got {index!r}"[:300]
            )
        index = index.cpu()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"row {int(index.max())} or {int(index.min())} of {len(self)}")
        if isinstance(self._numbers, range):
            return self._gather(index * self._numbers.step + self._numbers.start)
        return self._gather(self._numbers[index])

    def split(self, rows: int) -> Iterator[Tensor]:
        """Read all, so many rows at a time, cut as a tensor's ``split`` cuts."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def select(self, numbers: range | Tensor) -> MappedRows:
        """Return some of these rows, which stay on the disk too.

        Args:
            numbers: Which, as a range or int64 [k], from 0.
        """
        whole = self._numbers
        if isinstance(whole, range) and isinstance(numbers, range):
            kept: range | Tensor = whole[numbers.start : numbers.stop : numbers.step]
        else:
            kept = torch.as_tensor(whole)[torch.as_tensor(numbers)]
        return MappedRows(self._parts, self._sizes, self.width, self.dtype, self._mark, kept)

    def _between(self, start: int, stop: int) -> Tensor:
        """Read rows that follow each other, of all parts."""
        pieces = [
            self._parts[part]()[max(start - begin, 0) : stop - begin]
            for part, (begin, end) in enumerate(zip(self._ends[:-1], self._ends[1:], strict=True))
            if begin < stop and start < end
        ]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else self._empty(0)

    def _gather(self, numbers: Tensor) -> Tensor:
        """Read rows by their numbers in all parts."""
        if len(self._parts) == 1:
            return self._parts[0]()[numbers]
        out = self._empty(len(numbers))
        which = torch.bucketize(numbers, self._ends[1:], right=True)
        counts = which.bincount(minlength=len(self._parts)).tolist()
        for part, places in enumerate(which.argsort(stable=True).split(counts)):
            if len(places):
                out[places] = self._parts[part]()[numbers[places] - self._ends[part]]
        return out

    def _empty(self, rows: int) -> Tensor:
        return torch.empty(rows, self.width, dtype=self.dtype)
