"""Codes of pairs with planted dominance: to see what a measurement of some size can find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import VlmEditError

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

# Random numbers drawn at once, 8 MiB for each stream.
_CELLS = 1 << 20


@dataclass(frozen=True, eq=False)
class Planted:
    """Codes of images and texts, and the truth behind them.

    Attributes:
        image: [n, m] codes of the images.
        text: [n, m] codes of the texts of the same pairs.
        dominance: [m] float64, the true mean of ``|zI| / (|zI| + |zT|)`` over active pairs: what
            MDS estimates.
        rate: [m] float64, the true share of pairs in which a feature is active.
        paired: [m] bool, whether both streams of a pair tell of the same thing; where not, a
            feature fires in image and text independently of each other.
    """

    image: SparseCodes
    text: SparseCodes
    dominance: Tensor
    rate: Tensor
    paired: Tensor


def planted_pairs(
    n_pairs: int,
    dominance: Tensor,
    rate: Tensor | float = 0.01,
    noise: float = 0.3,
    strength: float = 1.0,
    paired: Tensor | bool = True,
    seed: int = 0,
) -> Planted:
    """Codes whose every feature has a known expected Modality Dominance Score.

    A feature is active in a pair with chance ``rate``. Its mass ``|zI| + |zT|`` there is
    exponential with mean ``strength``. Where it is paired the image's share of that mass is drawn
    from a Beta distribution of mean ``dominance``. Where it is not, image and text fire
    independently, with rates for which the expected score is ``dominance`` all the same: such a
    feature is no less cross-modal to the score, only to ``Dominance.paired``.

    Args:
        n_pairs: Pairs n.
        dominance: [m] within [0, 1], expected scores.
        rate: Within (0, 1], for all features or [m].
        noise: How much the image's share varies from pair to pair, as a part of the most it can
            at this mean: 0, not at all; 1, all or nothing, so that one stream fires at a time.
        strength: Above 0.
        paired: For all features or [m] bool.
        seed: Of the draws; the same codes for the same seed and arguments.

    Raises:
        VlmEditError: Numbers outside of these ranges or of another shape.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> planted = planted_pairs(4000, torch.tensor([0.2, 0.5, 1.0]), rate=0.5)
        >>> found = modality_dominance(planted.image, planted.text)
        >>> [round(score, 1) for score in found.scores.tolist()]
        [0.2, 0.5, 1.0]
    """
    truth = dominance.double().reshape(-1)
    m = len(truth)
    rates, matched = _per_feature(rate, m, "rate").double(), _per_feature(paired, m, "paired")
    matched = matched.bool()
    _expect(bool(((truth >= 0) & (truth <= 1)).all()), f"dominance within [0, 1], got {dominance}")
    _expect(bool(((rates > 0) & (rates <= 1)).all()), f"rate within (0, 1], got {rate}")
    _expect(0 <= noise <= 1, f"noise within [0, 1], got {noise}")
    _expect(strength > 0, f"strength above 0, got {strength}")
    _expect(n_pairs >= 1, f"one pair or more, got {n_pairs}")
    generator = np.random.default_rng(seed)
    chance = _chances(truth.numpy(), rates.numpy(), matched.numpy())
    together = matched.numpy()
    parts: list[list[tuple[Whole, Whole, Array]]] = [[], []]
    step = max(1, _CELLS // max(1, m))
    for start in range(0, n_pairs, step):
        drawn = generator.random((min(step, n_pairs - start), m))
        other = np.where(together, drawn, generator.random(drawn.shape))
        fires = (drawn < chance[0], other < chance[1])
        row, feature = (axis.astype(np.int64) for axis in (fires[0] | fires[1]).nonzero())
        mass = generator.exponential(strength, len(row))
        share = _shares(truth.numpy()[feature], noise, generator)
        lone = (fires[0] != fires[1])[row, feature]
        share = np.where(lone, fires[0][row, feature], share)
        for part, value in zip(parts, (share * mass, (1 - share) * mass), strict=True):
            seen = value > 0
            part.append((row[seen] + start, feature[seen], value[seen]))
    image, text = (_codes(part, (n_pairs, m)) for part in parts)
    return Planted(image, text, truth, rates, matched)


def _chances(truth: Array, rate: Array, together: NDArray[np.bool_]) -> tuple[Array, Array]:
    """How often the image and the text of a feature fire, [m] each.

    Unpaired, (1 - a)(1 - b) = 1 - rate for a pair to be active with chance ``rate``, and
    a (1 - b) : b (1 - a) = truth : 1 - truth for lone images among lone firings.
    """
    image = np.where(together, rate, 1 - _silence(truth, 1 - rate))
    text = np.where(together, rate, 1 - _silence(1 - truth, 1 - rate))
    return image, text


def _silence(truth: Array, silent: Array) -> Array:
    """The root 1 - a of ``D x^2 + s (1 - 2 D) x - s (1 - D) = 0``, s = 1 - rate; s or 1 at ends."""
    linear = silent * (1 - 2 * truth)
    root = np.sqrt(linear**2 + 4 * truth * silent * (1 - truth))
    # The form without cancellation; 0 / 0 where nothing is silent and the text never fires.
    below = linear + root
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 2 * silent * (1 - truth) / below
    found = np.where(below > 0, found, 0.0)
    return np.where(truth == 0, 1.0, np.where(truth == 1, silent, found))


def _shares(truth: Array, noise: float, generator: np.random.Generator) -> Array:
    """Numbers in [0, 1] of the given means, and of noise * mean * (1 - mean) as variance."""
    if noise == 0:
        return truth
    if noise == 1:
        return (generator.random(len(truth)) < truth).astype(np.float64)
    inner = (truth > 0) & (truth < 1)
    mean, weight = np.where(inner, truth, 0.5), 1 / noise - 1
    return np.where(inner, generator.beta(mean * weight, (1 - mean) * weight), truth)


def _codes(parts: list[tuple[Whole, Whole, Array]], shape: tuple[int, int]) -> SparseCodes:
    rows, features, values = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
    )
    return SparseCodes(rows, features, values, shape)


def _per_feature(value: Tensor | float | bool, m: int, name: str) -> Tensor:
    found = torch.as_tensor(value)
    _expect(found.ndim == 0 or found.shape == (m,), f"one {name} or [{m}], got {found.shape}")
    return found.expand(m).clone()


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise VlmEditError(f"planted pairs need {what}")
