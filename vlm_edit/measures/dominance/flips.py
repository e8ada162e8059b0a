"""What chance makes of a sum of differences when image and text are exchanged inside pairs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# A pair's difference (|zI| - |zT|) / (|zI| + |zT|) is kept as a whole number of sixteenths.
LEVELS = 16

# The largest sum of magnitudes whose distribution is computed exactly: 255 pairs at full level.
_EXACT = 4094
# Cells of a table of distributions, 2 MiB in float64.
_CELLS = 1 << 18
# Far below what any correction over features asks for, far above the rounding of the transform.
_SMALLEST = 1e-12


def level_sums(levels: Tensor) -> Tensor:
    """Sum the signed levels of each feature's pairs, [m] int64.

    Args:
        levels: [m, 2 * LEVELS + 1] int64, pairs by level, from -LEVELS to LEVELS.
    """
    return (levels * torch.arange(-LEVELS, LEVELS + 1)).sum(1)


def flip_p(levels: Tensor, sums: Tensor) -> Tensor:
    """Compute the chance of a sum as far from zero when every level's sign is drawn at random.

    Exact while the magnitudes of a feature sum to 4,094 or less (255 pairs of one stream only),
    by the inverse transform of the characteristic function ``prod_q cos(q t)^count_q``. Beyond,
    the normal approximation, continuity-corrected by the largest level, so on the safe side.

    Args:
        levels: [m, 2 * LEVELS + 1] int64, pairs by level; only their magnitudes matter.
        sums: [draws, m] int64, sums of levels with some signs.

    Returns:
        [draws, m] float64, two-sided, at least 1e-12; NaN for features without pairs.
    """
    counts = _magnitudes(levels)
    size = torch.arange(1, LEVELS + 1)
    span = (counts * size).sum(1)
    p = _normal_p(counts, sums)
    p[:, span == 0] = 1.0
    points, least = 32, 0
    while points <= _EXACT + 2:
        features = ((span > least) & (span <= points - 2)).nonzero().flatten()
        for part in features.split(max(1, _CELLS // points)):
            odd = span[part] % 2
            tails = _tails(counts[part], odd, points)
            at = (sums[:, part].abs() - odd) // 2
            p[:, part] = 2 * tails.gather(1, at.T).T
        points, least = 2 * points, points - 2
    p.clamp_(_SMALLEST, 1.0)
    p[:, levels.sum(1) == 0] = math.nan
    return p


def flipped_sums(levels: Tensor, draws: int, seed: int) -> Tensor:
    """Sum levels with signs drawn at random, [draws, m] int64."""
    counts = _magnitudes(levels)
    feature, column = counts.nonzero(as_tuple=True)
    many, size = counts[feature, column].double(), column + 1
    half = torch.full_like(many, 0.5)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(draws, len(levels), dtype=torch.int64)
    for row in sums:
        heads = torch.binomial(many, half, generator=generator)
        row.index_add_(0, feature, size * (2 * heads - many).long())
    return sums


def _magnitudes(levels: Tensor) -> Tensor:
    """Count pairs by size of their level, [m, LEVELS] from 1; pairs at zero decide nothing."""
    return levels[:, LEVELS + 1 :] + levels[:, :LEVELS].flip(1)


def _tails(counts: Tensor, odd: Tensor, points: int) -> Tensor:
    """Compute P(sum >= 2 v + odd) per feature for v = 0 .. points / 2 - 1, [f, points / 2].

    A sum has the parity of the magnitudes' sum, so (sum - odd) / 2 is whole, and its
    distribution is the inverse transform at as many angles as it has values.
    """
    angle = torch.arange(points // 2 + 1, dtype=torch.float64) * (math.pi / points)
    wave = torch.cos(torch.arange(1, LEVELS + 1, dtype=torch.float64)[:, None] * angle)
    size = (counts.double() @ wave.abs().log()).exp()
    negative = (counts % 2).double() @ (wave < 0).double() % 2
    spectrum = (size * (1 - 2 * negative)).to(torch.complex128)
    spectrum[odd == 1] *= torch.polar(torch.ones_like(angle), angle)
    # Not torch's: its transform of a single row fails in some builds with MKL.
    mass = torch.from_numpy(np.fft.irfft(spectrum.numpy(), points)[:, : points // 2]).clamp(min=0)
    return mass.flip(1).cumsum(1).flip(1)


def _normal_p(counts: Tensor, sums: Tensor) -> Tensor:
    size = torch.arange(1, LEVELS + 1)
    sd = (counts * size**2).sum(1).double().sqrt()
    largest = ((counts > 0) * size).amax(1)
    p: Tensor = torch.special.erfc((sums.abs() - largest) / (sd * math.sqrt(2)))
    return p
