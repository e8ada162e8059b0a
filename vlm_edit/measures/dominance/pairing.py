"""Whether a feature fires in both streams of a pair more often than pairing by chance explains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-18


def fisher_p(both: Tensor, image: Tensor, text: Tensor, n_pairs: int) -> Tensor:
    """Compute P(both active in at least so many pairs) under shuffling: Fisher's exact, one-sided.

    With texts put beside images at random the count is hypergeometric.

    Args:
        both: [m] int64, pairs in which a feature is active in both streams.
        image: [m] int64, pairs in which it is active in the image.
        text: [m] int64, likewise in the text.
        n_pairs: Pairs.

    Returns:
        [m] float64.
    """
    x, a, b = both.double(), image.double(), text.double()
    # The tail away from the mean is summed: its terms fall from the first on, and what is
    # small is not the difference of what is large.
    above = x > a * b / n_pairs
    tail = torch.zeros_like(x)
    for side, up in ((above, True), (~above, False)):
        tail[side] = _tail(x[side] if up else x[side] - 1, a[side], b[side], n_pairs, up)
    return torch.where(above, tail, 1 - tail).clamp(0, 1)


def _tail(x: Tensor, a: Tensor, b: Tensor, n: int, up: bool) -> Tensor:
    """Compute P(X >= x), or P(X <= x), by its first term and the ratios of following ones.

    A count that margins do not allow has a factorial of -1 below the line: a term of 0.
    """
    rest = n - a - b
    total, left = torch.zeros_like(x), torch.arange(len(x))
    term = _log_probability(x, a, b, rest, n).exp()
    while len(left):
        total[left] += term
        if up:
            ratio = (a - x) * (b - x) / ((x + 1) * (rest + x + 1))
        else:
            ratio = x * (rest + x) / ((a - x + 1) * (b - x + 1))
        x, term = (x + 1 if up else x - 1), term * ratio
        going = term > _NEGLIGIBLE * total[left]
        left, x, a, b, rest, term = (t[going] for t in (left, x, a, b, rest, term))
    return total


def _log_probability(x: Tensor, a: Tensor, b: Tensor, rest: Tensor, n: int) -> Tensor:
    """Compute the log of C(a, x) C(n - a, b - x) / C(n, b)."""
    margins, cells = (a, n - a, b, n - b), (x, a - x, b - x, rest + x)
    above = sum(map(_log_factorials, margins), torch.zeros_like(x)) - math.lgamma(n + 1)
    return above - sum(map(_log_factorials, cells), torch.zeros_like(x))


def _log_factorials(count: Tensor) -> Tensor:
    return torch.lgamma(count + 1)
