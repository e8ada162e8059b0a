"""Asking the bundled LLaVA about images, as it is and edited."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Rule
from vlm_edit.ground.statistics import Estimate, proportion
from vlm_edit.hooks import record
from vlm_edit.host import Host
from vlm_edit.measuring import Pairs
from vlm_edit.patches import Patch
from vlm_edit.tasks.demo.factors import DRAWS
from vlm_edit.zoo.questions import QUESTIONS, answers, ask

ASKED = ("what", "background", "who")
NOBODY = "nobody"


@dataclass(frozen=True, eq=False)
class Sizes:
    """How many pairs are asked about.

    Attributes:
        edited: For the edits.
        control: For each random control.
        target: For each colour that is steered to.
        draws: Of each random control.
    """

    edited: int = 256
    control: int = 96
    target: int = 32
    draws: int = DRAWS


@dataclass(eq=False)
class Interview:
    """What asks a host about the images of pairs, with a patch or without.

    Args:
        host: With its processor.
        pairs: With the answers as columns.
        dictionary: Of the site.
        site: Where patches act, on image tokens.
    """

    host: Host
    pairs: Pairs
    dictionary: Dictionary
    site: str

    def __post_init__(self) -> None:
        self.truth = {name: answers(name, self.pairs.columns) for name in QUESTIONS}
        self.people = [i for i, who in enumerate(self.truth["who"]) if who != NOBODY]

    def patch(self, rules: Sequence[Rule] | Rule, dictionary: Dictionary | None = None) -> Patch:
        """Make a patch of the image tokens."""
        return Patch(self.site, dictionary or self.dictionary, rules, tokens="image")

    def ask(self, name: str, numbers: Sequence[int], patch: Patch | None = None) -> list[str]:
        """Return the answers about some pairs.

        Args:
            name: A key of ``QUESTIONS``.
            numbers: Of the pairs.
            patch: In force meanwhile.
        """
        images = [self.pairs.open(i) for i in numbers]
        with patch.attach(self.host) if patch else nullcontext():
            return ask(self.host.root, self.host.processor, images, QUESTIONS[name])

    def steered(
        self, name: str, numbers: Sequence[int], patch: Patch | None, target: str
    ) -> list[Tensor]:
        """Say whether each answer is the target, and whether it is right, [n] bool each."""
        replies = self.ask(name, numbers, patch)
        truth = [self.truth[name][i] for i in numbers]
        right = torch.tensor([a == b for a, b in zip(replies, truth, strict=True)])
        return [torch.tensor([a == target for a in replies]), right]

    def right(self, name: str, numbers: Sequence[int], patch: Patch | None = None) -> Tensor:
        """Say whether each answer is right, [n] bool."""
        replies = self.ask(name, numbers, patch)
        return torch.tensor(
            [a == self.truth[name][i] for a, i in zip(replies, numbers, strict=True)]
        )

    def examine(self, numbers: Sequence[int], patch: Patch | None = None) -> list[Tensor]:
        """Say whether each answer is right, per question; who it is, of people alone."""
        subset = set(numbers)
        people = [i for i in self.people if i in subset]
        return [self.right(n, people if n == "who" else numbers, patch) for n in ASKED]

    @torch.no_grad()
    def moved(self, patch: Patch, numbers: Sequence[int]) -> float:
        """Return the mean of |after - before| / |before| over the image tokens at the site."""
        prompt = [f"{self.host.processor.image_token}\n{QUESTIONS['what']}"] * len(numbers)
        images = [self.pairs.open(i) for i in numbers]
        inputs = self.host.processor(images=images, text=prompt, return_tensors="pt")
        with record(self.host, self.site) as recording:
            self.host(**inputs, use_cache=False)
        capture = recording.last(self.site, "mixed")
        tokens = capture.hidden[capture.tokens.select("image")].float()
        edited = patch.bindings[0].splice(tokens, stream="image")
        return float(((edited - tokens).norm(dim=1) / tokens.norm(dim=1)).mean())


def guess(truth: Sequence[str]) -> Estimate:
    """Return how often the commonest answer is right."""
    return proportion(max(truth.count(value) for value in set(truth)), len(truth))


def draw(n: int, size: int, seed: int = 0) -> list[int]:
    """Draw numbers of pairs at random."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[:size].tolist()


def cells(told: Sequence[Estimate]) -> list[str]:
    """Write estimates as a table shows them."""
    return [estimate.text(2) for estimate in told]
