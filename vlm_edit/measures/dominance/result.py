"""Modality Dominance Score (MDS): how much of a feature's activity belongs to the image.

After the definition in "The Multi-Faceted Monosemanticity in Multimodal Representations"
(arXiv 2502.14888): for each feature, over image-text pairs, the mean of the ratios
``|z_image| / (|z_image| + |z_text|)``; 1 is image only, 0 is text only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.ground.statistics import Estimate, benjamini_hochberg
from vlm_edit.measures.dominance.classes import (
    CLASSES,
    Cut,
    cuts_of,
    expected,
    members,
    scores_of,
    sd_of,
)
from vlm_edit.measures.dominance.flips import flip_p, level_sums
from vlm_edit.measures.dominance.images import FINE
from vlm_edit.measures.dominance.pairing import fisher_p
from vlm_edit.measures.dominance.scores import (
    activity_information,
    class_rows,
    mean_ratio_interval,
    pearson,
)

Zeros = Literal["skip", "half", "epsilon"]
# Ratios lie in [0, 1]; as whole multiples of 2**-41 their sums are exact in int64 whatever the
# order, and each is off by at most 2**-42.
ONE = 1 << 41

# With fewer, not even one stream in every pair reaches p < .05 in the swap test.
FEW = 6


@dataclass(frozen=True, eq=False)
class Dominance:
    """Scores of the features of one dictionary on some pairs, and tests of them.

    Attributes:
        n_pairs: Pairs measured.
        zeros: The convention for pairs in which a feature is active in neither stream.
        counts: [3, m] int64, pairs in which a feature is active in the image, the text, both.
        ratios: [2 or 3, m] int64, sums over active pairs of the ratio, its square and, measured
            with ``zeros="epsilon"``, the ratio with epsilon, in units of 2^-41.
        levels: [m, 33] int64, active pairs by 2 * ratio - 1 in sixteenths, from -16 to 16; where
            images have several captions, of one of each.
        masses: [5, m] float64, sums of |zI|, |zT|, zI^2, zT^2 and |zI| |zT|.
        n_images: Images measured, where some have several captions; None where none has.
        drawn: [3, m] int64, ``counts`` of one caption of each image; then.
        products: [5, m] int64, what captions of one image have in common
            (``vlm_edit.measures.dominance.images``); then.
        idle: [m] int64, active pairs less images with one; then.
        captions: The sum over images of c (c - 1) for c captions.
    """

    n_pairs: int
    zeros: Zeros
    counts: Tensor
    ratios: Tensor
    levels: Tensor
    masses: Tensor
    n_images: int | None = None
    drawn: Tensor | None = None
    products: Tensor | None = None
    idle: Tensor | None = None
    captions: int = 0

    @property
    def images(self) -> int:
        """Return the number of images, which are the sample that intervals and tests speak of."""
        return self.n_pairs if self.n_images is None else self.n_images

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

    @cached_property
    def drawn_active(self) -> Tensor:
        """Return the images of which the caption that is tested activates a feature, [m] int64."""
        image, text, both = self._tested.unbind()
        return image + text - both

    @property
    def _tested(self) -> Tensor:
        """Return the counts of one caption of each image, [3, m] int64."""
        return self.counts if self.drawn is None else self.drawn

    @property
    def dead(self) -> Tensor:
        """Return a mask of the features that no pair activates, [m] bool."""
        return self.active == 0

    @cached_property
    def scores(self) -> Tensor:
        """Return the score under ``zeros``, [m] float64; NaN for dead features."""
        sums = self.ratios[2 if self.zeros == "epsilon" else 0].double() / ONE
        return scores_of(sums, self.active, self.n_pairs, self.zeros)

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
        return sd_of(self.scores[~self.dead])

    def intervals(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Compute the interval of each feature's score, under the convention it was measured with.

        Images are taken as a sample: the active ones under ``skip``, all of them otherwise.
        Wilson's score interval for the effective number of pairs ``n p (1 - p) / s^2``, with
        Student's t: a feature whose ratios are all 1 has an interval of positive width, and one
        with continuous ratios a narrower one than a share. The variance is that of a ratio of sums
        over images, so captions of one image count for as much as they differ. For 5 to 1,000
        active pairs and ratios from constant to all-or-nothing it covered 93 to 100 %, with 1, 2
        and 5 captions an image 93 % and more
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
        n, images, total = self.active.double(), self.active_images.double(), self.n_pairs
        ss, sn, nn, sc, nc = self._products
        cc = float(self.captions)
        if self.zeros == "half":
            idle = total - n
            sums, squares = sums + 0.5 * idle, squares + 0.25 * idle
            ss, sc = ss - sn + 0.25 * nn + sc - 0.5 * nc + 0.25 * cc, sc - 0.5 * nc + 0.5 * cc
        if self.zeros == "epsilon":
            sums = self.ratios[2].double() / ONE  # its squares are at most those without epsilon
        if self.zeros != "skip":
            n = torch.full_like(n, total).masked_fill(self.dead, 0)
            images = torch.full_like(n, self.images).masked_fill(self.dead, 0)
            sn, nn = sc, torch.full_like(n, cc)
        mean = sums / n
        spread = (squares - sums * mean).clamp(min=0) + ss - 2 * mean * sn + mean * mean * nn
        return mean_ratio_interval(sums, spread, n, images, 1 + nn / n, level)

    @property
    def active_images(self) -> Tensor:
        """Return the images of which any caption activates a feature, [m] int64."""
        return self.active if self.idle is None else self.active - self.idle

    @property
    def _products(self) -> Tensor:
        """Return what captions of one image have in common, [5, m] float64, in whole units."""
        if self.products is None:
            return torch.zeros(5, len(self.active), dtype=torch.float64)
        unit = torch.tensor([FINE, FINE, 1, FINE, 1])
        return self.products.double() / unit[:, None]

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
        under every convention for zeros. Of images with several captions one is taken.

        Returns:
            p values, float64, at least 1e-12; NaN where no pair of those activates a feature.

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
        the share among all n * (n - 1) ways to put an image beside another image's text. Of images
        with several captions one is taken.

        Returns:
            Two [m] float64, NaN for features that none of these pairs activates; shuffled also
            where there is one image only.
        """
        image, text, both = self._tested.double()
        chance = (image * text - both) / (self.images - 1)
        return both / (image + text - both), chance / (image + text - chance)

    def cofiring_test(self) -> Tensor:
        """Return the chance that shuffled pairs fire in both as often, [m]: Fisher's exact.

        Of images with several captions one is taken.

        Returns:
            p values, float64, one-sided; NaN where none of these pairs activates a feature.

        Example:
            >>> import torch
            >>> from vlm_edit.measures.dominance import modality_dominance
            >>> codes = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
            >>> round(float(modality_dominance(codes, codes).cofiring_test()), 6)
            0.166667
        """
        image, text, both = self._tested
        p = fisher_p(both, image, text, self.images)
        return torch.where(self.drawn_active == 0, torch.nan, p)

    def paired(self, alpha: float = 0.05) -> Tensor:
        """Mark features that fire in both streams of pairs more often than of shuffled ones, [m].

        ``cofiring_test`` after Benjamini and Hochberg over live features.

        Args:
            alpha: False discovery rate.
        """
        return benjamini_hochberg(self.cofiring_test(), alpha)

    def cuts(
        self, rule: Cut = "interval", low: float = 0.4, high: float = 0.6
    ) -> tuple[float, float]:
        """Return two cuts: below the first is language-dominant, above the second vision-dominant.

        Args:
            rule: ``sd``, mean minus and plus one standard deviation of the scores, as the paper
                has it; by any other, the numbers given.
            low: For all rules but ``sd``.
            high: For all rules but ``sd``.
        """
        return cuts_of(self.scores[~self.dead], rule, low, high)

    def classes(
        self, rule: Cut = "interval", low: float = 0.4, high: float = 0.6, alpha: float = 0.05
    ) -> dict[str, list[int]]:
        """List features by class: ``vision``, ``language``, ``cross``, ``undecided``, ``dead``.

        Four rules:

        - ``interval``: a label is earned. Vision or language where the interval of the score lies
          wholly beyond the cut, cross where it lies wholly between the cuts (two one-sided tests,
          an equivalence test), else undecided. Each label is wrong in at most ``alpha`` of
          samples, for one feature; their number is not corrected for.
        - ``significant``: the score beyond the cut, and the swap test, which asks whether it
          differs from .5, after Benjamini and Hochberg; else undecided. Between the cuts all is
          cross, and needs no evidence.
        - ``sd``, the paper's: mean minus and plus one standard deviation. It finds about the same
          shares in any data, also without an effect of modality (``expected_classes``), and no
          language-dominant feature once mean - sd is below 0.
        - ``fixed``: the cuts alone.

        To choose features for an edit, ``vlm_edit.selection.by_class`` ranks instead.

        Args:
            rule: One of these.
            low: Lower cut, of all rules but ``sd``.
            high: Upper cut, likewise.
            alpha: Error of a label by ``interval``, false discovery rate by ``significant``.

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
            >>> dominance.classes()["undecided"]  # one pair proves nothing
            [0, 1, 2]
        """
        marked = members(self, rule, low, high, alpha)
        return {name: marked[name].nonzero().flatten().tolist() for name in CLASSES}

    def expected_classes(
        self,
        rule: Cut = "interval",
        low: float = 0.4,
        high: float = 0.6,
        alpha: float = 0.05,
        draws: int = 200,
        seed: int = 0,
    ) -> dict[str, Estimate]:
        """Estimate class sizes without an effect of modality: image and text swapped at random.

        Every active pair of every feature is exchanged or not by a coin of its own, in the
        quantised ratios, and each draw classified by the same rule. Of images with several
        captions one is taken.

        Args:
            rule: As in ``classes``, like the next three.
            low: Lower cut.
            high: Upper cut.
            alpha: Error of a label, or false discovery rate.
            draws: Random exchanges.
            seed: Of the draws.

        Returns:
            By class, the mean size and the range that holds 95 % of the draws.
        """
        return expected(self, rule, low, high, alpha, draws, seed)

    def __repr__(self) -> str:
        """Say on a line of how many features and pairs."""
        size = f"{several(len(self.scores), 'feature')}, {several(self.n_pairs, 'pair')}"
        return one_line(f"Dominance({size}, mean {self.mean:.3f}, sd {self.sd:.3f})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with the sizes of the classes."""
        facts = {"pairs": f"{self.n_pairs:,}", "mean": f"{self.mean:.3f}", "sd": f"{self.sd:.3f}"}
        return card("Dominance", facts, *class_rows(self.classes()), "\n".join(self.warnings()))

    def sample(self) -> str:
        """Say of what intervals and tests are, in a sentence."""
        if self.images == self.n_pairs:
            return f"{self.n_pairs:,} pairs, each with an image of its own."
        return (
            f"{self.n_pairs:,} pairs show {self.images:,} images: intervals count images, and "
            "tests take one caption of each."
        )

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
                    "'interval' or 'fixed'."
                )
        few, live = int(((self.drawn_active < FEW) & ~self.dead).sum()), int((~self.dead).sum())
        if few:
            sentences.append(
                f"{few} of {live} live features are active in fewer than {FEW} pairs: too few "
                "for the swap test to call any of them dominant."
            )
        return sentences
