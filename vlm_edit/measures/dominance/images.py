"""What pairs of one image have in common, so that images and not pairs are the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument

# Sums over images of products of two of their sums, in units of 2^-30: with at most 2^33 pairs of
# captions of one image, which Shared refuses to exceed, they are exact in int64.
FINE = 1 << 30
MOST_PRODUCTS = 1 << 33

_MASK = (1 << 64) - 1


@dataclass(eq=False)
class Shared:
    """Sums over images of what their captions share; all zero where every image has one.

    Of an image g let c be its captions, n those of them in which a feature is active, and S the
    sum of their ratios. Kept is by how much sums over images exceed the same over pairs.

    Attributes:
        products: [5, m] int64, the excess of S^2, S n, n^2, S c and n c; those with S in units of
            2^-30.
        idle: [m] int64, active pairs less images with one.
        captions: The excess of c^2, a number.
    """

    products: Tensor
    idle: Tensor
    captions: int = 0

    @classmethod
    def none(cls, n_features: int) -> Shared:
        """Begin without pairs."""
        return cls(
            torch.zeros(5, n_features, dtype=torch.int64),
            torch.zeros(n_features, dtype=torch.int64),
        )

    def merge(self, other: Shared) -> None:
        """Add what the images of another accumulator share, none of which is here."""
        self.products += other.products
        self.idle += other.idle
        self.captions += other.captions

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is, as tensors."""
        captions = torch.tensor(self.captions)
        return {
            "products": self.products.clone(),
            "idle": self.idle.clone(),
            "captions": captions,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.products.copy_(state["products"])
        self.idle.copy_(state["idle"])
        self.captions = int(state["captions"])

    def add(self, image: SparseCodes, text: SparseCodes, group: Tensor) -> None:
        """Add pairs of which several may be of one image.

        Args:
            image: [n, m], on the CPU.
            text: [n, m], likewise.
            group: [n] int64, the number of each pair's image, from 0.

        Raises:
            VlmEditError: An image with too many captions for sums that are exact.
        """
        m = image.shape[1]
        captions = group.bincount()
        more = int((captions.square() - captions).sum())
        if self.captions + more >= MOST_PRODUCTS:
            raise BadArgument(
                f"an image has {int(captions.max())} captions: sums over so many are not exact; "
                "take fewer of them"
            )
        self.captions += more
        several = captions[group] > 1
        pair, feature, ratio = _ratios(image, text)
        kept = several[pair]
        pair, feature, ratio = pair[kept], feature[kept], ratio[kept]
        cell, where = (group[pair] * m + feature).unique(return_inverse=True)
        # Whole multiples, so that no order of summing changes anything.
        sums = torch.zeros(len(cell), dtype=torch.int64).index_add_(0, where, ratio)
        counts = where.bincount(minlength=len(cell))
        feature, c = cell % m, captions[cell // m]
        real = sums.double() / FINE
        own = torch.zeros(len(cell), dtype=torch.float64).index_add_(
            0, where, (ratio.double() / FINE).square()
        )
        for row, values in enumerate(
            (
                ((real.square() - own) * FINE).round().long(),
                sums * (counts - 1),
                counts * (counts - 1),
                sums * (c - 1),
                counts * (c - 1),
            )
        ):
            self.products[row].index_add_(0, feature, values)
        self.idle.index_add_(0, feature, counts - 1)


def _ratios(image: SparseCodes, text: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
    """Return pair, feature and ratio in units of 2^-30 of all that is active in either stream."""
    m = image.shape[1]
    keys = torch.cat([codes.rows * m + codes.features for codes in (image, text)])
    cell, where = keys.unique(return_inverse=True)
    sums = torch.zeros(2, len(cell), dtype=torch.float64)
    first = len(image.rows)
    sums[0].index_copy_(0, where[:first], image.values.double().abs())
    sums[1].index_copy_(0, where[first:], text.values.double().abs())
    ratio = (sums[0] / sums.sum(0) * FINE).round().long()
    return cell // m, cell % m, ratio


def groups(images: Tensor | Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    """Number the images from 0 in the order of their names, and count the captions of each.

    Args:
        images: [n], the image of each pair, any whole numbers.
        n: Pairs.

    Returns:
        [n] int64 and [g] int64.

    Raises:
        VlmEditError: Not one whole number for each pair.
    """
    names = torch.as_tensor(images)
    if names.shape != (n,) or names.is_floating_point() or names.dtype == torch.bool:
        raise BadArgument(
            f"images must hold a whole number for each of {n} pairs, which image it shows; got "
            f"{tuple(names.shape)} {names.dtype}"
        )
    _, number, count = names.long().unique(return_inverse=True, return_counts=True)
    return number, count


def drawn(images: Tensor | Sequence[int], seed: int) -> Tensor:
    """Draw one pair of each image, [g] int64 rising: the same whatever other images there are.

    Args:
        images: [n], the image of each pair.
        seed: Of the draw.

    Example:
        >>> import torch
        >>> drawn(torch.tensor([7, 7, 7, 8]), seed=0)
        tensor([2, 3])
    """
    names = torch.as_tensor(images).long()
    members: dict[int, list[int]] = {}
    for row, name in enumerate(names.tolist()):
        members.setdefault(name, []).append(row)
    rows = [some[_mixed(name, seed) % len(some)] for name, some in members.items()]
    return torch.tensor(sorted(rows), dtype=torch.int64)


def _mixed(name: int, seed: int) -> int:
    """Mix the bits of a name and a seed (splitmix64)."""
    x = (name * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1342543DE82EF95) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
