"""Whether the images that a measurement has read are still what they were."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import VlmEditError, WrongHost
from vlm_edit.measuring.gathering import Source
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import opened

_IN_MEMORY = 0
_GONE = -1


def image_digest(image: Image.Image) -> bytes:
    """Digest what an image shows, in 16 bytes."""
    hasher = hashlib.blake2b(json.dumps([image.mode, image.size]).encode(), digest_size=16)
    hasher.update(image.tobytes())
    return hasher.digest()


def key_of(digest: bytes) -> int:
    """Return the first 64 bits of a digest."""
    return int.from_bytes(digest[:8], "big", signed=True)


def stamp(image: Source) -> int:
    """Digest a file's size and the times of its last changes, which nobody sets back, in 64 bits.

    They cost no reading. An image in memory has none.
    """
    if not isinstance(image, Path):
        return _IN_MEMORY
    try:
        status = os.stat(image)
    except (OSError, ValueError):
        return _GONE
    data = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()
    return key_of(hashlib.blake2b(data, digest_size=8).digest())


_AGAIN = 32  # images that are looked at again whatever their files' stamps say


def sampled(numbers: Sequence[int]) -> set[int]:
    """Draw some numbers, the same each time."""
    ranked = sorted(numbers, key=lambda n: hashlib.blake2b(b"%d" % n, digest_size=8).digest())
    return set(ranked[:_AGAIN])


def expect_images(
    pairs: Pairs,
    numbers: Iterable[int],
    stamps: Iterable[int],
    keys: Iterable[int],
    skipped: Collection[int],
    what: str,
    again: Collection[int] = (),
    least: int | None = None,
    verb: str = "measure",
) -> None:
    """Refuse to go on where an image that was read is another by now.

    Files with the stamp of then are trusted, but for those to look at again. Others, such as
    copies, are read again and compared by what they show, as are images in memory.

    Args:
        pairs: The pairs as they are now.
        numbers: Of the pairs that were read or skipped, in that order; there may be more.
        stamps: Of each.
        keys: ``key_of`` of each that was read.
        skipped: Numbers of those that could not be read.
        what: Who had read them, for the message.
        again: Numbers of those to look at again.
        least: As in ``opened``.
        verb: What it does, for the message.

    Raises:
        VlmEditError: Names the first that differs.
    """
    queue = iter(keys)
    for number, before in zip(numbers, stamps, strict=False):
        key = None if number in skipped else next(queue, None)
        same = before != _IN_MEMORY and before == stamp(pairs.images[number])
        if same and number not in again:
            continue
        if key != _key(pairs, number, least):
            raise WrongHost(
                f"pair {number} ({pairs.describe(number)}) has another image than when {what} read "
                f"it: put the former one back, or {verb} into another folder or file, or delete "
                "it to begin anew"
            )


def _key(pairs: Pairs, number: int, least: int | None) -> int | None:
    try:
        return key_of(image_digest(opened(pairs.images[number], "", least)))
    except VlmEditError:
        return None


def to_tensor(values: array[int]) -> Tensor:
    """Return the values as int64 [n]."""
    return torch.frombuffer(values, dtype=torch.int64).clone() if values else torch.zeros(0).long()


def to_array(values: Tensor) -> array[int]:
    """Return what ``to_tensor`` made it of."""
    numbers = array("q")
    numbers.frombytes(values.to(torch.int64).contiguous().numpy().tobytes())
    return numbers
