"""Reach a wanted number of active features where a penalty decides it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.ground.errors import VlmEditWarning

# How the coefficient follows the L0 that is missing, per step: at least, at most; and over a run,
# so that in a short one it can move as far. And how strongly it answers to a change of the L0, so
# that it does not overshoot: thresholds move more slowly than weights.
_FOLLOW, _MOST = 0.01, 0.05
_WHOLE = {"relu": 40.0, "jumprelu": 20.0, "gated": 40.0}
_BRAKE = {"relu": 1.0, "jumprelu": 4.0, "gated": 1.0}
_MEAN = 0.1  # how fast the mean follows the L0 of a batch
# Rows of each stream that thresholds are set on, those at a time, and what tells factors apart.
_ROWS, _PART = 1 << 15, 1 << 22
_OCTAVES, _BINS = 8.0, 1 << 14
# What a target may be missed by without a word.
_NEAR = 0.05


class Target:
    """The penalty's coefficient, which follows the L0 that is missing.

    Attributes:
        coefficient: Of the penalty.
        l0: The running mean; below 0 before the first step.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.wanted, self.coefficient, self.l0 = config.target_l0, config.sparsity, -1.0
        self.rate = max(_FOLLOW, min(_MOST, _WHOLE.get(config.kind, 0.0) / config.steps))
        self.brake = _BRAKE.get(config.kind, 0.0)

    def follow(self, l0: float) -> None:
        """Move on after a step in which so many features were active."""
        if self.wanted is None:
            return
        before = max(l0 if self.l0 < 0 else self.l0, 1e-3)
        self.l0 = max(before + _MEAN * (l0 - before), 1e-3)
        missing = max(-1.0, min(1.0, math.log(self.l0 / self.wanted)))
        self.coefficient *= math.exp(self.rate * missing + self.brake * math.log(self.l0 / before))

    def warn(self, reached: float) -> None:
        """Warn where the target was missed."""
        if self.wanted is not None and abs(reached / self.wanted - 1) > _NEAR:
            warnings.warn(
                VlmEditWarning(
                    f"{reached:.3g} features are active, and target_l0 is {self.wanted:g}: train "
                    f"in more steps, or begin with another sparsity; it ended as "
                    f"{self.coefficient:.3g}"
                ),
                stacklevel=4,
            )


@dataclass(frozen=True, eq=False)
class Codes:
    """What decides which features are active, in the units of the data.

    Attributes:
        weight: [d, m], on the device to work on.
        bias: [m].
        subtract: [d], before the weight.
    """

    weight: Tensor
    bias: Tensor
    subtract: Tensor


def rescaled(data: Data, codes: Codes, threshold: Tensor, wanted: float) -> tuple[Tensor, float]:
    """Multiply thresholds by the one factor with which the wanted number of features is active.

    Each stream counts alike, as in a batch, by rows spread evenly over it.

    Args:
        data: Normed and centred activations.
        codes: The encoder.
        threshold: [m], above 0, in the units of the data.
        wanted: Features active per activation.

    Returns:
        The thresholds, and how many features are active with them.
    """

    def octaves(pre: Tensor) -> Tensor:
        ratio = pre / threshold
        return ratio[ratio > 0].log2()

    place, reached = _cut(data, codes, octaves, _OCTAVES, wanted)
    return threshold * 2.0**place, reached


def shifted(data: Data, codes: Codes, wanted: float) -> tuple[Tensor, float]:
    """Add to all biases the one number with which the wanted number of features is active.

    Args:
        data: As for ``rescaled``.
        codes: Likewise.
        wanted: Likewise.

    Returns:
        The biases [m], and how many features are active with them.
    """
    size = max(float(pre.abs().max()) for pre, _ in _parts(data, codes))
    place, reached = _cut(data, codes, torch.flatten, size, wanted)
    return codes.bias - place, reached


def raised(data: Data, codes: Codes, threshold: Tensor, wanted: float) -> tuple[Tensor, float]:
    """Add to all thresholds the one number with which the wanted number of features is active.

    None falls below 0, where a code is none, so that there may be fewer.

    Args:
        data: As for ``rescaled``.
        codes: Likewise.
        threshold: [m], at least 0, in the units of the data.
        wanted: As for ``rescaled``.

    Returns:
        The thresholds, and how many features are active with them.
    """

    def above(pre: Tensor) -> Tensor:
        return (pre - threshold)[pre > 0]

    size = max(float((pre - threshold).abs().max()) for pre, _ in _parts(data, codes))
    place, reached = _cut(data, codes, above, size, wanted)
    return (threshold + place).clamp_min(0), reached


def _cut(
    data: Data, codes: Codes, scored: Callable[[Tensor], Tensor], size: float, wanted: float
) -> tuple[float, float]:
    """Return where scores between -size and size have the wanted number above, and that number."""
    counts = torch.zeros(_BINS, dtype=torch.float64)
    for pre, share in _parts(data, codes):
        scores = scored(pre).clamp(-size, size).float()
        counts += torch.histc(scores, _BINS, -size, size).double().cpu() * share
    above = counts.flip(0).cumsum(0).flip(0)  # the lower edge of a bin
    best = int((above - wanted).abs().argmin())
    return size * (2 * best / _BINS - 1), float(above[best])


@torch.no_grad()
def _parts(data: Data, codes: Codes) -> Iterator[tuple[Tensor, float]]:
    """Yield pre-activations [n, m] of some rows of each stream, and what a row counts."""
    for name, stream in data.streams.items():
        count = min(_ROWS, len(stream))
        rows = torch.arange(count) * len(stream) // count
        for part in rows.split(max(1, _PART // codes.weight.shape[1])):
            x = data.batch({name: part}, codes.weight.device) * data.scale
            pre = (x - codes.subtract) @ codes.weight + codes.bias
            yield pre, 1 / count / len(data.streams)
