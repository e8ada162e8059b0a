"""Whose some tokens are: of one modality all of them, or each of its own."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument, CannotKnow

MODALITIES = ("image", "video", "audio", "text")
SENSED = ("image", "audio")  # whose towers see nothing of what a call says of its words
VISUAL = "visual"  # images and videos
# What has no value of its own goes by another's: frames of a video pass the tower of images.
_LIKE = {"video": "image", VISUAL: "image"}


@dataclass(frozen=True, eq=False)
class Mixed:
    """Tokens of several modalities: a mask of each but text, which the rest are.

    Attributes:
        masks: [...] bool by name, True at tokens of that modality; none is in two.

    Example:
        >>> import torch
        >>> mixed = Mixed.of(image=torch.tensor([True, False, True]))
        >>> mixed.at("text")
        tensor([False,  True, False])
        >>> mixed.pick({"image": torch.tensor([5.0]), "text": torch.tensor([7.0])}).flatten()
        tensor([5., 7., 5.])
    """

    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse what is no mask, and a mask of text."""
        names = [name for name in MODALITIES if name != "text"]
        for name, mask in self.masks.items():
            if name not in names:
                raise BadArgument(f"mask of {name!r}: give {', '.join(names)}; the rest is text")
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise BadArgument(f"the mask of {name} tokens must be bool, got {kind}")
        if not self.masks:
            raise BadArgument(f"a mixed stream needs a mask of its {names[0]} tokens")

    @classmethod
    def of(cls, **masks: Tensor) -> Mixed:
        """Mark tokens by these masks; the rest are of text.

        Raises:
            VlmEditError: No mask, another modality, or another dtype than bool.
        """
        return cls(masks)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the modalities that tokens may be of."""
        return (*self.masks, "text")

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the tokens, [...]."""
        return next(iter(self.masks.values())).shape

    def at(self, name: str) -> Tensor:
        """Return the mask [...] of the tokens of a modality, or of ``visual``."""
        if name == VISUAL:
            return self.at("image") | self.at("video")
        if name != "text":
            mask = self.masks.get(name)
            return torch.zeros_like(next(iter(self.masks.values()))) if mask is None else mask
        first, *others = self.masks.values()
        for mask in others:
            first = first | mask
        return ~first

    def pick(self, values: Mapping[Any, Tensor]) -> Tensor:
        """Pick what each token's modality has: [d] by name become [..., d], [..., d] stay so.

        Raises:
            CannotKnow: A modality has none, nor what it goes by: a video goes by images.
        """
        choice = values["text"]
        for name, mask in self.masks.items():
            choice = torch.where(mask.unsqueeze(-1), value_of(name, values), choice)
        return choice

    def columns(self, start: int, length: int) -> Mixed:
        """Return those of ``length`` columns from ``start`` on; what lies behind is text."""
        parts = {name: mask[:, start : start + length] for name, mask in self.masks.items()}
        return Mixed({n: F.pad(part, (0, length - part.shape[1])) for n, part in parts.items()})

    def behind(self, length: int) -> Mixed:
        """Return the same with ``length`` columns of text before them."""
        return Mixed({name: F.pad(mask, (length, 0)) for name, mask in self.masks.items()})

    def marked(self, name: str, mask: Tensor) -> Mixed:
        """Return the same, where just the tokens of a mask are of one modality."""
        others = {n: m & ~mask for n, m in self.masks.items() if n != name}
        return Mixed({name: mask, **others})

    def __getitem__(self, index: Any) -> Mixed:
        """Return the modalities of some of the tokens."""
        return Mixed({name: mask[index] for name, mask in self.masks.items()})

    def flatten(self) -> Mixed:
        """Return the modalities of the tokens in a row."""
        return Mixed({name: mask.reshape(-1) for name, mask in self.masks.items()})

    def to(self, device: torch.device | str) -> Mixed:
        """Return the same on another device."""
        return Mixed({name: mask.to(device) for name, mask in self.masks.items()})


Modality = str | Mixed


def stands_for(name: str, names: Container[Any]) -> str | None:
    """Return by which of some modalities one goes: itself, or another; None if by none.

    Example:
        >>> stands_for("video", ("image", "text"))
        'image'
        >>> stands_for("audio", ("image", "text"))
    """
    found = name if name in names else _LIKE.get(name)
    return found if found in names else None


def is_among(modality: str, name: str) -> bool:
    """Return whether tokens of a modality are among those of a name, which may be ``visual``."""
    return modality == name or (name == VISUAL and modality in ("image", "video"))


def value_of(name: str, values: Mapping[Any, Any]) -> Any:
    """Return a modality's value, or that of the one it goes by.

    Raises:
        CannotKnow: Neither has one.
    """
    found = stands_for(name, values)
    if found is None:
        raise CannotKnow(
            f"{name} tokens pass here, and there are values for {', '.join(map(str, values))} only"
        )
    return values[found]


def part_of(modality: Modality | None, index: Any) -> Modality | None:
    """Return the modality of some of the tokens that one is known of."""
    return modality[index] if isinstance(modality, Mixed) else modality
