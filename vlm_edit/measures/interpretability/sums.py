"""Sums of vectors, weighted by codes."""

from __future__ import annotations

import torch
from torch import Tensor


def add_weighted(total: Tensor, codes: tuple[Tensor, Tensor, Tensor], vectors: Tensor) -> None:
    """Add ``codes' @ vectors`` to a total, in place; costs as much as codes are not zero.

    Args:
        total: [m, width] float64.
        codes: Rows, features and float64 values, [nnz] each.
        vectors: [n, width] float64.
    """
    rows, features, values = codes
    # Neither sorted nor checked: the product adds entry by entry, in the order they come.
    weights = torch.sparse_coo_tensor(
        torch.stack([features, rows]),
        values,
        (len(total), len(vectors)),
        check_invariants=False,
    )
    torch.addmm(total, weights, vectors, out=total)
