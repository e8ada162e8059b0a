"""Features by what a measurement says of them: class, score, how often they fire."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.measures.dominance import (
    FEW,
    Cut,
    Dominance,
    HasDominance,
    candidates,
    dominance_of,
    sureness,
)

Kind = Literal["vision", "language", "cross", "undecided", "dead"]
Fires = Literal["image", "text", "both", "either"]

_MIDDLE = 0.5


class Chosen(list[int]):
    """Features chosen for an edit: a list of their numbers, which knows how many are proven.

    Attributes:
        kind: The class they were chosen for.
        proven: How many of them have that label by their intervals.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> chosen = by_class(modality_dominance(torch.ones(9, 2), torch.ones(9, 2)), "cross", n=1)
        >>> list(chosen), str(chosen)
        ([0], '1 feature for cross, 1 of them proven')
    """

    def __init__(self, numbers: Iterable[int], kind: str, proven: int) -> None:
        super().__init__(numbers)
        self.kind, self.proven = kind, proven

    def __str__(self) -> str:
        """Say how many there are, and how many of them are proven."""
        return f"{several(len(self), 'feature')} for {self.kind}, {self.proven:,} of them proven"


class FewFeatures(UserWarning):
    """Warn of fewer features than were asked for."""


def by_class(
    measured: Dominance | HasDominance,
    kind: Kind,
    rule: Cut = "interval",
    *,
    n: int | None = None,
    low: float = 0.4,
    high: float = 0.6,
    alpha: float = 0.05,
    paired: bool = False,
    least: int = FEW,
) -> Chosen:
    """Select features of a class for an edit, surest first.

    A label states, and must be earned; a selection ranks. Without ``n`` these are the features
    with the label. With ``n`` they are so many of those on the class's side of the cuts, proven or
    not: vision-dominant ones by the low end of their score's interval, language-dominant ones by
    the high end, cross-modal ones by how near .5 both ends lie, so that a feature that is 1 in
    three pairs stands behind one that is .98 in three hundred. Undecided and dead ones by number.

    Args:
        measured: A measurement, or its dominance, of any kind of dictionary.
        kind: ``vision``, ``language``, ``cross``, ``undecided`` or ``dead``.
        rule: As in ``Dominance.classes``; by another than ``interval``, its members alone.
        n: How many; None for all that have the label.
        low: Lower cut of all rules but ``sd``.
        high: Upper cut of those.
        alpha: Error of a label by ``interval``, false discovery rate of ``significant`` and of
            ``paired``.
        paired: Only features that fire in both streams of a pair more often than in shuffled
            pairs (``Dominance.paired``); the score itself does not see the pairing.
        least: With ``n``, images in which a feature must be active.

    Returns:
        A list that says how many are proven. It warns (``FewFeatures``) where none is, and where
        there are fewer than ``n``.

    Raises:
        VlmEditError: An unknown class or rule, cuts that do not rise, a rate outside of 0 to 1,
            fewer than one feature asked for.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> image, text = torch.ones(40, 3), torch.tensor([0.1, 0.0, 1.0]).repeat(40, 1)
        >>> by_class(modality_dominance(image, text), "vision")
        [1, 0]
        >>> by_class(modality_dominance(image, text), "cross", n=1)
        [2]
    """
    if kind not in get_args(Kind):
        raise BadArgument(f"no class {kind!r} of features: use one of {get_args(Kind)}")
    dominance = dominance_of(measured)
    if n is None:
        mask = torch.zeros(len(dominance.scores), dtype=torch.bool)
        mask[dominance.classes(rule, low, high, alpha)[kind]] = True
    else:
        mask = candidates(dominance, kind, rule, low, high, alpha, 0 if kind == "dead" else least)
    if paired:
        mask &= dominance.paired(alpha)
    numbers = ordered(sureness(dominance, kind), mask, n)
    labelled = set(dominance.classes("interval", low, high, alpha)[kind])
    chosen = Chosen(numbers, kind, len(labelled.intersection(numbers)))
    _expect_some(chosen, n, dominance, rule)
    return chosen


def _expect_some(chosen: Chosen, n: int | None, dominance: Dominance, rule: Cut) -> None:
    """Warn of a selection that is empty or short."""
    if n is not None and len(chosen) < n:
        warnings.warn(
            f"{len(chosen)} features can be chosen for {chosen.kind} where {n} were asked for: "
            "widen the cuts, or measure more pairs",
            FewFeatures,
            stacklevel=3,
        )
    elif not chosen and n is None and chosen.kind in ("vision", "language", "cross"):
        near = int(candidates(dominance, chosen.kind).sum())
        text = f"no feature is {chosen.kind} by the rule {rule!r}"
        if rule == "interval" and near:
            text += (
                f"; {near} have such a score, unproven: n= takes the surest of them, and "
                "how_many_pairs(...) says what a proof needs"
            )
        warnings.warn(text, FewFeatures, stacklevel=3)


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
