"""Making the bundled LLaVA see another background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.edits import Clamp, Rule
from vlm_edit.ground.statistics import share_difference
from vlm_edit.measures.controls import turned
from vlm_edit.measures.probing import variance_explained
from vlm_edit.patches import Patch
from vlm_edit.report import Table
from vlm_edit.tasks.demo.factors import CARRIES, Check, estimates
from vlm_edit.tasks.demo.interview import Interview, Sizes, cells, draw

GAIN = 8.0  # how far steering overshoots the target's mean; chosen on drawings not shipped


@dataclass(eq=False)
class Steering:
    """What makes the host see another background: the features that carry it are clamped.

    Args:
        interview: Asks.
        codes: [n, m] of the image tokens, pooled.
        sizes: How many pairs are asked about.
    """

    interview: Interview
    codes: Tensor
    sizes: Sizes

    def __post_init__(self) -> None:
        order = draw(len(self.codes), len(self.codes), seed=1)
        half = len(order) // 2
        self.learned, self.asked = order[:half], order[half:]
        self.truth = self.interview.truth["background"]
        self.colours = sorted(set(self.truth))
        labels = [self.truth[i] for i in self.learned]
        shares = variance_explained(self.codes[self.learned], labels)
        self.carriers = (shares > CARRIES).nonzero().flatten().tolist()
        live = (self.codes[self.learned].mean(0) > 0) & (shares <= CARRIES)
        self.others = live.nonzero().flatten().tolist()

    def rules(self, colour: str, features: Sequence[int] | None = None) -> list[Rule]:
        """Return clamps that push features from their mean past that on images of this background.

        Args:
            colour: The target.
            features: By default those that carry the background.
        """
        rows = [i for i in self.learned if self.truth[i] == colour]
        mean, there = self.codes[self.learned].mean(0), self.codes[rows].mean(0)
        value = mean + GAIN * (there - mean)
        numbers = self.carriers if features is None else features
        return [Clamp([k], value=float(value[k])) for k in numbers]

    def table(self) -> tuple[Table, list[Check]]:
        """Return how many answers turn to the target, and what becomes of the others."""
        outcomes = {name: self._all(name) for name in ("nothing", "carriers", "random", "turned")}
        size = len(self.carriers)
        names = {
            "nothing": "nothing",
            "carriers": f"{size} that carry it",
            "random": f"{size} random others",
            "turned": "the same, turned at random",
        }
        rows = [(names[k], *cells(estimates(columns))) for k, columns in outcomes.items()]
        cases = len(outcomes["nothing"][0])
        table = Table(
            "Steer the background at image tokens: what the host says",
            ("clamped", "the target's colour", "the true colour", "name", "who (people)"),
            rows,
            f"{cases} cases: {len(self.colours)} colours as targets, pairs of another background, "
            "95 % Wilson intervals. Features chosen (eta^2 > "
            f"{CARRIES})\nand valued on one half of the pairs, asked about the other: clamped to "
            f"their mean + {GAIN:g} x (mean on the target - mean).\nRandom others: as many live "
            "features, likewise. Turned: the same change of each token in a random direction.",
        )
        # An image is asked about for several colours.
        images = torch.tensor([i for k, c in enumerate(self.colours) for i in self._cases(c, k)])
        own, random, plain = (outcomes[name] for name in ("carriers", "random", "nothing"))
        gain = share_difference(own[0], random[0], images)
        change = share_difference(own[2], plain[2], images)
        return table, [
            Check(
                "features that carry the background steer the answer to another colour",
                gain.low > 0,
                f"{gain} more answers name the target than by random features;\n    the name is "
                f"right {change} more often than without an edit",
            )
        ]

    def _all(self, kind: str) -> list[Tensor]:
        """Ask about all targets: target named, colour right, name right, person right."""
        parts = [self._one(kind, colour, seed) for seed, colour in enumerate(self.colours)]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def _one(self, kind: str, colour: str, seed: int) -> list[Tensor]:
        ask, numbers = self.interview, self._cases(colour, seed)
        people = [i for i in ask.people if i in set(numbers)]
        patch = self._patch(kind, colour, seed)
        return [
            *ask.steered("background", numbers, patch, colour),
            ask.right("what", numbers, patch),
            ask.right("who", people, patch) if people else torch.zeros(0, dtype=torch.bool),
        ]

    def _cases(self, colour: str, seed: int) -> list[int]:
        """Take so many pairs of another background."""
        other = [i for i in self.asked if self.truth[i] != colour]
        first = seed * self.sizes.target % max(1, len(other) - self.sizes.target)
        return other[first : first + self.sizes.target]

    def _patch(self, kind: str, colour: str, seed: int) -> Patch | None:
        if kind == "nothing":
            return None
        if kind == "turned":
            other = turned(self.interview.dictionary, seed)
            return self.interview.patch(self.rules(colour), other)
        numbers = None
        if kind == "random":
            order = draw(len(self.others), len(self.carriers), seed)
            numbers = [self.others[i] for i in order]
        return self.interview.patch(self.rules(colour, numbers))
