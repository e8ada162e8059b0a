"""Examples drawn at random among those that activate a feature: its middle as well as its top."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_edit.measures.interpretability.top import TopExamples

# Of the generator splitmix64 (Steele, Lea and Flood, 2014), whose steps spread any numbers evenly.
_STEPS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
_GAMMA = -0x61C8864680B583EB


class DrawnExamples(TopExamples):
    """Keep examples drawn at random among those that activate each feature, each as likely.

    Which are kept goes by a number that is drawn for each example from its own, so it depends
    neither on how examples are cut nor on the order in which accumulators merge, and features that
    the same examples activate have the same ones.

    Args:
        n_features: Size m of the dictionary.
        keep: Examples kept per feature.

    Example:
        >>> import torch
        >>> drawn = DrawnExamples(n_features=1, keep=2)
        >>> drawn.update(torch.arange(1.0, 101.0)[:, None], range(100))
        >>> [number for number, _ in drawn.of(0)] == drawn.numbers[0].tolist()
        True
    """

    def ranks(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Return what was drawn for each example, above 0 and at most 1; 0 for none."""
        return torch.where(values > 0, _drawn(numbers), 0.0)


def _drawn(numbers: Tensor) -> Tensor:
    """Return a number in (0, 1] for each, [n] float32."""
    bits = numbers * _GAMMA + _GAMMA
    for shift, factor in _STEPS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    bits = bits ^ _shifted(bits, 31)
    return (((bits >> 40) & 0xFFFFFF) + 1).float() / (1 << 24)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shift right as if there were no sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
