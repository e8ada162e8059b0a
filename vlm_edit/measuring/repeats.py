"""Images and texts that come more than once among pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

# Other pairs with the same text that a pair has on average: above this, tests are told wrong.
_MANY = 0.05


class RepeatedPairs(UserWarning):
    """Warn of pairs that are not independent, though tests and intervals take them to be."""


@dataclass(frozen=True)
class Repeats:
    """Count how often images, or texts, come again.

    Attributes:
        distinct: How many there are.
        most: Pairs of the one that comes most often.
        others: Other pairs that a pair shares its own with, on average.

    Example:
        >>> import torch
        >>> Repeats.of(torch.tensor([7, 7, 7, 8]))
        Repeats(distinct=2, most=3, others=1.5)
    """

    distinct: int
    most: int
    others: float

    @classmethod
    def of(cls, keys: Tensor) -> Repeats:
        """Count by the key of each pair's image or text, int64 [n]."""
        counter = RepeatsCounter()
        counter.update(keys)
        return counter.compute()

    def warning(self, n_pairs: int, stream: str, known: int) -> str | None:
        """Say what to know and to do where many pairs are of one text, or of one image unknown.

        Args:
            n_pairs: Pairs measured.
            stream: ``image`` or ``text``.
            known: How many images (texts) tests count.
        """
        if self.others <= _MANY or known - self.distinct <= _MANY / 2 * self.distinct:
            return None
        if stream == "image":
            return (
                f"{known:,} image files show {self.distinct:,} images, pixel by pixel: tests and "
                "intervals take files that differ as images of their own, so P-values are too "
                "small, intervals too narrow, and too many features are called dominant or paired. "
                "Give all captions of an image the same file"
            )
        return (
            f"{n_pairs:,} pairs have {self.distinct:,} texts, one of them {self.most} times: tests "
            "and intervals treat images as independent, which images of one text are not, so "
            "P-values are too small, intervals too narrow, and too many features are called "
            "dominant or paired. Keep one image of each text: one row for each in the CSV file, or "
            "pairs.select(...) in Python"
        )


class RepeatsCounter:
    """Count how often keys come again, in memory that does not grow with their number.

    As long as no more than ``MOST`` keys differ all is exact. From there on the number of distinct
    ones is an estimate, within a hundredth, from those keys whose last bits are zeros; so is how
    many others a pair shares its own with, from the second moment of a count sketch; and the most
    frequent key is that among the ones that are left. What it holds does not depend on the order.
    """

    MOST = 1 << 18
    _BUCKETS = 1 << 14

    def __init__(self) -> None:
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._new: list[Tensor] = []
        self._waiting = 0
        self._sketch = torch.zeros(self._BUCKETS, dtype=torch.int64)
        self._level = 0
        self._total = 0

    def update(self, keys: Tensor) -> None:
        """Add the keys of some pairs, int64 [n], evenly spread over all 64 bits."""
        self._total += len(keys)
        # The low bits say which keys are kept, those above where they are counted.
        sign = ((keys >> 62) & 1) * 2 - 1
        self._sketch.index_add_(0, (keys >> 40) & (self._BUCKETS - 1), sign)
        kept = keys[self._is_kept(keys)]
        self._new.append(kept)
        self._waiting += len(kept)
        if self._waiting > self.MOST // 4:
            self._settle()

    def merge(self, other: RepeatsCounter) -> None:
        """Add what another has counted."""
        other._settle()
        self._level = max(self._level, other._level)
        self._total += other._total
        self._sketch += other._sketch
        self._settle(other._keys, other._counts)

    def compute(self) -> Repeats:
        """Return the counts so far."""
        self._settle()
        if not self._total:
            return Repeats(0, 0, 0.0)
        squares = self._counts if not self._level else self._sketch
        others = float(squares.double().square().sum()) / self._total - 1
        most = int(self._counts.max()) if len(self._counts) else 1
        return Repeats(len(self._keys) << self._level, most, max(others, 0.0))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return self._total

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is, as tensors."""
        self._settle()
        return {
            "keys": self._keys,
            "counts": self._counts,
            "sketch": self._sketch.clone(),
            "level": torch.tensor([self._level, self._total]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._keys, self._counts, sketch = (state[k] for k in ("keys", "counts", "sketch"))
        self._sketch.copy_(sketch)
        self._level, self._total = state["level"].tolist()
        self._new, self._waiting = [], 0

    def _is_kept(self, keys: Tensor) -> Tensor:
        return (keys & ((1 << self._level) - 1)) == 0

    def _settle(self, keys: Tensor | None = None, counts: Tensor | None = None) -> None:
        """Count each key that is kept once, and keep fewer where they are too many."""
        new = torch.cat([self._keys[:0], *self._new])
        self._new, self._waiting = [], 0
        parts = [(self._keys, self._counts), (new, torch.ones_like(new))]
        if keys is not None and counts is not None:
            parts.append((keys, counts))
        self._keys, place = torch.cat([k for k, _ in parts]).unique(return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(
            0, place, torch.cat([c for _, c in parts])
        )
        while True:
            kept = self._is_kept(self._keys)
            self._keys, self._counts = self._keys[kept], self._counts[kept]
            if len(self._keys) <= self.MOST:
                return
            self._level += 1


def to_json(repeats: Mapping[str, Repeats]) -> dict[str, list[float]]:
    """Return plain values by stream."""
    return {stream: list(astuple(values)) for stream, values in repeats.items()}


def from_json(values: Mapping[str, Any]) -> dict[str, Repeats]:
    """Return what ``to_json`` made them of."""
    return {s: Repeats(int(d), int(most), float(o)) for s, (d, most, o) in values.items()}
