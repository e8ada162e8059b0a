"""What an edit did, case by case, so that ways can be compared on the same cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate, mean_estimate, middle, share_difference, short
from vlm_edit.measures.probing import probe
from vlm_edit.report import Table
from vlm_edit.tasks.bias.metrics import (
    accuracy_by_group,
    accuracy_gap,
    balanced_accuracy,
    balanced_difference,
    worst_group,
)
from vlm_edit.tasks.bias.skews import SKEWS, chance_skew, resampled_skew, retrieval_skew
from vlm_edit.tasks.bias.study import Study

PERMUTED = "(groups permuted)"
BELOW = ", below chance"
_BALANCED = ("read", "probe")
_TOLD_APART = (*_BALANCED, "recognised")
_Z = 1.96
_TIE = 1e-9  # means of the same lists may differ by rounding


@dataclass(frozen=True, eq=False)
class Outcome:
    """Every case of a study, as far as it can be asked for.

    Attributes:
        groups: Of the images that are told apart, m of them.
        cases: By figure: [m] of those images for ``read``, ``probe`` and ``recognised``; [n] of
            all images for ``kept``, ``R@1`` and ``R@5``; [q] of the queries for the skews.
        k: Hits that the skews count.
        chance: By skew, what it would be if groups were dealt to the images at random, [draws, q]
            of the queries.
        resampled: By skew, what it is of images and queries drawn anew, likewise.
        images: By figure which image each case shows, where one comes several times.

    Example:
        >>> import torch
        >>> read = torch.tensor([True, False])
        >>> one = Outcome(("a", "b"), {"read": read}, 1)
        >>> (one + one).estimate("read").n
        4
    """

    groups: tuple[str, ...]
    cases: Mapping[str, Tensor] = field(default_factory=dict)
    k: int = 20
    chance: Mapping[str, Tensor] = field(default_factory=dict)
    resampled: Mapping[str, Tensor] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, k: int = 20, folds: int = 5) -> Outcome:
        """Ask a study everything that its questions and columns allow.

        Args:
            study: Edited or not.
            k: Hits that the skews count; at most the images that are told apart.
            folds: Of the probe, which is trained on the study's own images anew and tells what an
                edit leaves to whoever has labels. 0 for none.
        """
        questions, groups = study.questions, study.asked_groups
        k = min(k, len(groups))
        cases = {"read": study.named_right()}
        if folds and min(groups.count(g) for g in set(groups)) >= folds:
            cases["probe"] = probe(study.image[study.told_apart], groups, folds)
        if questions.labels:
            cases |= {"recognised": study.recognised(), "kept": study.kept()}
        if len(set(study.pairs.texts)) > 1:
            cases |= {f"R@{at}": study.finds(at) for at in (1, 5)}
        chance: dict[str, Tensor] = {}
        resampled: dict[str, Tensor] = {}
        if questions.queries:
            once = study.once()  # a list of hits shows an image once, whatever its captions
            similarity = study.query_similarity()[:, once]
            found = similarity, [groups[i] for i in once], min(k, len(once))
            cases |= retrieval_skew(*found)
            chance, resampled = chance_skew(*found), resampled_skew(*found)
        images: dict[str, Tensor] = {}
        if study.images is not None:
            some = study.images[study.told_apart]
            of_images = [name for name in cases if name not in SKEWS]
            images = {name: some if name in _TOLD_APART else study.images for name in of_images}
        return cls(tuple(groups), cases, k, chance, resampled, images)

    def __add__(self, other: Outcome) -> Outcome:
        """Join both outcomes' cases: of several splits, each tuned on the others' images.

        Raises:
            VlmEditError: They ask different things.
        """
        if set(self.cases) != set(other.cases) or self.k != other.k:
            raise BadArgument(
                f"outcomes of {sorted(self.cases)} at {self.k} hits and {sorted(other.cases)} at "
                f"{other.k} cannot be joined"
            )
        cases = {name: torch.cat([own, other.cases[name]]) for name, own in self.cases.items()}
        chance, resampled = (
            {name: torch.cat([own, more[name]], 1) for name, own in draws.items() if name in more}
            for draws, more in ((self.chance, other.chance), (self.resampled, other.resampled))
        )
        images = {
            name: torch.cat([self._numbers(name), other._numbers(name) + len(self.cases[name])])
            for name in {**self.images, **other.images}
        }
        return Outcome(self.groups + other.groups, cases, self.k, chance, resampled, images)

    def _numbers(self, name: str) -> Tensor:
        """Return which image each case shows, below the number of cases."""
        if name not in self.images:
            return torch.arange(len(self.cases[name]))
        numbers: Tensor = self.images[name].unique(return_inverse=True)[1]
        return numbers

    def estimate(self, name: str) -> Estimate:
        """Return a figure with its interval.

        ``read`` and ``probe`` are balanced over groups, the skews means over queries, the others
        shares (Wilson). Of a skew both images and queries vary, where they were drawn anew.

        Raises:
            VlmEditError: A figure that was not asked for.
        """
        values, images = self._case(name), self.images.get(name)
        if name in _BALANCED:
            return balanced_accuracy(values, self.groups, images)
        if name in self.resampled:
            return _around(values, self.resampled[name].mean(1), least=0.0)
        return mean_estimate(values, images)

    def by_chance(self, name: str) -> Estimate:
        """Return a skew if groups meant nothing: the mean, and the middle 95 % of draws.

        Raises:
            VlmEditError: A figure of which chance was not drawn.
        """
        means = self._drawn(name)
        return Estimate(float(means.mean()), *middle(means), len(means))

    def p(self, name: str) -> float:
        """Return how often chance alone makes a skew as high, of the draws and the skew itself.

        Raises:
            VlmEditError: As ``by_chance``.
        """
        means = self._drawn(name)
        as_high = means >= self._case(name).mean() - _TIE
        return (1 + int(as_high.sum())) / (1 + len(means))

    def _drawn(self, name: str) -> Tensor:
        if name not in self.chance:
            raise UnknownName(
                f"of {name!r} no chance was drawn: there is {', '.join(self.chance) or 'none'}"
            )
        return self.chance[name].mean(1)

    def below_chance(self, name: str) -> bool:
        """Say whether ``read`` or ``probe`` is right less often than a guess, by all its interval.

        Groups are then told as well as ever, by taking each for the other.
        """
        return self.estimate(name).high < 1 / len(set(self.groups))

    def by_group(self, name: str) -> dict[str, Estimate]:
        """Return ``read``, ``probe`` or ``recognised`` of each group."""
        return accuracy_by_group(self._case(name), self.groups, self.images.get(name))

    def gap(self, name: str) -> Estimate:
        """Return the highest less the lowest of those."""
        return accuracy_gap(self._case(name), self.groups)

    def worst(self, name: str) -> tuple[str, Estimate]:
        """Return the group of the lowest of those."""
        return worst_group(self._case(name), self.groups, self.images.get(name))

    def ahead(self, other: Outcome, name: str) -> Estimate:
        """Estimate how far this figure lies above another's on the same cases, case by case.

        Raises:
            VlmEditError: Other cases, or a figure that was not asked for.
        """
        one, two, images = self._case(name), other._case(name), self.images.get(name)
        if len(one) != len(two):
            raise BadArgument(f"{len(one)} and {len(two)} cases of {name!r} are not the same ones")
        if name in _BALANCED:
            return balanced_difference(one, two, self.groups, images)
        if name not in SKEWS:
            return share_difference(one, two, images)
        apart = one - two
        if name in self.resampled and name in other.resampled:
            return _around(apart, (self.resampled[name] - other.resampled[name]).mean(1))
        return mean_estimate(apart)

    def _case(self, name: str) -> Tensor:
        if name not in self.cases:
            raise UnknownName(f"{name!r} was not asked for: there are {', '.join(self.cases)}")
        return self.cases[name]


def effect_table(outcomes: Mapping[str, Outcome], title: str, note: str = "") -> Table:
    """Show what is still read of the attribute, and how unequal retrieval is, a row a way.

    The first row is what the skews of the first way would be if groups were dealt to the images
    at random: the mean, and the middle 95 % of the draws. Behind a skew stands how often such a
    dealing makes it as high. What is read less often than a guess would be says so.
    """
    first = next(iter(outcomes.values()))
    groups = sorted(set(first.groups))
    columns: dict[str, Callable[[Outcome], str]] = {"read": _read("read")}
    for group in groups:
        columns[group] = _of_group("read", group)
    if "probe" in first.cases:
        columns["probe"] = _read("probe")
    for name in SKEWS:
        if name in first.cases:
            columns[f"{name}@{first.k}"] = _skew(name)
    table = _table(outcomes, columns, title, note)
    if not first.chance:
        return table
    chance = {f"{name}@{first.k}": str(first.by_chance(name)) for name in first.chance}
    row = (PERMUTED, *(chance.get(column, "") for column in columns))
    return replace(table, rows=[row, *table.rows])


def cost_table(outcomes: Mapping[str, Outcome], title: str, note: str = "") -> Table | None:
    """Show what is still recognised and found, a row a way; None where nothing of it was asked."""
    first = next(iter(outcomes.values()))
    columns: dict[str, Callable[[Outcome], str]] = {}
    if "recognised" in first.cases:
        columns["recognised"] = _of("recognised")
        columns["gap"] = lambda o: str(o.gap("recognised"))
        columns["worst group"] = lambda o: "{1} ({0})".format(*o.worst("recognised"))
        columns["of all images"] = _of("kept")
    for name in ("R@1", "R@5"):
        if name in first.cases:
            columns[name] = _of(name)
    return _table(outcomes, columns, title, note) if columns else None


def _table(
    outcomes: Mapping[str, Outcome],
    columns: Mapping[str, Callable[[Outcome], str]],
    title: str,
    note: str,
) -> Table:
    rows: Sequence[Sequence[str]] = [
        (name, *(cell(outcome) for cell in columns.values())) for name, outcome in outcomes.items()
    ]
    return Table(title, ("edit", *columns), rows, note)


def _read(name: str) -> Callable[[Outcome], str]:
    return lambda outcome: f"{outcome.estimate(name)}{BELOW if outcome.below_chance(name) else ''}"


def _of(name: str) -> Callable[[Outcome], str]:
    return lambda outcome: str(outcome.estimate(name))


def _skew(name: str) -> Callable[[Outcome], str]:
    def cell(outcome: Outcome) -> str:
        p = f", p {short(outcome.p(name), 3)}" if name in outcome.chance else ""
        return f"{outcome.estimate(name)}{p}"

    return cell


def _around(values: Tensor, draws: Tensor, least: float = -math.inf) -> Estimate:
    """Estimate a mean with an interval as wide as draws of it spread."""
    mean, half = float(values.mean()), _Z * float(draws.std())
    return Estimate(mean, max(least, mean - half), mean + half, len(values))


def _of_group(name: str, group: str) -> Callable[[Outcome], str]:
    return lambda outcome: str(outcome.by_group(name)[group])
