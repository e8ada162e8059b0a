"""Modality Dominance Score over pairs that come in batches, from codes kept sparse."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName
from vlm_edit.measures.dominance.flips import LEVELS
from vlm_edit.measures.dominance.images import Shared, drawn, groups
from vlm_edit.measures.dominance.result import ONE, Dominance, Zeros

# Sums of ratios, each at most ONE = 2**41, stay exact in int64.
_MOST_PAIRS = 1 << 21
_EPSILON = 1e-6
_DRAWN, _SHARED = "drawn.", "shared."

# Numbers of the table in which a text's features are looked up among its image's: 2 MiB, which
# caches hold.
_SCRATCH = 1 << 18
# Activations handled at once: more bring no speed.
_BLOCK = 1 << 16


class DominanceAccumulator:
    """Gather dominance over pairs in batches; the result does not depend on how they are cut.

    Scores and counts are equal to the bit for any cut, sums of activations to rounding. Memory
    is that of the state, about 350 bytes per feature, and some 12 MiB of scratch, for any number
    of pairs.

    Where an image has several captions, tests are of one of them, drawn with a seed, and sums are
    kept of what captions of an image have in common: the state is then twice as large.

    Args:
        n_features: Size m of the dictionary.
        zeros: As in ``modality_dominance``.
        seed: Of the draw of one caption for each image.

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

    def __init__(self, n_features: int, zeros: Zeros = "skip", seed: int = 0) -> None:
        if zeros not in get_args(Zeros):
            raise UnknownName(f"unknown convention zeros={zeros!r}: use {get_args(Zeros)}")
        self.zeros: Zeros = zeros
        self.seed = seed
        self.n_pairs = 0
        # Of one caption for each image, once an image has several: until then this itself.
        self._drawn: DominanceAccumulator | None = None
        self._shared = Shared.none(n_features)
        self._ratios = torch.zeros(3 if zeros == "epsilon" else 2, n_features, dtype=torch.int64)
        self._counts = torch.zeros(3, n_features, dtype=torch.int64)
        # Of pairs active in both streams; all others are at the ends, and counted.
        self._levels = torch.zeros(n_features, 2 * LEVELS + 1, dtype=torch.int64)
        self._masses = torch.zeros(5, n_features, dtype=torch.float64)

    def update(
        self,
        image_codes: Tensor | SparseCodes,
        text_codes: Tensor | SparseCodes,
        images: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Add pairs, given by the codes of both streams.

        Args:
            image_codes: [n, m], any float dtype; signs are dropped.
            text_codes: [n, m], row by row of the same pairs.
            images: [n], which image each pair shows, any whole numbers; all pairs of one image
                must come in one call. None where each shows its own.

        Raises:
            VlmEditError: Shapes that differ, numbers that are not finite, or too many pairs, also
                of one image.
        """
        shape = (len(image_codes), self._counts.shape[1])
        if tuple(image_codes.shape) != shape or tuple(text_codes.shape) != shape:
            raise BadArgument(
                f"codes of pairs must both be [n, {shape[1]}], got "
                f"{tuple(image_codes.shape)} and {tuple(text_codes.shape)}"
            )
        self._expect_room(len(image_codes))
        image, text = (SparseCodes.of(codes).to("cpu") for codes in (image_codes, text_codes))
        if not all(_finite(codes.values) for codes in (image, text)):
            raise BadArgument(
                "codes hold NaN or infinity: a host in float16 may overflow; use float32"
            )
        self._add_images(image, text, images)
        for block in _blocks(image, text):
            self._add(*block)
        self.n_pairs += len(image)

    def _add_images(
        self, image: SparseCodes, text: SparseCodes, images: Tensor | Sequence[int] | None
    ) -> None:
        """Add one caption of each image, and what all of them have in common."""
        group = None
        if images is not None:
            group, captions = groups(images, len(image))
            group = group if len(captions) < len(group) else None
        if group is None or images is None:
            if self._drawn is not None:
                self._drawn.update(image, text)
            return
        self._shared.add(image, text, group)
        rows = drawn(images, self.seed)
        self._begin_drawn().update(image.pick(rows), text.pick(rows))

    def _begin_drawn(self) -> DominanceAccumulator:
        """Return what gathers one caption of each image; before any had several, a copy of this."""
        if self._drawn is None:
            self._drawn = copy.deepcopy(self)
            self._drawn._shared = Shared.none(self._counts.shape[1])
        return self._drawn

    def _add(
        self,
        image_features: Tensor,
        image: Tensor,
        text_features: Tensor,
        text: Tensor,
        across: Tensor,
    ) -> None:
        """Add activations; ``across`` is the image's at the text's, zero where it has none."""
        m = self._counts.shape[1]
        self._masses[0] += image_features.bincount(image, m)
        self._masses[1] += text_features.bincount(text, m)
        self._masses[2] += image_features.bincount(image.square(), m)
        self._masses[3] += text_features.bincount(text.square(), m)
        both = across.nonzero().flatten()
        feature, a, b = text_features[both], across[both], text[both]
        self._masses[4] += feature.bincount(a * b, m)
        counts = torch.stack([f.bincount(minlength=m) for f in (image_features, text_features)])
        shared = feature.bincount(minlength=m)
        self._counts[:2] += counts
        self._counts[2] += shared
        ratio = a / (a + b)
        # Where only the image is active the ratio and its square are 1, where only the text 0.
        self._ratios[:2] += (counts[0] - shared) * ONE
        self._ratios[0].index_add_(0, feature, _fixed(ratio))
        self._ratios[1].index_add_(0, feature, _fixed(ratio.square()))
        level = ((a - b) / (a + b) * LEVELS).round().long() + LEVELS
        cell = feature * (2 * LEVELS + 1) + level
        self._levels.view(-1).index_add_(0, cell, torch.ones_like(cell))
        if self.zeros == "epsilon":
            total = self._ratios[2]
            total.index_add_(0, image_features, _fixed(image / (image + _EPSILON)))
            total.index_add_(0, feature, _fixed(a / (a + b + _EPSILON)))
            total.index_add_(0, feature, -_fixed(a / (a + _EPSILON)))

    def merge(self, other: DominanceAccumulator) -> None:
        """Add the pairs of another accumulator, of none of the images here.

        Raises:
            VlmEditError: Another number of features or another convention, or too many pairs.
        """
        if other._counts.shape != self._counts.shape or other.zeros != self.zeros:
            raise BadArgument("accumulators differ in their features or in zeros=")
        self._expect_room(other.n_pairs)
        if self._drawn is not None or other._drawn is not None:
            self._begin_drawn().merge(other if other._drawn is None else other._drawn)
        self._shared.merge(other._shared)
        for mine, theirs in zip(self._state().values(), other._state().values(), strict=True):
            mine += theirs
        self.n_pairs += other.n_pairs

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on later, to the bit: counts and sums over the pairs so far."""
        state = {name: tensor.clone() for name, tensor in self._state().items()}
        state["n_pairs"] = torch.tensor(self.n_pairs)
        if self._drawn is not None:
            state |= {f"{_DRAWN}{k}": v for k, v in self._drawn.state_dict().items()}
            state |= {f"{_SHARED}{k}": v for k, v in self._shared.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken; what was here before is forgotten.

        Raises:
            VlmEditError: The state of another number of features, or of another convention.
        """
        here = self._state()
        missing = {"n_pairs", *here} - set(state)
        wrong = [name for name in here if name in state and state[name].shape != here[name].shape]
        if missing or wrong:
            raise DamagedFile(
                f"not the state of dominance of {self._counts.shape[1]} features with "
                f"zeros={self.zeros!r}: {sorted(missing) + wrong} missing or of another shape"
            )
        drawn, shared = (
            {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            for start in (_DRAWN, _SHARED)
        )
        for name, tensor in here.items():
            tensor.copy_(state[name])
        self.n_pairs = int(state["n_pairs"])
        self._drawn, self._shared = None, Shared.none(self._counts.shape[1])
        if drawn:
            self._begin_drawn().load_state_dict(drawn)
            self._shared.load_state_dict(shared)

    def _state(self) -> dict[str, Tensor]:
        return {
            "ratios": self._ratios,
            "counts": self._counts,
            "levels": self._levels,
            "masses": self._masses,
        }

    def _expect_room(self, more: int) -> None:
        if self.n_pairs + more > _MOST_PAIRS:
            raise BadArgument(f"more than {_MOST_PAIRS} pairs: accumulate in parts and compare")

    def compute(self) -> Dominance:
        """Return the scores of all pairs so far.

        Raises:
            VlmEditError: No pair yet.
        """
        if self.n_pairs == 0:
            raise BadArgument("no pairs measured: dominance needs at least one")
        image, text, both = self._counts
        levels = self._levels.clone()
        levels[:, -1] += image - both
        levels[:, 0] += text - both
        whole = Dominance(
            self.n_pairs,
            self.zeros,
            self._counts.clone(),
            self._ratios.clone(),
            levels,
            self._masses.clone(),
        )
        if self._drawn is None:
            return whole
        some = self._drawn.compute()
        return dataclasses.replace(
            whole,
            levels=some.levels,
            n_images=some.n_pairs,
            drawn=some.counts,
            products=self._shared.products.clone(),
            idle=self._shared.idle.clone(),
            captions=self._shared.captions,
        )


def modality_dominance(
    image_codes: Tensor | SparseCodes,
    text_codes: Tensor | SparseCodes,
    zeros: Zeros = "skip",
    *,
    images: Tensor | Sequence[int] | None = None,
    seed: int = 0,
) -> Dominance:
    """Compute the Modality Dominance Score of every feature: the mean over pairs of its ratio.

    ``MDS_k = mean over pairs with |zI_ik| + |zT_ik| > 0 of |zI_ik| / (|zI_ik| + |zT_ik|)``
    (arXiv 2502.14888).

    Args:
        image_codes: [n, m], codes of the images; signs are dropped.
        text_codes: [n, m], codes of the texts of the same pairs.
        zeros: What a pair counts in which the feature is active in neither stream: ``skip``, not
            at all (the default); ``half``, 0.5; ``epsilon``, 0, with 1e-6 in every denominator.
            They give very different scores for sparse features.
        images: [n], which image each pair shows, any whole numbers, where some images have
            several captions: intervals then count images, and tests take one caption of each.
            None where each pair shows an image of its own.
        seed: Of the draw of those captions.

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
    accumulator = DominanceAccumulator(image_codes.shape[-1], zeros, seed)
    accumulator.update(image_codes, text_codes, images)
    return accumulator.compute()


def _finite(values: Tensor) -> bool:
    """Return whether all are finite; the extremes tell, and take no memory."""
    return not len(values) or all(bool(end.isfinite()) for end in values.aminmax())


def _fixed(ratio: Tensor) -> Tensor:
    return (ratio * ONE).round().long()


def _blocks(image: SparseCodes, text: SparseCodes) -> Iterator[tuple[Tensor, ...]]:
    """Cut pairs into arguments of ``_add``: features and activations per stream, and across."""
    n, m = image.shape
    # A power of two, so that a row's place in the table is its last bits.
    step = 1 << (max(1, _SCRATCH // max(1, m)).bit_length() - 1)
    scratch = np.zeros(min(step, n) * m)
    dense = max(1, len(image.rows) + len(text.rows))
    run = max(1, _BLOCK * n // dense // step) * step
    for first in range(0, n, run):
        starts = torch.tensor([*range(first, min(first + run, n), step), min(first + run, n)])
        edges = [torch.searchsorted(codes.rows, starts).tolist() for codes in (image, text)]
        parts, cells = [], []
        for codes, edge in zip((image, text), edges, strict=True):
            part = slice(edge[0], edge[-1])
            features = codes.features[part]
            parts += [features, codes.values[part].double().abs()]
            cells.append(((codes.rows[part] & (step - 1)) * m + features).numpy())
        values, across = parts[1].numpy(), np.empty(len(cells[1]))
        for i in range(len(starts) - 1):
            here, there = (slice(edge[i] - edge[0], edge[i + 1] - edge[0]) for edge in edges)
            scratch[cells[0][here]] = values[here]
            scratch.take(cells[1][there], out=across[there], mode="clip")
            scratch[cells[0][here]] = 0.0
        yield (*parts, torch.from_numpy(across))
