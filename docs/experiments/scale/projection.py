"""What public sets of pairs would take on H100s, by arithmetic: nothing here was measured.

FLOP of a pair are 2 x weights x tokens, of the weights that multiply: no table of tokens. What is
left out: attention's own products (2 % at 636 tokens), norms, and the dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

H100 = 989e12  # FLOP/s, bf16, dense, by its data sheet
SETS = {"CC3M": 3.3e6, "DataComp-1B": 1.4e9, "LAION-2B": 2.3e9}
SAMPLE = 3e6
NORMAL = 1.6449  # half of a 90 % interval, in standard errors


@dataclass(frozen=True)
class Tower:
    """A part of a host.

    Attributes:
        weights: Those that multiply.
        tokens: Of a pair that pass it.
    """

    weights: float
    tokens: int

    @property
    def flop(self) -> float:
        """Of a pair."""
        return 2 * self.weights * self.tokens


@dataclass(frozen=True)
class Projected:
    """A host as it would be run.

    Attributes:
        name: As tables show it.
        towers: What a pair passes.
        share: Of the H100's peak that is reached.
        devices: H100s that hold the host together.
    """

    name: str
    towers: Sequence[Tower]
    share: float
    devices: int = 1

    @property
    def flop(self) -> float:
        """Of a pair."""
        return sum(tower.flop for tower in self.towers)

    @property
    def pairs_a_second(self) -> float:
        """By one H100, or by its share of those that hold the host."""
        return self.share * H100 / self.flop

    def hours(self, pairs: float) -> float:
        """Hours of H100 for some pairs, of all that work together."""
        return pairs / self.pairs_a_second / 3600


_VISION_224 = Tower(303.2e6, 257)  # CLIP L/14: (224 / 14)^2 patches and one more
_TEXT = Tower(85.1e6, 77)
_VISION_336 = Tower(303.2e6, 577)
_PAIR = 636  # tokens: 576 of the image, 60 of prompt and caption
_LAYERS_7B, _HEAD_7B = 6.476e9, 0.131e9
_70B = 68.45e9 + 0.262e9

HOSTS = (
    Projected("CLIP L/14", (_VISION_224, _TEXT), 0.40),
    Projected("LLaVA-7B, whole", (_VISION_336, Tower(_LAYERS_7B + _HEAD_7B, _PAIR)), 0.40),
    Projected("LLaVA-7B, stopped at half", (_VISION_336, Tower(_LAYERS_7B / 2, _PAIR)), 0.40),
    Projected("a 70B, tensor parallel over 8", (_VISION_336, Tower(_70B, _PAIR)), 0.34, 8),
)


def core_hours(pairs: float, rate: float) -> float:
    """Hours of one core that reads some pairs.

    Args:
        pairs: How many.
        rate: Pairs a second of a core.
    """
    return pairs / rate / 3600


def width(active: float, sd: float = 0.5) -> float:
    """Width of a 90 % interval of an MDS, by the normal.

    An MDS is a mean over the pairs in which the feature fires of a ratio between 0 and 1, whose
    standard deviation is .5 at most.

    Args:
        active: Pairs in which the feature fires.
        sd: Standard deviation of the ratio over those.
    """
    return 2 * NORMAL * sd / math.sqrt(active)


def active_for(wanted: float, sd: float = 0.5) -> int:
    """Pairs in which a feature must fire for an interval of some width, by the same."""
    return math.ceil((2 * NORMAL * sd / wanted) ** 2 - 1e-9)
