"""Which drawings are trained on, which choose the design and which score it.

The unit is a cell: one concept as one vendor draws it, in every gender and skin tone. A held-out
cell has no drawing in training, though other vendors' drawings of the concept are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

# Drawn by these vendors only in evaluation; OpenMoji's licence asks for share-alike.
HELD_OUT_VENDORS = ("openmoji", "fxemoji")
HELD_OUT_CONCEPTS = 0.05
CELLS_DEV, CELLS_TEST = 0.06, 0.13
SEED = "emoji-clip 1"


def draw(*parts: str) -> float:
    """Give a number in [0, 1) that depends on the seed and the parts alone.

    Example:
        >>> draw("a") == draw("a") != draw("b")
        True
    """
    digest = hashlib.sha256("\x1f".join((SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out_concepts(genders: Mapping[str, Iterable[str]]) -> set[str]:
    """Choose the concepts that no training drawing shows.

    Args:
        genders: The genders each concept is drawn in; only genderless concepts are chosen.
    """
    return {
        concept
        for concept, seen in genders.items()
        if set(seen) == {"none"} and draw("hc", concept) < HELD_OUT_CONCEPTS
    }


def split_of(vendor: str, concept: str, held_out: set[str]) -> str:
    """Name the split of a cell.

    Args:
        vendor: The vendor.
        concept: The concept.
        held_out: The held-out concepts.

    Returns:
        `train`, `hv-dev`, `hv-test` (held-out cells), `ov-dev`, `ov-test` (held-out vendors), `hc`
        (held-out concepts), or `unused` (held-out concepts of held-out vendors).
    """
    if vendor in HELD_OUT_VENDORS:
        if concept in held_out:
            return "unused"
        return "ov-dev" if draw("ov", concept) < 0.5 else "ov-test"
    if concept in held_out:
        return "hc"
    at = draw("hv", vendor, concept)
    if at < CELLS_TEST:
        return "hv-test"
    return "hv-dev" if at < CELLS_TEST + CELLS_DEV else "train"
