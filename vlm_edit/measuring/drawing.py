"""Which tokens of each batch are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.reader import Reader, TokenBatch

Rows = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Draw:
    """Draw some tokens of each batch, the same ones whichever batches were read before.

    Attributes:
        streams: Of which.
        most: Tokens of each stream for each pair of a batch; None for all.
        seed: Of the draw.
    """

    streams: tuple[str, ...]
    most: int | None
    seed: int

    def batches(
        self, reader: Reader, pairs: Pairs, numbers: range | None = None
    ) -> Iterator[tuple[TokenBatch, Rows]]:
        """Read batches, and yield each with the rows that are kept and the numbers of their pairs.

        Where nobody can tell pairs apart, a row's number is -1 less the number of its batch.
        """
        for batch in reader.tokens_numbered(pairs, numbers):
            readable = torch.tensor(batch.readable, dtype=torch.long)
            rows = {}
            for stream, (x, whose) in batch.rows.items():
                if stream in self.streams:
                    known = torch.full((len(x),), -1 - batch.number)
                    known = known if whose is None else readable[whose]
                    kept = self._kept(batch, stream, len(x))
                    rows[stream] = (x, known) if kept is None else (x[kept], known[kept])
            yield batch, rows

    def _kept(self, batch: TokenBatch, stream: str, count: int) -> Tensor | None:
        """Return numbers of the rows that are kept, in order; None for all."""
        if self.most is None or count <= self.most * len(batch.readable):
            return None
        told = hashlib.blake2b(f"{self.seed} {batch.number} {stream}".encode(), digest_size=8)
        generator = torch.Generator().manual_seed(int.from_bytes(told.digest(), "big", signed=True))
        order = torch.randperm(count, generator=generator)
        return order[: self.most * len(batch.readable)].sort().values
