"""A dictionary for each stream, whose features of one number belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from vlm_edit.dictionaries.check import Check
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encodes import facts, words
from vlm_edit.dictionaries.origin import expect_site
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, expect_kind
from vlm_edit.ground.modality import Mixed, Modality, stands_for
from vlm_edit.ground.notebook import card, one_line

STREAMS: tuple[Literal["image"], Literal["text"]] = ("image", "text")

Half = TypeVar("Half", Dictionary, StoredDictionary)


@dataclass(frozen=True, eq=False)
class PairedDictionary(Generic[Half]):
    """A dictionary for image and one for text; feature k of both is one feature.

    ``match_dictionaries`` makes one of two that were trained apart, ``train_paired`` trains and
    matches both, and some files hold one. It is measured and edited like a dictionary; whatever
    encodes has to say the stream.

    Attributes:
        image: Of image activations.
        text: Of text activations; of the same width and number of features.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> eye = Dictionary.identity(width=2)
        >>> both = PairedDictionary(eye, eye.reordered([1, 0]))
        >>> both.encode(torch.tensor([3.0, 5.0]), "image")
        tensor([3., 5.])
        >>> both.encode(torch.tensor([3.0, 5.0]), "text")
        tensor([5., 3.])
    """

    image: Half
    text: Half

    def __post_init__(self) -> None:
        """Refuse two that cannot belong together."""
        for half in (self.image, self.text):
            kind = "a Dictionary, as load_dictionary reads one; transcoders make no pairs"
            expect_kind("one of a pair", half, (Dictionary, StoredDictionary), kind)
        sizes = [(half.n_features, half.width) for half in (self.image, self.text)]
        if sizes[0] != sizes[1]:
            raise BadArgument(
                "dictionaries of a pair need as many features and one width; image has "
                f"{sizes[0][0]} of width {sizes[0][1]}, text {sizes[1][0]} of {sizes[1][1]}"
            )
        for key in ("model_name", "site"):
            values = [half.info.get(key) for half in (self.image, self.text)]
            if None not in values and values[0] != values[1]:
                raise BadArgument(
                    f"dictionaries of a pair were trained apart, but at one place: {key} of image "
                    f"is {values[0]!r}, of text {values[1]!r}"
                )

    def __repr__(self) -> str:
        """Say on a line what they are."""
        left = ", left on disk" if isinstance(self.image, StoredDictionary) else ""
        return one_line(f"PairedDictionary(one of image, one of text: {words(self.image)}{left})")

    def _repr_html_(self) -> str:
        """Say it in a notebook."""
        image, text = facts(self.image), facts(self.text)
        rows = [(key, image.get(key, ""), text.get(key, "")) for key in {**image, **text}]
        return card("PairedDictionary", columns=("", *STREAMS), rows=rows)

    @property
    def width(self) -> int:
        """Return the size d of the activations."""
        return self.image.width

    @property
    def n_features(self) -> int:
        """Return the number m of features of each."""
        return self.image.n_features

    @property
    def info(self) -> Mapping[str, str]:
        """Return what they were trained on; where they differ, the image's."""
        return {**self.text.info, **self.image.info}

    def of(self, stream: Modality | None) -> Half:
        """Return one of the two; of a video that of images.

        Raises:
            VlmEditError: Another stream than ``image`` or ``text``.
        """
        own = stands_for(stream, STREAMS) if isinstance(stream, str) else None
        if own is None:
            raise BadArgument(
                "this is a dictionary for each stream, and the stream here is "
                f"{stream!r}: pass stream='image' or stream='text'"
            )
        return self.image if own == "image" else self.text

    def read_at(self, site: str) -> str:
        """Return where the codes of a site's features are read: at the site itself."""
        return site

    def expect_site(self, site: str) -> None:
        """Refuse another site, as ``Dictionary.expect_site`` does, for both."""
        expect_site(self.image.info, site)
        expect_site(self.text.info, site)

    def encode(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Encode as ``Dictionary.encode``; of a mixed stream each token by its own dictionary.

        Raises:
            VlmEditError: No stream, or a wrong width.
        """
        if not isinstance(stream, Mixed):
            return self.of(stream).encode(x, stream)
        return stream.pick({name: self.of(name).encode(x, name) for name in stream.names})

    def encode_sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Encode as ``Dictionary.encode_sparse`` does.

        Raises:
            VlmEditError: As ``encode``, or another number of axes.
        """
        if not isinstance(stream, Mixed):
            return self.of(stream).encode_sparse(x, stream)
        return SparseCodes.of(self.encode(x, stream))

    def normalise(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Norm activations as ``Dictionary.normalise`` does, by the stream's norm."""
        return self.of(stream).normalise(x, stream)

    def decode(self, codes: Tensor | SparseCodes, stream: Modality | None = None) -> Tensor:
        """Decode as ``Dictionary.decode`` does, by the stream's decoder."""
        return self.of(stream).decode(codes)

    def check(self, activations: Tensor, stream: Modality | None = None, **options: Any) -> Check:
        """Check as ``Dictionary.check`` does, the stream's dictionary."""
        return self.of(stream).check(activations, stream, **options)

    def to(self, device: torch.device | str) -> PairedDictionary[Half]:
        """Put both on another device."""
        return replace(self, image=self.image.to(device), text=self.text.to(device))

    def load(self) -> PairedDictionary[Dictionary]:
        """Load both into memory."""
        halves = (self.image, self.text)
        return PairedDictionary(*(h if isinstance(h, Dictionary) else h.load() for h in halves))

    def digest(self) -> str:
        """Return a digest of both, as ``Dictionary.digest`` does."""
        both = self.image.digest() + self.text.digest()
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Summarise both by stream, as ``Dictionary.summary`` does."""
        return {stream: self.of(stream).summary() for stream in STREAMS}
