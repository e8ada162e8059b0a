"""Scores and classes from one half of the pairs, beside those from the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.measures.dominance import CLASSES, RULE, Cut, modality_dominance
from vlm_edit.measures.stability.agreement import (
    Agreement,
    agreement,
    class_numbers,
    correlation,
    decimal,
    mean,
)


@dataclass(frozen=True, eq=False)
class HalvesStability:
    """What other pairs say of the same features.

    Attributes:
        rule: Of the classes.
        draws: Agreement of the two halves, by draw.
        correlations: Of the scores from the two halves, by draw.
        differences: [m] float64, how far a feature's two scores lie apart, on average over draws;
            NaN where it never had both.
        same: [m] float64, share of draws in which a feature has the same class in both halves.
        recurring: Features that are vision, language or cross, and the same, in every half of
            every draw.
    """

    rule: Cut
    draws: tuple[Agreement, ...]
    correlations: tuple[float, ...]
    differences: Tensor
    same: Tensor
    recurring: list[int]

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the headings of ``cells``."""
        names = (f"Jaccard {name}" for name in CLASSES[:4])
        return ("rule", "agreement", "kappa", "correlation", *names, "decided", "conflicts")

    def cells(self) -> list[tuple[str, ...]]:
        """Return one row as text: means over draws."""
        figures = [
            mean([draw.share for draw in self.draws]),
            mean([draw.kappa for draw in self.draws]),
            mean(self.correlations),
            *(mean([draw.jaccard[name] for draw in self.draws]) for name in CLASSES[:4]),
            mean([draw.decided for draw in self.draws]),
            mean([draw.conflicts for draw in self.draws]),
        ]
        return [(self.rule, *map(decimal, figures))]

    def note(self) -> str:
        """Say how to read the row."""
        return (
            f"Means over {several(len(self.draws), 'draw')} of two halves of the pairs. kappa: "
            "agreement beyond chance; correlation: of the scores;\nJaccard: features in a class "
            "in both halves, of those in either; conflicts: of features decided in both halves, "
            f"those with two classes.\n{len(self.recurring)} of {len(self.same)} features are "
            "vision, language or cross, and the same, in all halves."
        )


def stability_of_halves(
    image_codes: Tensor | SparseCodes,
    text_codes: Tensor | SparseCodes,
    images: Sequence[Hashable] | Tensor | None = None,
    *,
    rule: Cut = RULE,
    draws: int = 20,
    seed: int = 0,
) -> HalvesStability:
    """Measure dominance in random halves of the pairs, and compare.

    Args:
        image_codes: [n, m].
        text_codes: [n, m], row by row of the same pairs.
        images: What names each pair's image, n of them: pairs of one image go into one half. None
            where each pair has an image of its own.
        rule: Of the classes, as in ``Dominance.classes``.
        draws: Of halves.
        seed: Of the draws.

    Raises:
        VlmEditError: Codes of other pairs, names of other pairs, fewer than two images, no draw.

    Example:
        >>> import torch
        >>> image = torch.rand(200, 2) * torch.tensor([1.0, 0.0])
        >>> stable = stability_of_halves(image, image.flip(1), draws=3)
        >>> stable.recurring, stable.draws[0].kappa
        ([0, 1], 1.0)
    """
    codes = [SparseCodes.of(image_codes).to("cpu"), SparseCodes.of(text_codes).to("cpu")]
    groups = _groups(images, len(codes[0]))
    if len(codes[1]) != len(codes[0]) or draws < 1:
        raise BadArgument(
            f"{draws} draws of {len(codes[0])} images' and {len(codes[1])} texts' codes: give the "
            "codes of both sides of the same pairs, and at least one draw"
        )
    generator, count = torch.Generator().manual_seed(seed), int(groups.max()) + 1
    agreements, correlations, gaps, classes = [], [], [], []
    for _ in range(draws):
        first = torch.randperm(count, generator=generator)[: count // 2]
        half = torch.zeros(count, dtype=torch.bool)
        half[first] = True
        two = [
            modality_dominance(codes[0].pick(rows), codes[1].pick(rows), images=groups[rows])
            for rows in (chosen.nonzero().flatten() for chosen in (half[groups], ~half[groups]))
        ]
        numbers = [class_numbers(dominance, rule) for dominance in two]
        agreements.append(agreement(*numbers))
        correlations.append(correlation(two[0].scores, two[1].scores))
        gaps.append((two[0].scores - two[1].scores).abs())
        classes.append(torch.stack(numbers))
    known = torch.stack(classes)
    steady = (known == known[0, 0]).all(0).all(0) & (known[0, 0] < CLASSES.index("undecided"))
    return HalvesStability(
        rule,
        tuple(agreements),
        tuple(correlations),
        torch.stack(gaps).nanmean(0),
        (known[:, 0] == known[:, 1]).double().mean(0),
        steady.nonzero().flatten().tolist(),
    )


def _groups(images: Sequence[Hashable] | Tensor | None, n: int) -> Tensor:
    """Return the number of each pair's image, [n] int64."""
    names = range(n) if images is None else images
    names = names.tolist() if isinstance(names, Tensor) else names
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(names) != n or len(numbers) < 2:
        raise BadArgument(
            f"{len(names)} names of {len(numbers)} images for {n} pairs: give one for each pair, "
            "of two images at least"
        )
    return torch.tensor([numbers[name] for name in names])
