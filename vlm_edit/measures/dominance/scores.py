"""Formulas of single scores, from counts and sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_edit.ground.statistics import t_quantile

# Below this share of the mean square, a variance is what rounding leaves of none.
_ROUNDING = 1e-13


def mean_ratio_interval(
    sums: Tensor, spread: Tensor, n: Tensor, images: Tensor, size: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """Compute the score interval of a mean of numbers in [0, 1] that come in groups.

    Numbers in [0, 1] of mean p vary at most as a share does, by p (1 - p). Wilson's interval
    with n divided by how much less the mean varies, or more where the numbers of a group are
    alike; that factor is drawn a little towards 1, by the weight of one group, so that numbers
    that happen to be equal promise no certainty.

    Args:
        sums: [m] float64.
        spread: [m] float64, the sum over groups of ``(sum of its numbers - mean * how many)^2``.
        n: [m] float64, how many numbers.
        images: [m] float64, in how many groups.
        size: [m] float64, the mean size of the group that a number is in.
        level: Between 0 and 1.

    Returns:
        Low and high, [m]; [0, 1] for one group, NaN for none.
    """
    t = t_quantile(level, (images - 1).clamp(min=1))
    mean = sums / n
    widest = mean * (1 - mean)
    z = t_quantile(level, torch.tensor([torch.inf], dtype=n.dtype))
    many = n / size  # as many alone would tell as much, were the numbers of a group all the same
    share = (mean * many + z**2 / 2) / (many + z**2)
    weight = share * (1 - share)
    small = images / (images - 1).clamp(min=1)
    variance = spread.clamp(min=0) / size.square() * small
    factor = (variance + weight) / (widest * many * small + weight)
    h = t**2 * factor / many
    centre, half = (mean + h / 2) / (1 + h), (h * widest + h**2 / 4).sqrt() / (1 + h)
    low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=1)
    # All zero or all one: the end is exact, and rounding must not move it.
    low = torch.where((sums == 0) | (images == 1), 0.0, low)
    high = torch.where((sums == n) | (images == 1), 1.0, high)
    dead = n == 0
    return torch.where(dead, torch.nan, low), torch.where(dead, torch.nan, high)


def activity_information(image: Tensor, text: Tensor, n_pairs: int) -> Tensor:
    """Compute the mutual information in bits of active or not and image or text, [m] float64.

    Args:
        image: [m] int64, images in which a feature is active.
        text: [m] int64, likewise texts.
        n_pairs: As many images as texts.
    """
    a, b = image.double() / n_pairs, text.double() / n_pairs
    return (_entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2).clamp(min=0)


def pearson(masses: Tensor, n_pairs: int) -> Tensor:
    """Compute the correlation from sums of x, y, x^2, y^2, x y, [m] float64; NaN if constant."""
    x, y, xx, yy, xy = masses
    vary_x, vary_y = xx - x * x / n_pairs, yy - y * y / n_pairs
    constant = (vary_x <= _ROUNDING * xx) | (vary_y <= _ROUNDING * yy)
    correlation = (xy - x * y / n_pairs) / (vary_x.clamp(min=0).sqrt() * vary_y.clamp(min=0).sqrt())
    return torch.where(constant, torch.nan, correlation.clamp(-1, 1))


def class_rows(
    classes: Mapping[str, Sequence[int]],
) -> tuple[tuple[str, str, str], list[tuple[str, str, str]]]:
    """Return headings and rows of a table: how many features each class has, of which share."""
    total = max(1, sum(map(len, classes.values())))
    rows = [(name, f"{len(m):,}", f"{len(m) / total:.0%}") for name, m in classes.items()]
    return ("class", "features", "share"), rows


def _entropy(share: Tensor) -> Tensor:
    nats: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return nats / math.log(2)
