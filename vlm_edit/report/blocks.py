"""Figures of all features as the page holds them: arrays of numbers, compressed."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Kinds of numbers by their letter, as numpy and the page's script know them.
_WHOLE = (("u1", 2**8), ("u2", 2**16), ("u4", 2**32))
_DIGITS = 4
_LEVEL = 6  # of gzip: 9 takes three times as long for 1 % less


@dataclass(frozen=True)
class Block:
    """An array in the page.

    Attributes:
        name: By which the script asks for it.
        kind: Of its numbers: ``f4``, ``f8``, ``i4``, ``u1``, ``u2`` or ``u4``, little-endian.
        text: gzip, in base64.
    """

    name: str
    kind: str
    text: str


def squeezed(data: bytes) -> str:
    """Return bytes as the page holds them, the same on every run.

    Example:
        >>> gzip.decompress(base64.b64decode(squeezed(b"the same")))
        b'the same'
    """
    return base64.b64encode(gzip.compress(data, _LEVEL, mtime=0)).decode()


def block(name: str, values: Tensor, kind: str) -> Block:
    """Make a block of numbers of one kind."""
    array = np.ascontiguousarray(values.numpy(), dtype=np.dtype(f"<{kind}"))
    return Block(name, kind, squeezed(array.tobytes()))


def counts(name: str, values: Tensor) -> Block:
    """Make a block of counts, in as few bytes as the largest needs.

    Example:
        >>> counts("pairs", torch.tensor([3, 700])).kind
        'u2'
    """
    largest = int(values.max()) if values.numel() else 0
    kind = next((kind for kind, end in _WHOLE if largest < end), "f8")
    return block(name, values, kind)


def rounded(values: Tensor, digits: int = _DIGITS) -> Tensor:
    """Round to so many digits, which is what compresses; NaN and infinity become NaN.

    Example:
        >>> rounded(torch.tensor([0.123456, 98764.0])).tolist()
        [0.1235, 98760.0]
    """
    values = values.double()
    known = values.isfinite() & (values != 0)
    power = torch.where(known, values.abs(), 1.0).log10().floor()
    # Of numbers near the smallest there are, the factor itself would be infinite.
    factor = 10.0 ** (digits - 1 - power).clamp(max=300)
    near = torch.where(known, (values * factor).round() / factor, values)
    return torch.where(values.isfinite(), near, torch.nan)
