"""Features by what a measurement says of them: class, score, how often they fire."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.dominance import Cut, Dominance, sureness

Kind = Literal["vision", "language", "cross", "undecided", "dead"]
Fires = Literal["image", "text", "both", "either"]

_MIDDLE = 0.5


def by_class(
    dominance: Dominance,
    kind: Kind,
    rule: Cut = "significant",
    *,
    low: float = 0.4,
    high: float = 0.6,
    alpha: float = 0.05,
    paired: bool = False,
) -> list[int]:
    """Select the features of one class of dominance, surest first.

    Vision-dominant features by the low end of their score's interval, language-dominant ones by
    the high end, cross-modal ones by how near .5 both ends lie: a feature that is 1 in three pairs
    stands behind one that is .98 in three hundred. Undecided and dead ones by number.

    Args:
        dominance: Of any kind of dictionary, such as ``measure(...).dominance``.
        kind: ``vision``, ``language``, ``cross``, ``undecided`` or ``dead``.
        rule: ``significant``, ``sd`` or ``fixed``, as in ``Dominance.classes``.
        low: Lower cut of ``significant`` and ``fixed``.
        high: Upper cut of those.
        alpha: False discovery rate of ``significant``, and of ``paired``.
        paired: Only features that fire in both streams of a pair more often than in shuffled
            pairs (``Dominance.paired``); the score itself does not see the pairing.

    Raises:
        VlmEditError: An unknown class or rule, cuts that do not rise, a rate outside of 0 to 1.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> image, text = torch.ones(40, 3), torch.tensor([0.1, 0.0, 1.0]).repeat(40, 1)
        >>> by_class(modality_dominance(image, text), "vision")
        [1, 0]
        >>> by_class(modality_dominance(image, text), "cross", "fixed")
        [2]
    """
    if kind not in get_args(Kind):
        raise BadArgument(f"no class {kind!r} of features: use one of {get_args(Kind)}")
    mask = torch.zeros(len(dominance.scores), dtype=torch.bool)
    mask[dominance.classes(rule, low, high, alpha)[kind]] = True
    if paired:
        mask &= dominance.paired(alpha)
    return ordered(sureness(dominance, kind), mask)


def by_score(
    dominance: Dominance, low: float = 0.0, high: float = 1.0, *, interval: float | None = None
) -> list[int]:
    """Select features whose score lies in a range, the most one-sided (furthest from .5) first.

    Args:
        dominance: Of any kind of dictionary.
        low: Lowest score, itself included.
        high: Highest, likewise.
        interval: A level such as .95, to ask that the whole confidence interval lie in the range
            (``Dominance.intervals``); None to ask it of the score alone.

    Raises:
        VlmEditError: A range outside of 0 to 1 or that does not rise, or no such level.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> dominance = modality_dominance(torch.ones(30, 2), torch.tensor([[0.0, 0.5]] * 30))
        >>> by_score(dominance, low=0.6), by_score(dominance, low=0.6, interval=0.95)
        ([0, 1], [0, 1])
        >>> by_score(dominance, low=0.66), by_score(dominance, low=0.66, interval=0.95)
        ([0, 1], [0])
    """
    _expect_range("scores", low, high)
    below = above = dominance.scores
    if interval is not None:
        below, above = dominance.intervals(interval)
    mask = (below >= low) & (above <= high)  # NaN of dead features is neither
    return ordered((dominance.scores - _MIDDLE).abs(), mask)


def by_firing(
    dominance: Dominance, stream: Fires = "either", low: float = 0.0, high: float = 1.0
) -> list[int]:
    """Select features that fire in a share of the pairs, the busiest first.

    Args:
        dominance: Of any kind of dictionary.
        stream: The share of pairs whose ``image`` fires it, whose ``text``, ``both`` or
            ``either``.
        low: Lowest share, itself included; above 0 to leave out what never fires.
        high: Highest, likewise; below 1 to leave out what always does.

    Raises:
        VlmEditError: An unknown stream, or a range outside of 0 to 1 or that does not rise.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> image = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> dominance = modality_dominance(image, torch.zeros(2, 3))
        >>> by_firing(dominance, "image", low=0.5), by_firing(dominance, "image", high=0.5)
        ([0, 1], [1, 2])
    """
    if stream not in get_args(Fires):
        raise BadArgument(f"stream is {stream!r}: use one of {get_args(Fires)}")
    _expect_range("shares of firing", low, high)
    counts = {
        "image": dominance.image_active,
        "text": dominance.text_active,
        "both": dominance.both_active,
        "either": dominance.active,
    }
    rate = counts[stream].double() / dominance.n_pairs
    return ordered(rate, (rate >= low) & (rate <= high))


def ordered(strength: Tensor, chosen: Tensor, most: int | None = None) -> list[int]:
    """List the chosen features, strongest first, of equal ones the lower number first.

    Args:
        strength: [m], not NaN for chosen ones.
        chosen: [m] bool.
        most: How many at most; None for all.

    Raises:
        VlmEditError: ``most`` below 1.

    Example:
        >>> import torch
        >>> ordered(torch.tensor([1.0, 3.0, 3.0, 9.0]), torch.tensor([True, True, True, False]))
        [1, 2, 0]
    """
    if most is not None and most < 1:
        raise BadArgument(f"most is {most}: ask for at least 1 feature, or None for all")
    numbers = chosen.nonzero().flatten()
    order = strength[numbers].argsort(descending=True, stable=True)
    return numbers[order][:most].tolist()


def _expect_range(what: str, low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise BadArgument(f"{what} rise within [0, 1], got low={low}, high={high}")
