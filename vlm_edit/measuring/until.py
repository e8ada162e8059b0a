"""Stop reading once intervals are narrow enough: where one looks, and what a look says."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.measures.dominance import Dominance

logger = logging.getLogger(__name__)

LEVEL = 0.9
FIRST = 512  # pairs read at the first look; twice as many at each next one
SHARE = 0.01
_LISTED = 8


class Look(NamedTuple):
    """Hold what a look at the pairs read so far has shown.

    Attributes:
        pairs: How many were measured by then.
        asked: How many features are asked about.
        wide: How many of those have a wider interval than asked.
        widest: The widest of their intervals, 1 where none is asked about.
    """

    pairs: int
    asked: int
    wide: int
    widest: float

    @property
    def settled(self) -> bool:
        """Return whether all intervals are narrow enough, and there are any."""
        return self.asked > 0 and self.wide == 0


@dataclass(frozen=True)
class Until:
    """Say how narrow the intervals of which features are to be.

    Looks are few, since each is another chance to stop on an interval that is narrow by luck.

    Attributes:
        width: Of each 90 % interval of a score, at most.
        features: Which are asked about; None for those that ``share`` tells.
        share: Of pairs, in which a feature fires at least to be asked about; then.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> dominance = modality_dominance(torch.ones(512, 2), torch.zeros(512, 2))
        >>> Until(0.02).look(dominance).settled
        True
    """

    width: float
    features: tuple[int, ...] | None = None
    share: float | None = SHARE

    @classmethod
    def of(
        cls,
        width: float | None,
        features: Iterable[int] | None,
        share: float | None,
        sizes: Sequence[int],
    ) -> Until | None:
        """Check what was asked; None where nothing was.

        Args:
            width: As in ``measure``, like the next two.
            features: Which are asked about.
            share: Of pairs.
            sizes: Features of each dictionary that is measured.

        Raises:
            BadArgument: Not a width, or features that are not there.
        """
        if width is None:
            if features is None and share is None:
                return None
            name = "until_share" if features is None else "until_features"
            raise BadArgument(
                f"{name} says whose intervals are to be narrow: say how narrow with until_width"
            )
        if not 0 < width < 1:
            raise BadArgument(
                f"until_width is {width}; intervals of a score lie between 0 and 1: give a width "
                "between them, such as .02"
            )
        if features is not None:
            if share is not None:
                raise BadArgument("until_features and until_share both say which: leave one out")
            return cls(float(width), _known(features, sizes), None)
        share = SHARE if share is None else share
        if not 0 <= share <= 1:
            raise BadArgument(f"until_share is {share}; a share of pairs lies between 0 and 1")
        return cls(float(width), None, float(share))

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Until | None:
        """Return what a run's settings say of it; None for nothing.

        Args:
            settings: Of a provenance.
        """
        there = settings.get("until")
        if there is None:
            return None
        features = there["features"]
        numbers = None if features is None else tuple(int(k) for k in features)
        return cls(float(there["width"]), numbers, there["share"])

    def as_json(self) -> dict[str, Any]:
        """Return it for a run's settings."""
        features = None if self.features is None else list(self.features)
        return {"width": self.width, "features": features, "share": self.share}

    def due(self, pairs: int, looks: Sequence[Sequence[Look]]) -> bool:
        """Return whether it is time for a look, for the same prefixes of any run.

        Args:
            pairs: Measured so far.
            looks: Made so far.
        """
        at = FIRST
        while looks and at <= looks[-1][0].pairs:
            at *= 2
        return pairs >= at

    def asked(self, dominance: Dominance) -> Tensor:
        """Mark the features that are asked about, [m] bool.

        Args:
            dominance: Of the pairs so far.
        """
        if self.features is None:
            least = (self.share or 0.0) * dominance.n_pairs
            return ~dominance.dead & (dominance.active >= least)
        mask = dominance.dead.clone().fill_(False)
        mask[list(self.features)] = True
        return mask

    def wide(self, dominance: Dominance) -> Tensor:
        """Mark the features whose interval is wider than asked, dead ones too, [m] bool.

        Args:
            dominance: Of the pairs so far.
        """
        return _widths(dominance) > self.width

    def look(self, dominance: Dominance) -> Look:
        """Look at the pairs so far.

        Args:
            dominance: Of them.
        """
        asked = self.asked(dominance)
        widths, wide = _widths(dominance)[asked], self.wide(dominance)[asked]
        widest = float(widths.max()) if len(widths) else 1.0
        return Look(dominance.n_pairs, len(widths), int(wide.sum()), widest)

    def log(self, look: Look) -> None:
        """Log what a look has shown.

        Args:
            look: Which.
        """
        logger.info(
            "%d pairs: of %d features asked about %d are wider than %g, the widest %.3f",
            *(look.pairs, look.asked, look.wide, self.width, look.widest),
        )

    def outcome(
        self, looks: Sequence[Look], stopped: bool, dominance: Dominance, read: int, of: int | None
    ) -> dict[str, Any]:
        """Say how it went, for a run's provenance, JSON-able.

        Args:
            looks: That were made.
            stopped: Whether the last of them ended the run.
            dominance: Of all that was read.
            read: Pairs read, also those left out.
            of: Pairs there are, where it is known.
        """
        last, wide = self.look(dominance), self.wide(dominance)
        others = wide & ~self.asked(dominance)
        return {
            **self.as_json(),
            "level": LEVEL,
            "looks": [look._asdict() for look in looks],
            "stopped": stopped,
            "read": read,
            "of": of,
            "asked": last.asked,
            "widest": last.widest,
            "not_settled": last.wide,
            "others_not_settled": int((others & ~dominance.dead).sum()),
            "others_dead": int((others & dominance.dead).sum()),
        }


