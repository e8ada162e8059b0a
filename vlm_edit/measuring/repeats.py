"""Images and texts that come more than once among pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

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
        counts = keys.unique(return_counts=True)[1].double()
        if not len(counts):
            return cls(0, 0, 0.0)
        others = float(counts.square().sum() / counts.sum()) - 1
        return cls(len(counts), int(counts.max()), others)

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


def to_json(repeats: Mapping[str, Repeats]) -> dict[str, list[float]]:
    """Return plain values by stream."""
    return {stream: list(astuple(values)) for stream, values in repeats.items()}


def from_json(values: Mapping[str, Any]) -> dict[str, Repeats]:
    """Return what ``to_json`` made them of."""
    return {s: Repeats(int(d), int(most), float(o)) for s, (d, most, o) in values.items()}
