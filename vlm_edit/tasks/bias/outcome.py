"""What an edit did, case by case, so that ways can be compared on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate, mean_estimate, middle, proportion
from vlm_edit.measures.probing import probe
from vlm_edit.report import Table
from vlm_edit.tasks.bias.metrics import (
    SKEWS,
    accuracy_by_group,
    accuracy_gap,
    balanced_accuracy,
    chance_skew,
    retrieval_skew,
    worst_group,
)
from vlm_edit.tasks.bias.study import Study

DEALT = "(groups dealt at random)"
BELOW = ", below chance"


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
        if questions.queries:
            similarity = study.query_similarity()
            cases |= retrieval_skew(similarity, groups, k)
            chance = chance_skew(similarity, groups, k)
        return cls(tuple(groups), cases, k, chance)

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
        chance = {
            name: torch.cat([own, other.chance[name]], dim=1)
            for name, own in self.chance.items()
            if name in other.chance
        }
        return Outcome(self.groups + other.groups, cases, self.k, chance)

    def estimate(self, name: str) -> Estimate:
        """Return a figure with its interval.

        ``read`` and ``probe`` are balanced over groups, the skews means over queries, the others
        shares (Wilson).

        Raises:
            VlmEditError: A figure that was not asked for.
        """
        values = self._case(name)
        if name in ("read", "probe"):
            return balanced_accuracy(values, self.groups)
        if name in SKEWS:
            return mean_estimate(values)
        return proportion(int(values.sum()), len(values))

    def by_chance(self, name: str) -> Estimate:
        """Return a skew if groups meant nothing: the mean, and the middle 95 % of draws.

        Raises:
            VlmEditError: A figure of which chance was not drawn.
        """
        if name not in self.chance:
            raise UnknownName(
                f"of {name!r} no chance was drawn: there is {', '.join(self.chance) or 'none'}"
            )
        means = self.chance[name].mean(1)
        return Estimate(float(means.mean()), *middle(means), len(means))

    def below_chance(self, name: str) -> bool:
        """Say whether ``read`` or ``probe`` is right less often than a guess, by all its interval.

        Groups are then told as well as ever, by taking each for the other.
        """
        return self.estimate(name).high < 1 / len(set(self.groups))

    def by_group(self, name: str) -> dict[str, Estimate]:
        """Return ``read``, ``probe`` or ``recognised`` of each group."""
        return accuracy_by_group(self._case(name), self.groups)

    def gap(self, name: str) -> Estimate:
        """Return the highest less the lowest of those."""
        return accuracy_gap(self._case(name), self.groups)

    def worst(self, name: str) -> tuple[str, Estimate]:
        """Return the group of the lowest of those."""
        return worst_group(self._case(name), self.groups)

    def ahead(self, other: Outcome, name: str) -> Estimate:
        """Estimate how far this mean lies above another's on the same cases.

        Raises:
            VlmEditError: Other cases, or a figure that was not asked for.
        """
        one, two = self._case(name), other._case(name)
        if len(one) != len(two):
            raise BadArgument(f"{len(one)} and {len(two)} cases of {name!r} are not the same ones")
        return mean_estimate(one.double() - two.double())

    def _case(self, name: str) -> Tensor:
        if name not in self.cases:
            raise UnknownName(f"{name!r} was not asked for: there are {', '.join(self.cases)}")
        return self.cases[name]


def effect_table(outcomes: Mapping[str, Outcome], title: str, note: str = "") -> Table:
    """Show what is still read of the attribute, and how unequal retrieval is, a row a way.

    The first row is what the skews of the first way would be if groups were dealt to the images
    at random: the mean, and the middle 95 % of the draws. What is read less often than a guess
    would be says so.
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
            columns[f"{name}@{first.k}"] = _of(name)
    table = _table(outcomes, columns, title, note)
    if not first.chance:
        return table
    chance = {f"{name}@{first.k}": str(first.by_chance(name)) for name in first.chance}
    row = (DEALT, *(chance.get(column, "") for column in columns))
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


def _of_group(name: str, group: str) -> Callable[[Outcome], str]:
    return lambda outcome: str(outcome.by_group(name)[group])
