"""Many tests at once: what passes at a rate of false discoveries, or with no false one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument


def benjamini_hochberg(p: Tensor, alpha: float = 0.05) -> Tensor:
    """Mark the tests that pass at a false discovery rate (Benjamini and Hochberg 1995).

    Args:
        p: [n] p values; NaN, such as those of dead features, are no tests and never pass.
        alpha: Expected share of false ones among those that pass, at most.

    Returns:
        [n] bool.

    Raises:
        VlmEditError: A rate outside of 0 to 1.

    Example:
        >>> import torch
        >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.9]))
        tensor([ True, False, False, False])
    """
    if not 0 < alpha < 1:
        raise BadArgument(f"a false discovery rate lies between 0 and 1, got alpha={alpha}")
    return adjusted_p(p) <= alpha


def adjusted_p(p: Tensor) -> Tensor:
    """Compute for each test the lowest false discovery rate at which it passes.

    Args:
        p: [n] p values; NaN are no tests and stay NaN.

    Returns:
        [n] float64.

    Example:
        >>> import torch
        >>> adjusted_p(torch.tensor([0.01, 0.04, 0.03, 0.9], dtype=torch.float64))
        tensor([0.0400, 0.0533, 0.0533, 0.9000], dtype=torch.float64)
    """
    return _stepped(p, True, lambda values, left: (values * len(left) / left).cummin(0).values)


def holm(p: Tensor) -> Tensor:
    """Compute for each test the chance of any false one at which it passes (Holm 1979).

    Stricter than ``adjusted_p``: for a few comparisons, each of which is to stand by itself.

    Args:
        p: [n] p values; NaN are no tests and stay NaN.

    Returns:
        [n] float64.

    Example:
        >>> import torch
        >>> holm(torch.tensor([0.01, 0.04, 0.03, 0.9], dtype=torch.float64))
        tensor([0.0400, 0.0900, 0.0900, 0.9000], dtype=torch.float64)
    """
    return _stepped(p, False, lambda values, left: (values * left).cummax(0).values)


def _stepped(p: Tensor, descending: bool, step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Adjust the p values in their order, of each and how many are left from it on."""
    adjusted = torch.full(p.shape, math.nan, dtype=torch.float64)
    tests = (~p.isnan()).nonzero().flatten()
    values, order = p[tests].double().sort(descending=descending)
    left = torch.arange(len(tests), 0, -1, dtype=torch.float64)
    if len(tests):
        adjusted[tests[order]] = step(values, left).clamp(max=1)
    return adjusted