def open_features(provenance: Mapping[str, Any], dominance: Dominance) -> list[int]:
    """Return the features that are not settled, dead ones left out unless they are asked about.

    Args:
        provenance: Of a run that was asked to stop at a width.
        dominance: Of the run.
    """
    until = Until.of_settings({"until": provenance["until"]})
    assert until is not None
    mask = until.wide(dominance) & (until.asked(dominance) | ~dominance.dead)
    return [int(k) for k in mask.nonzero().flatten()]


def told(provenance: Mapping[str, Any], dominance: Dominance) -> str:
    """Say in a sentence where reading stopped, and which features are not settled.

    Args:
        provenance: Of a run.
        dominance: Of the run.

    Returns:
        The sentence; empty for a run that was not asked to stop at a width.
    """
    there = provenance.get("until")
    if there is None:
        return ""
    read, width = several(there["read"], "pair"), _width(there["width"])
    of = "" if there["of"] is None else f"{there['read']:,} of {several(there['of'], 'pair')}"
    where = f"Stopped after {of or read}" if there["stopped"] else f"Read all {read}"
    if not there["asked"]:
        said = f"{_whose(there, 'no feature')}, so that no look could end it"
    elif there["not_settled"]:
        whose = _whose(there, several(there["asked"], "feature"))
        said = f"of {whose} {there['not_settled']:,} {_have(there['not_settled'])} a 90 % interval "
        said += f"wider than {width}"
    else:
        whose = _whose(there, several(there["asked"], "feature"))
        said = f"the 90 % intervals of {whose} are at most {width} wide"
    others, dead = there["others_not_settled"], there["others_dead"]
    rest = f"{several(others, 'other live feature')} wider" if others else ""
    rest += f"{' and ' * bool(others and dead)}{dead:,} dead" if dead else ""
    numbers = open_features(provenance, dominance)
    which = f" (not settled: {_listed(numbers)})" if numbers else ""
    return f"{where}: {said}{f'; {rest}' if rest else ''}{which}."


def _whose(there: Mapping[str, Any], subject: str) -> str:
    if there["features"] is not None:
        return f"the {subject} asked about"
    fires = "fires" if subject.startswith(("1 ", "no ")) else "fire"
    return f"{subject} that {fires} in at least {100 * there['share']:.3g} % of pairs".replace(
        "no feature that fires", "no feature fires"
    )


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _width(width: float) -> str:
    return f"{width:g}".removeprefix("0")


def _listed(numbers: Sequence[int]) -> str:
    more = f", and {len(numbers) - _LISTED:,} more" if len(numbers) > _LISTED else ""
    return ", ".join(map(str, numbers[:_LISTED])) + more


def _known(features: Iterable[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return features in order, each once, if there is one dictionary and it has them."""
    if len(sizes) > 1:
        raise BadArgument(
            f"until_features are numbers in one dictionary, and {len(sizes)} are measured "
            "together: leave it out, or measure them apart"
        )
    numbers = sorted({int(k) for k in features})
    if not numbers:
        raise BadArgument("until_features names no feature: name some, or leave it out")
    for k in (numbers[0], numbers[-1]):
        if not 0 <= k < sizes[0]:
            raise BadArgument(
                f"until_features names feature {k}, and the dictionary has {sizes[0]}: name some "
                f"of 0 to {sizes[0] - 1}"
            )
    return tuple(numbers)


def _widths(dominance: Dominance) -> Tensor:
    """Return the width of each feature's interval, 1 for a dead one, of which nothing is known."""
    low, high = dominance.intervals(LEVEL)
    return (high - low).nan_to_num(nan=1.0)
