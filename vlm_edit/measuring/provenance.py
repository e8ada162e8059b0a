"""What a measurement was made of: host, dictionary, pairs, settings, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encodes, identity
from vlm_edit.host import Host, Site, fingerprint, loaded_as
from vlm_edit.measuring.gathering import Held
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import size_of
from vlm_edit.measuring.repeats import RepeatsCounter
from vlm_edit.measuring.sources import key_of

_SIZE = 16
_UTF = ("utf-8", "surrogatepass")  # a caption may hold halves of characters
_PACKAGES = ("vlm-edit", "torch", "transformers", "numpy")


class PairsDigest:
    """A digest of pairs as they were read: of numbers, texts and pixels, in any order.

    Attributes:
        repeats: How often an image comes again, and a text.

    Example:
        >>> digest = PairsDigest()
        >>> digest.update([0], [b"what it shows..."], ["black"])
        >>> len(str(digest))
        32
    """

    def __init__(self) -> None:
        self._sum = 0
        self.repeats = {stream: RepeatsCounter() for stream in ("image", "text")}

    def update(self, numbers: Sequence[int], images: Sequence[bytes], texts: Sequence[str]) -> None:
        """Add pairs as they were read, each image by its ``image_digest``."""
        keys: dict[str, list[int]] = {"image": [], "text": []}
        for number, digest, text in zip(numbers, images, texts, strict=True):
            one = hashlib.blake2b(json.dumps([number, text]).encode(), digest_size=_SIZE)
            one.update(digest)
            self._add(int.from_bytes(one.digest(), "big"))
            keys["image"].append(key_of(digest))
            keys["text"].append(key_of(hashlib.blake2b(text.encode(*_UTF), digest_size=8).digest()))
        for stream, some in keys.items():
            self.repeats[stream].update(torch.tensor(some, dtype=torch.int64))

    def merge(self, other: PairsDigest) -> None:
        """Add the pairs of another digest."""
        self._add(other._sum)
        for stream, counter in self.repeats.items():
            counter.merge(other.repeats[stream])

    def _add(self, value: int) -> None:
        self._sum = (self._sum + value) % (1 << 8 * _SIZE)

    def __str__(self) -> str:
        """Return 32 hexadecimal digits."""
        return self._sum.to_bytes(_SIZE, "big").hex()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is, as tensors."""
        total = torch.tensor(list(self._sum.to_bytes(_SIZE, "big")), dtype=torch.uint8)
        return {"sum": total} | {
            f"{stream}.{name}": value
            for stream, counter in self.repeats.items()
            for name, value in counter.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._sum = int.from_bytes(bytes(state["sum"].tolist()), "big")
        for stream, counter in self.repeats.items():
            prefix = f"{stream}."
            counter.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )


def pairs_listing(pairs: Pairs) -> str:
    """Digest pairs without reading the files: by texts, and each file's name and size.

    A run that goes on later compares it, so that it goes on with the same pairs, wherever their
    folder is by then.
    """
    hasher = hashlib.blake2b(digest_size=_SIZE)
    for image, text in zip(pairs.images, pairs.texts, strict=True):
        facts: list[Any] = [text]
        if isinstance(image, Path):
            facts += [image.name, size_of(image)]
        elif isinstance(image, Held):
            facts += [len(image.data), hashlib.blake2b(image.data, digest_size=_SIZE).hexdigest()]
        else:
            facts += [image.mode, image.size]
        hasher.update(json.dumps(facts).encode())
    return hasher.hexdigest()


def texts_digest(pairs: Pairs) -> str:
    """Digest the texts alone, 32 hexadecimal digits: for who has the pairs but other images."""
    data = json.dumps(list(pairs.texts)).encode()
    return hashlib.blake2b(data, digest_size=_SIZE).hexdigest()


def provenance(
    host: Host, site: Site, dictionary: Encodes, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """List everything that must be the same for a measurement to come out the same, JSON-able.

    Args:
        host: The host.
        site: Where.
        dictionary: Whose features are measured.
        settings: Arguments of the measurement.
    """
    return {
        "host": {"name": host.name or "", **loaded_as(host), **fingerprint(host, [site])},
        "dictionary": identity(dictionary),
        "settings": dict(settings),
        "versions": {**_versions(), "python": platform.python_version()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
