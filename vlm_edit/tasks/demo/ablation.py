"""What the bundled LLaVA still answers when features are taken out at image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.edits import Ablate
from vlm_edit.ground.statistics import Estimate, drawn_difference, share_difference
from vlm_edit.measures.controls import activity_matched, random_features, turned
from vlm_edit.patches import Patch
from vlm_edit.report import Table
from vlm_edit.tasks.demo.factors import Check, alive, estimates, over_draws
from vlm_edit.tasks.demo.interview import (
    ASKED,
    Interview,
    Sizes,
    cells,
    draw,
    guess,
)

COLUMNS = ("name", "background", "who (people)")


@dataclass(eq=False)
class Ablation:
    """Before and after taking features out at image tokens.

    Args:
        interview: Asks.
        classes: Features by class.
        codes: Per stream [n, m], pooled over tokens.
        sizes: How many pairs are asked about.
    """

    interview: Interview
    classes: Mapping[str, list[int]]
    codes: Mapping[str, Tensor]
    sizes: Sizes

    def __post_init__(self) -> None:
        self.numbers = draw(len(self.interview.pairs), self.sizes.edited)
        self.activity = self.codes["image"].mean(0)
        self.live = alive(self.classes)

    def table(self) -> tuple[Table, list[Check]]:
        """Return the accuracy of each question, and what it proves."""
        ask, vision = self.interview, self.classes["vision"]
        before = ask.examine(self.numbers)
        patch = ask.patch(Ablate(vision))
        after = ask.examine(self.numbers, patch)
        rows = [
            self._guessing(),
            ("nothing", "", "", *cells(estimates(before))),
            self._row(f"vision ({len(vision)})", patch, vision, estimates(after)),
        ]
        controls = self._controls(vision)
        draws = {name: self._draws(name, patches, rows) for name, patches in controls.items()}
        for name in ("language", "cross"):
            members = self.classes[name]
            if members:
                other = ask.patch(Ablate(members))
                row = estimates(ask.examine(self.numbers, other))
                rows.append(self._row(f"{name} ({len(members)})", other, members, row))
        table = Table(
            "Ablate features at image tokens: which questions are still answered",
            ("ablated", "activity", "moved", *COLUMNS),
            rows,
            self._note(),
        )
        return table, self._checks(before, after, draws)

    def _guessing(self) -> tuple[str, ...]:
        truth, ask = self.interview.truth, self.interview
        numbers = set(self.numbers)
        people = [i for i in ask.people if i in numbers]
        truths = [[truth[q][i] for i in (people if q == "who" else self.numbers)] for q in ASKED]
        return ("(the commonest answer)", "", "", *cells([guess(answers) for answers in truths]))

    def _controls(self, vision: list[int]) -> dict[str, list[tuple[Patch, list[int]]]]:
        ask, size = self.interview, len(vision)
        draws = self.sizes.draws
        counted = random_features(vision, self.live, draws)
        active = activity_matched(vision, self.live, self.activity, draws)
        elsewhere = [turned(ask.dictionary, seed) for seed in range(draws)]
        return {
            f"{size} random": [(ask.patch(Ablate(f)), f) for f in counted],
            "random, as active": [(ask.patch(Ablate(f)), f) for f in active],
            "vision, turned at random": [
                (ask.patch(Ablate(vision), other), vision) for other in elsewhere
            ],
        }

    def _draws(
        self,
        name: str,
        patches: Sequence[tuple[Patch, list[int]]],
        rows: list[tuple[str, ...]],
    ) -> list[list[Tensor]]:
        few = self.numbers[: self.sizes.control]
        draws = [self.interview.examine(few, patch) for patch, _ in patches]
        sizes = sorted({len(features) for _, features in patches})
        if name == "random, as active":
            name = f"{sizes[0]} to {sizes[-1]} {name}"
        active = [float(self.activity[f].sum() / self.activity.sum()) for _, f in patches]
        shifts = [self.interview.moved(patch, few[:32]) for patch, _ in patches]
        means = f"{sum(active) / len(active):.0%}", f"{sum(shifts) / len(shifts):.0%}"
        rows.append((name, *means, *cells(over_draws(draws))))
        return draws

    def _row(
        self, name: str, patch: Patch, features: Sequence[int], told: Sequence[Estimate]
    ) -> tuple[str, ...]:
        share = float(self.activity[list(features)].sum() / self.activity.sum())
        shift = self.interview.moved(patch, self.numbers[:32])
        return (name, f"{share:.0%}", f"{shift:.0%}", *cells(told))

    def _note(self) -> str:
        people = len(set(self.interview.people) & set(self.numbers))
        return (
            f"Shares of {len(self.numbers)} pairs ({people} people), 95 % Wilson intervals. "
            f"Random rows: mean of {self.sizes.draws} draws on\n{self.sizes.control} of them, "
            "[lowest, highest]. Activity: share of all activity at image tokens; moved: |change| "
            "of an\nimage token by |token|. As active: as many random features as it takes to "
            "reach the same activity.\nTurned: the same change of each token, along directions "
            "turned by one random rotation."
        )

    def _checks(
        self,
        before: list[Tensor],
        after: list[Tensor],
        drawn: Mapping[str, list[list[Tensor]]],
    ) -> list[Check]:
        """Compare the loss with each control's, on the pairs that both were asked about."""
        few = self.numbers[: self.sizes.control]
        verdicts = []
        for column, name in enumerate(COLUMNS[:2]):
            loss = share_difference(before[column], after[column])
            comparisons, holds = [], loss.low > 0
            for control, draws in drawn.items():
                answers = torch.stack([d[column].double() for d in draws])
                ahead = drawn_difference(answers, after[column][None, : len(few)].double())
                comparisons.append(f"{ahead} more than {control}")
                holds = holds and (ahead.low > 0 or control == "random, as active")
            verdicts.append(
                Check(
                    f"without vision-dominant features it loses the {name}, more than without "
                    "as many random ones\n    and more than by as large a change in random "
                    "directions",
                    holds,
                    f"loses {loss};\n    " + ",\n    ".join(comparisons),
                )
            )
        return verdicts
