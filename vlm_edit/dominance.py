"""Modality Dominance Score (MDS): how much of a feature's activity belongs to the image.

After the definition in "The Multi-Faceted Monosemanticity in Multimodal Representations"
(arXiv 2502.14888): for each feature, over image-text pairs, the mean of the ratios
``|z_image| / (|z_image| + |z_text|)``; 1 is image only, 0 is text only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.errors import VlmEditError

Zeros = Literal["skip", "half", "epsilon"]
Cut = Literal["sd", "fixed"]

CLASSES = ("vision", "language", "cross", "dead")

# Ratios lie in [0, 1]; as whole multiples of 2**-41 their sums are exact in int64 for 2**21
# pairs, whatever the order, and each is off by at most 2**-42.
_ONE = 1 << 41
_MOST_PAIRS = 1 << 21
_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Dominance:
    """Scores of the features of one dictionary on some pairs.

    Attributes:
        scores: [m] float64; NaN for dead features, which no pair activates.
        active: [m] int64, pairs in which the feature is active in either stream.
        image_active: [m] int64, pairs in which it is active in the image.
        text_active: [m] int64, likewise in the text.
        both_active: [m] int64, pairs in which it is active in both.
        n_pairs: Pairs measured.
        zeros: The convention for pairs in which a feature is active in neither stream.
    """

    scores: Tensor
    active: Tensor
    image_active: Tensor
    text_active: Tensor
    both_active: Tensor
    n_pairs: int
    zeros: Zeros = "skip"

    @property
    def dead(self) -> Tensor:
        """[m] bool, features that no pair activates."""
        return self.active == 0

    @property
    def mean(self) -> float:
        """Mean of the scores over live features."""
        return float(self.scores[~self.dead].mean())

    @property
    def sd(self) -> float:
        """Standard deviation of the scores over live features, NaN for fewer than two."""
        live = self.scores[~self.dead]
        return float(live.std()) if len(live) > 1 else math.nan

    def cuts(self, rule: Cut = "sd", low: float = 0.4, high: float = 0.6) -> tuple[float, float]:
        """Scores below the first are language-dominant, above the second vision-dominant.

        Args:
            rule: ``sd``, mean minus and plus one standard deviation of the scores, as the paper
                has it; ``fixed``, the numbers given.
            low: For ``fixed``.
            high: For ``fixed``.
        """
        if rule == "sd":
            return self.mean - self.sd, self.mean + self.sd
        if rule != "fixed":
            raise VlmEditError(f"unknown rule {rule!r} for classes: use {get_args(Cut)}")
        if not 0 <= low <= high <= 1:
            raise VlmEditError(f"cuts must rise within [0, 1], got low={low}, high={high}")
        return low, high

    def classes(
        self, rule: Cut = "sd", low: float = 0.4, high: float = 0.6
    ) -> dict[str, list[int]]:
        """Features of each class: ``vision``, ``language``, ``cross`` and ``dead``.

        The rule ``sd`` always finds about the same shares, also in data without any effect of
        modality, and finds no language-dominant feature once mean - sd is below 0: compare it
        with ``fixed``, and look at ``cuts``.

        Args:
            rule: As in ``cuts``.
            low: For ``fixed``.
            high: For ``fixed``.

        Returns:
            Feature numbers by class, rising.

        Example:
            >>> import torch
            >>> found = modality_dominance(
            ...     torch.tensor([[2.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0, 0.0]])
            ... )
            >>> found.classes("fixed")
            {'vision': [0], 'language': [1], 'cross': [2], 'dead': [3]}
        """
        below, above = self.cuts(rule, low, high)
        vision, language = self.scores > above, self.scores < below
        member = {"vision": vision, "language": language, "dead": self.dead}
        member["cross"] = ~(vision | language | self.dead)
        return {name: member[name].nonzero().flatten().tolist() for name in CLASSES}

    def cofiring(self) -> tuple[Tensor, Tensor]:
        """How often a feature active in either stream is active in both: matched, and shuffled.

        The score does not see the pairing: a feature can be called cross-modal and fire on
        unrelated images and texts. Matched far above shuffled says that it does not. Shuffled is
        the share among all n * (n - 1) ways to put an image beside another pair's text.

        Returns:
            Two [m] float64, NaN for dead features; shuffled also where there is one pair only.
        """
        image, text = self.image_active.double(), self.text_active.double()
        both = self.both_active.double()
        chance = (image * text - both) / (self.n_pairs - 1)
        return both / (image + text - both), chance / (image + text - chance)


class DominanceAccumulator:
    """Dominance over pairs that come in batches; the result does not depend on how they are cut.

    Args:
        n_features: Size m of the dictionary.
        zeros: As in ``modality_dominance``.

    Example:
        >>> import torch
        >>> image, text = torch.rand(100, 5), torch.rand(100, 5)
        >>> whole, cut = DominanceAccumulator(5), DominanceAccumulator(5)
        >>> whole.update(image, text)
        >>> cut.update(image[:30], text[:30])
        >>> cut.update(image[30:], text[30:])
        >>> bool((whole.compute().scores == cut.compute().scores).all())
        True
    """

    def __init__(self, n_features: int, zeros: Zeros = "skip") -> None:
        if zeros not in get_args(Zeros):
            raise VlmEditError(f"unknown convention zeros={zeros!r}: use {get_args(Zeros)}")
        self.zeros: Zeros = zeros
        self.n_pairs = 0
        self._ratios = torch.zeros(n_features, dtype=torch.int64)
        self._counts = torch.zeros(3, n_features, dtype=torch.int64)

    def update(self, image_codes: Tensor, text_codes: Tensor) -> None:
        """Add pairs.

        Args:
            image_codes: [n, m], any float dtype.
            text_codes: [n, m], row by row of the same pairs.

        Raises:
            VlmEditError: Shapes that differ, numbers that are not finite, or too many pairs.
        """
        expected = (len(image_codes), len(self._ratios))
        if tuple(image_codes.shape) != expected or tuple(text_codes.shape) != expected:
            raise VlmEditError(
                f"codes of pairs must both be [n, {expected[1]}], got "
                f"{tuple(image_codes.shape)} and {tuple(text_codes.shape)}"
            )
        self._expect_room(len(image_codes))
        if not bool(image_codes.isfinite().all() and text_codes.isfinite().all()):
            raise VlmEditError(
                "codes hold NaN or infinity: a host in float16 may overflow; use float32"
            )
        pair, feature = ((image_codes != 0) | (text_codes != 0)).nonzero(as_tuple=True)
        image, text = (codes[pair, feature].double().abs() for codes in (image_codes, text_codes))
        total = image + text + (_EPSILON if self.zeros == "epsilon" else 0.0)
        feature = feature.cpu()
        self._ratios.index_add_(0, feature, (image / total * _ONE).round().long().cpu())
        for count, seen in zip(
            self._counts, (image > 0, text > 0, (image > 0) & (text > 0)), strict=True
        ):
            count.index_add_(0, feature, seen.long().cpu())
        self.n_pairs += len(image_codes)

    def merge(self, other: DominanceAccumulator) -> None:
        """Add the pairs of another accumulator.

        Raises:
            VlmEditError: Another number of features or another convention, or too many pairs.
        """
        if other._ratios.shape != self._ratios.shape or other.zeros != self.zeros:
            raise VlmEditError("accumulators differ in their features or in zeros=")
        self._expect_room(other.n_pairs)
        self._ratios += other._ratios
        self._counts += other._counts
        self.n_pairs += other.n_pairs

    def _expect_room(self, more: int) -> None:
        if self.n_pairs + more > _MOST_PAIRS:
            raise VlmEditError(f"more than {_MOST_PAIRS} pairs: accumulate in parts and compare")

    def compute(self) -> Dominance:
        """The scores of all pairs so far.

        Raises:
            VlmEditError: No pair yet.
        """
        if self.n_pairs == 0:
            raise VlmEditError("no pairs measured: dominance needs at least one")
        image, text, both = self._counts
        active = image + text - both
        sums, counts = self._ratios.double() / _ONE, active.double()
        if self.zeros == "half":
            sums = sums + 0.5 * (self.n_pairs - counts)
        if self.zeros != "skip":
            counts = torch.full_like(counts, self.n_pairs)
        scores = torch.where(active > 0, sums / counts, torch.nan)
        return Dominance(
            scores, active, image.clone(), text.clone(), both.clone(), self.n_pairs, self.zeros
        )


def modality_dominance(image_codes: Tensor, text_codes: Tensor, zeros: Zeros = "skip") -> Dominance:
    """Modality Dominance Score of every feature: the mean over pairs of its ratio.

    ``MDS_k = mean over pairs with |zI_ik| + |zT_ik| > 0 of |zI_ik| / (|zI_ik| + |zT_ik|)``
    (arXiv 2502.14888).

    Args:
        image_codes: [n, m], codes of the images; signs are dropped.
        text_codes: [n, m], codes of the texts of the same pairs.
        zeros: What a pair counts in which the feature is active in neither stream: ``skip``, not
            at all (the default); ``half``, 0.5; ``epsilon``, 0, with 1e-6 in every denominator.
            They give very different scores for sparse features.

    Returns:
        The scores with their counts.

    Raises:
        VlmEditError: Shapes that differ, no pairs, or an unknown convention.

    Example:
        >>> import torch
        >>> image = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> text = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
        >>> modality_dominance(image, text).scores
        tensor([0.6250, 0.0000,    nan], dtype=torch.float64)
    """
    accumulator = DominanceAccumulator(image_codes.shape[-1], zeros)
    accumulator.update(image_codes, text_codes)
    return accumulator.compute()


class GapAccumulator:
    """Modality gap over embeddings that come in batches."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, image: Tensor, text: Tensor) -> None:
        """Add embeddings [n, d] of the images and of the texts of some pairs.

        Raises:
            VlmEditError: Shapes that differ.
        """
        if image.shape != text.shape or image.ndim != 2:
            raise VlmEditError(
                f"embeddings of pairs must both be [n, d], got {tuple(image.shape)} and "
                f"{tuple(text.shape)}"
            )
        for name, batch in (("image", image), ("text", text)):
            total = F.normalize(batch.double(), dim=-1).sum(0).cpu()
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total
        self._count += len(image)

    def merge(self, other: GapAccumulator) -> None:
        """Add the embeddings of another accumulator."""
        for name, total in other._sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total
        self._count += other._count

    def centroids(self) -> Mapping[str, Tensor]:
        """Mean of the normalised embeddings per stream, [d] float64."""
        if not self._count:
            raise VlmEditError("no embeddings measured: the gap needs at least one pair")
        return {name: total / self._count for name, total in self._sums.items()}

    def compute(self) -> float:
        """The gap of all embeddings so far."""
        centroids = self.centroids()
        return float((centroids["image"] - centroids["text"]).norm())


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance between the centroids of the normalised embeddings (Liang et al. 2022).

    Args:
        image: [n, d] embeddings of images.
        text: [n, d] embeddings of texts.

    Returns:
        Between 0 and 2.

    Example:
        >>> import torch
        >>> modality_gap(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        1.4142135623730951
    """
    accumulator = GapAccumulator()
    accumulator.update(image, text)
    return accumulator.compute()
