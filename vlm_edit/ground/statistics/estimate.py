"""A figure with its interval, and the interval of a share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_edit.ground.errors import BadArgument

Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, 95 % where nothing else is said, and its number of cases.

    Example:
        >>> print(Estimate(0.5, 0.4, 0.6, 100))
        .500 [.400, .600]
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Show three decimals, without leading zeros."""
        return self.text(3)

    def text(self, digits: int) -> str:
        """Show so many decimals, without leading zeros."""
        value, low, high = (short(v, digits) for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def proportion(successes: int, n: int) -> Estimate:
    """Estimate a share with its Wilson score interval (Wilson 1927).

    Args:
        successes: Between 0 and n.
        n: Cases, at least one.

    Example:
        >>> print(proportion(53, 100))
        .530 [.433, .625]
    """
    if not 0 <= successes <= n or n < 1:
        raise BadArgument(f"{successes} successes of {n} cases: a share needs 0 <= successes <= n")
    share = successes / n
    return Estimate(share, *wilson(share, n), n)


def wilson(share: float, n: float, z: float = Z) -> tuple[float, float]:
    """Return Wilson's interval of a share of n cases, or of as much as n independent ones tell.

    Example:
        >>> [round(end, 3) for end in wilson(0.5, 100.0)]
        [0.404, 0.596]
    """
    z2 = z**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return (centre - half if share > 0 else 0.0, centre + half if share < 1 else 1.0)


def short(value: float, digits: int) -> str:
    """Return so many decimals, without a leading zero.

    Example:
        >>> short(-0.25, 3), short(-1e-9, 3)
        ('-.250', '.000')
    """
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # no -.000
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")
