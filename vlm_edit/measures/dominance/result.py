"""Modality Dominance Score (MDS): how much of a feature's activity belongs to the image.

After the definition in "The Multi-Faceted Monosemanticity in Multimodal Representations"
(arXiv 2502.14888): for each feature, over image-text pairs, the mean of the ratios
``|z_image| / (|z_image| + |z_text|)``; 1 is image only, 0 is text only.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.ground.statistics import Estimate, benjamini_hochberg
from vlm_edit.measures.dominance.flips import flip_p, flipped_sums, level_sums
from vlm_edit.measures.dominance.pairing import fisher_p
from vlm_edit.measures.dominance.scores import (
    activity_information,
    class_rows,
    mean_ratio_interval,
    pearson,
)

Zeros = Literal["skip", "half", "epsilon"]
Cut = Literal["sd", "fixed", "significant"]

CLASSES = ("vision", "language", "cross", "undecided", "dead")

# Ratios lie in [0, 1]; as whole multiples of 2**-41 their sums are exact in int64 whatever the
# order, and each is off by at most 2**-42.
ONE = 1 << 41

# With fewer, not even one stream in every pair reaches p < .05 in the swap test.
_FEW = 6


@dataclass(frozen=True, eq=False)
class Dominance:
    """Scores of the features of one dictionary on some pairs, and tests of them.

    Attributes:
        n_pairs: Pairs measured.
        zeros: The convention for pairs in which a feature is active in neither stream.
        counts: [3, m] int64, pairs in which a feature is active in the image, the text, both.
        ratios: [2 or 3, m] int64, sums over active pairs of the ratio, its square and, measured
            with ``zeros="epsilon"``, the ratio with epsilon, in units of 2^-41.
        levels: [m, 33] int64, active pairs by 2 * ratio - 1 in sixteenths, from -16 to 16.
        masses: [5, m] float64, sums of |zI|, |zT|, zI^2, zT^2 and |zI| |zT|.
    """

    n_pairs: int
    zeros: Zeros
    counts: Tensor
    ratios: Tensor
    levels: Tensor
    masses: Tensor

    @property
    def image_active(self) -> Tensor:
        """Return the number of pairs in which a feature is active in the image, [m] int64."""
        return self.counts[0]

    @property
    def text_active(self) -> Tensor:
        """Return the number of pairs in which a feature is active in the text, [m] int64."""
        return self.counts[1]

    @property
    def both_active(self) -> Tensor:
        """Return the number of pairs in which a feature is active in both, [m] int64."""
        return self.counts[2]

    @cached_property
    def active(self) -> Tensor:
        """Return the number of pairs in which a feature is active in either stream, [m] int64."""
        return self.counts[0] + self.counts[1] - self.counts[2]

    @property
    def dead(self) -> Tensor:
        """Return a mask of the features that no pair activates, [m] bool."""
        return self.active == 0

    @cached_property
    def scores(self) -> Tensor:
        """Return the score under ``zeros``, [m] float64; NaN for dead features."""
        return self._scores_of(self.ratios[2 if self.zeros == "epsilon" else 0].double() / ONE)

    def _scores_of(self, sums: Tensor) -> Tensor:
        counts = self.active.double()
        if self.zeros == "half":
            sums = sums + 0.5 * (self.n_pairs - counts)
        if self.zeros != "skip":
            counts = torch.full_like(counts, self.n_pairs)
        return torch.where(self.dead, torch.nan, sums / counts)

    def under(self, zeros: Zeros) -> Dominance:
        """Return the same pairs under another convention, without measuring again.

        Raises:
            VlmEditError: ``epsilon`` where it was not measured with it.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> dominance = modality_dominance(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1))
            >>> float(dominance.scores), float(dominance.under("half").scores)
            (1.0, 0.75)
        """
        if zeros not in get_args(Zeros):
            raise UnknownName(f"unknown convention zeros={zeros!r}: use {get_args(Zeros)}")
        if zeros == "epsilon" and len(self.ratios) < 3:
            raise BadArgument("epsilon changes every ratio: measure with zeros='epsilon'")
        return dataclasses.replace(self, zeros=zeros)

    @property
    def mean(self) -> float:
        """Return the mean of the scores over live features."""
        return float(self.scores[~self.dead].mean())

    @property
    def sd(self) -> float:
        """Return the standard deviation of scores over live features, NaN for fewer than two."""
        return _sd(self.scores[~self.dead])

    def intervals(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Compute the interval of each feature's score, under the convention it was measured with.

        Pairs are taken as a sample: the active ones under ``skip``, all of them otherwise. Wilson's
        score interval for the effective number of pairs ``n p (1 - p) / s^2``, with Student's t: a
        feature whose ratios are all 1 has an interval of positive width, and one with continuous
        ratios a narrower one than a share. For 5 to 1,000 active pairs and ratios from constant to
        all-or-nothing it covered 93 to 100 %
        (tests/measures/dominance/test_calibration.py); with few pairs it is wider than it needs be.

        Args:
            level: Share of samples in which the interval is to hold the true mean.

        Returns:
            Low and high, [m] float64 each; NaN for dead features; [0, 1] for one active pair.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> dominance = modality_dominance(torch.ones(30, 1), torch.zeros(30, 1))
            >>> low, high = dominance.intervals()
            >>> f"{float(low):.3f} {float(high):.3f}"
            '0.878 1.000'
        """
        if not 0 < level < 1:
            raise BadArgument(f"the level of an interval lies between 0 and 1, got {level}")
        sums, squares = self.ratios[:2].double() / ONE
        n = self.active.double()
        if self.zeros == "half":
            idle = self.n_pairs - n
            sums, squares = sums + 0.5 * idle, squares + 0.25 * idle
        if self.zeros == "epsilon":
            sums = self.ratios[2].double() / ONE  # its squares are at most those without epsilon
        if self.zeros != "skip":
            n = torch.full_like(n, self.n_pairs).masked_fill(self.dead, 0)
        return mean_ratio_interval(sums, squares, n, level)

    def modality_score(self, energy: bool = False) -> Tensor:
        """Compute the ratio of means, ``E|zI| / (E|zI| + E|zT|)``, [m] float64; NaN if dead.

        Unlike MDS it weighs strong pairs more, and does not depend on the zeros.

        Args:
            energy: Squares instead, ``E zI^2 / (E zI^2 + E zT^2)``.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> dominance = modality_dominance(torch.tensor([[3.0], [0.0]]), torch.ones(2, 1))
            >>> float(dominance.modality_score()), float(dominance.scores)
            (0.6, 0.375)
        """
        image, text = self.masses[2:4] if energy else self.masses[:2]
        score: Tensor = image / (image + text)
        return score

    def mutual_information(self) -> Tensor:
        """Compute the bits that a feature's being active tells about the modality, [m] float64.

        A sample is the image or the text of a pair, each as likely: 0 where both fire equally
        often, 1 where every image fires and no text. Estimated from counts it is too high by
        about ``1 / (4 n_pairs ln 2)`` on average.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> modality_dominance(torch.ones(4, 1), torch.zeros(4, 1)).mutual_information()
            tensor([1.], dtype=torch.float64)
        """
        return activity_information(self.image_active, self.text_active, self.n_pairs)

    def correlation(self) -> Tensor:
        """Compute the Pearson correlation over all pairs of |zI| and |zT|, [m] float64.

        NaN where one of the two does not vary.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> codes = torch.tensor([[1.0], [2.0], [4.0]])
            >>> round(float(modality_dominance(codes, 3 * codes).correlation()), 6)
            1.0
        """
        return pearson(self.masses, self.n_pairs)

    @cached_property
    def _swap_p(self) -> Tensor:
        return flip_p(self.levels, level_sums(self.levels)[None])[0]

    def swap_test(self) -> Tensor:
        """Return the chance that random swaps of image and text move the sum as far, [m].

        Two-sided test of "image and text are exchangeable in each pair" by the sum of
        ``2 ratio - 1`` over active pairs, each in sixteenths: with these the test is exact, and
        for many active pairs conservative (``vlm_edit.measures.dominance.flips``). It is the same
        under every convention for zeros.

        Returns:
            p values, float64, at least 1e-12; NaN for dead features.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> dominance = modality_dominance(torch.ones(6, 1), torch.zeros(6, 1))
            >>> round(float(dominance.swap_test()), 6)
            0.03125
        """
        return self._swap_p.clone()

    def cofiring(self) -> tuple[Tensor, Tensor]:
        """Return how often a feature active in either stream is in both: matched, and shuffled.

        The score does not see the pairing: a feature can be called cross-modal and fire on
        unrelated images and texts. Matched far above shuffled says that it does not. Shuffled is
        the share among all n * (n - 1) ways to put an image beside another pair's text.

        Returns:
            Two [m] float64, NaN for dead features; shuffled also where there is one pair only.
        """
        image, text, both = self.counts.double()
        chance = (image * text - both) / (self.n_pairs - 1)
        return both / (image + text - both), chance / (image + text - chance)

    def cofiring_test(self) -> Tensor:
        """Return the chance that shuffled pairs fire in both as often, [m]: Fisher's exact.

        Returns:
            p values, float64, one-sided; NaN for dead features.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> codes = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
            >>> round(float(modality_dominance(codes, codes).cofiring_test()), 6)
            0.166667
        """
        image, text, both = self.counts
        return torch.where(self.dead, torch.nan, fisher_p(both, image, text, self.n_pairs))

    def paired(self, alpha: float = 0.05) -> Tensor:
        """Mark features that fire in both streams of pairs more often than of shuffled ones, [m].

        ``cofiring_test`` after Benjamini and Hochberg over live features.

        Args:
            alpha: False discovery rate.
        """
        return benjamini_hochberg(self.cofiring_test(), alpha)

    def cuts(
        self, rule: Cut = "significant", low: float = 0.4, high: float = 0.6
    ) -> tuple[float, float]:
        """Return two cuts: below the first is language-dominant, above the second vision-dominant.

        Args:
            rule: ``sd``, mean minus and plus one standard deviation of the scores, as the paper
                has it; ``fixed`` and ``significant``, the numbers given.
            low: For ``fixed`` and ``significant``.
            high: For ``fixed`` and ``significant``.
        """
        return _cuts(self.scores[~self.dead], rule, low, high)

    def classes(
        self, rule: Cut = "significant", low: float = 0.4, high: float = 0.6, alpha: float = 0.05
    ) -> dict[str, list[int]]:
        """List features by class: ``vision``, ``language``, ``cross``, ``undecided``, ``dead``.

        The rule ``sd`` always finds about the same shares, also in data without any effect of
        modality, and finds no language-dominant feature once mean - sd is below 0: compare it
        with ``expected_classes``. ``significant`` takes the fixed cuts, and calls ``undecided``
        what lies outside of them but does not pass the swap test after Benjamini and Hochberg;
        only there anything is undecided.

        Args:
            rule: As in ``cuts``.
            low: For ``fixed`` and ``significant``.
            high: For ``fixed`` and ``significant``.
            alpha: False discovery rate of ``significant``.

        Returns:
            Feature numbers by class, rising.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> dominance = modality_dominance(
            ...     torch.tensor([[2.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0, 0.0]])
            ... )
            >>> dominance.classes("fixed")
            {'vision': [0], 'language': [1], 'cross': [2], 'undecided': [], 'dead': [3]}
            >>> dominance.classes("significant")["undecided"]
            [0, 1]
        """
        cuts = self.cuts(rule, low, high)
        passed = benjamini_hochberg(self._swap_p, alpha) if rule == "significant" else None
        member = _members(self.scores, cuts, level_sums(self.levels), passed)
        return {name: member[name].nonzero().flatten().tolist() for name in CLASSES}

    def expected_classes(
        self,
        rule: Cut = "significant",
        low: float = 0.4,
        high: float = 0.6,
        alpha: float = 0.05,
        draws: int = 200,
        seed: int = 0,
    ) -> dict[str, Estimate]:
        """Estimate class sizes without an effect of modality: image and text swapped at random.

        Every active pair of every feature is exchanged or not by a coin of its own, in the
        quantised ratios, and each draw classified by the same rule.

        Args:
            rule: As in ``classes``, like the next three.
            low: Lower cut.
            high: Upper cut.
            alpha: False discovery rate.
            draws: Random exchanges.
            seed: Of the draws.

        Returns:
            By class, the mean size and the range that holds 95 % of the draws.
        """
        if draws < 1:
            raise BadArgument(f"draws={draws}: chance needs at least one draw")
        sums, live = flipped_sums(self.levels, draws, seed), ~self.dead
        p = flip_p(self.levels, sums) if rule == "significant" else None
        most = len(self.levels[0]) - 1
        sizes = torch.zeros(draws, len(CLASSES), dtype=torch.float64)
        for i, row in enumerate(sums):
            scores = self._scores_of(0.5 * self.active + row.double() / most)
            cuts = _cuts(scores[live], rule, low, high)
            passed = None if p is None else benjamini_hochberg(p[i], alpha)
            member = _members(scores, cuts, row, passed)
            sizes[i] = torch.stack([member[name].sum() for name in CLASSES])
        ends = sizes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
        figures = zip(CLASSES, sizes.mean(0).tolist(), *ends.tolist(), strict=True)
        return {name: Estimate(mean, low, high, draws) for name, mean, low, high in figures}

    def __repr__(self) -> str:
        """Say on a line of how many features and pairs."""
        size = f"{several(len(self.scores), 'feature')}, {several(self.n_pairs, 'pair')}"
        return one_line(f"Dominance({size}, mean {self.mean:.3f}, sd {self.sd:.3f})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with the sizes of the classes."""
        facts = {"pairs": f"{self.n_pairs:,}", "mean": f"{self.mean:.3f}", "sd": f"{self.sd:.3f}"}
        return card("Dominance", facts, *class_rows(self.classes()), "\n".join(self.warnings()))

    def warnings(self) -> list[str]:
        """Say what a reader of these scores must know; nothing where nothing stands out."""
        if bool(self.dead.all()):
            return ["No feature is ever active: is the dictionary of this host and site?"]
        sentences, (low, high) = [], self.cuts("sd")
        for crossed, side, name in (
            (low < 0, "mean - sd is below 0", "language"),
            (high > 1, "mean + sd is above 1", "vision"),
        ):
            if crossed:
                sentences.append(
                    f"{side}: by this rule no feature can be {name}-dominant; use the rule "
                    "'significant' or 'fixed'."
                )
        few, live = int(((self.active < _FEW) & ~self.dead).sum()), int((~self.dead).sum())
        if few:
            sentences.append(
                f"{few} of {live} live features are active in fewer than {_FEW} pairs: too few "
                "for the swap test to call any of them dominant."
            )
        return sentences


def _sd(live: Tensor) -> float:
    return float(live.std()) if len(live) > 1 else math.nan


def _cuts(live: Tensor, rule: Cut, low: float, high: float) -> tuple[float, float]:
    if rule not in get_args(Cut):
        raise UnknownName(f"unknown rule {rule!r} for classes: use {get_args(Cut)}")
    if rule == "sd":
        mean, sd = float(live.mean()), _sd(live)
        return mean - sd, mean + sd
    if not 0 <= low <= high <= 1:
        raise BadArgument(f"cuts must rise within [0, 1], got low={low}, high={high}")
    return low, high


def _members(
    scores: Tensor, cuts: tuple[float, float], sums: Tensor, passed: Tensor | None
) -> dict[str, Tensor]:
    """Mark the members of the classes, [m]; ``passed`` are the features that differ from chance."""
    outside = {"vision": scores > cuts[1], "language": scores < cuts[0]}
    either = outside["vision"] | outside["language"]
    if passed is not None:
        # With epsilon a score can lie on the other side than the activity.
        outside["vision"] &= passed & (sums > 0)
        outside["language"] &= passed & (sums < 0)
    decided, dead = outside["vision"] | outside["language"], scores.isnan()
    return {**outside, "cross": ~either & ~dead, "undecided": either & ~decided, "dead": dead}
