"""Whose some tokens are: of one modality all of them, or each of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument

MODALITIES = ("image", "text")


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
        """Return the mask [...] of the tokens of a modality."""
        if name != "text":
            return self.masks[name]
        first, *others = self.masks.values()
        for mask in others:
            first = first | mask
        return ~first

    def pick(self, values: Mapping[Any, Tensor]) -> Tensor:
        """Pick what each token's modality has: [d] by name become [..., d], [..., d] stay so."""
        choice = values["text"]
        for name, mask in self.masks.items():
            choice = torch.where(mask.unsqueeze(-1), values[name], choice)
        return choice

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


def part_of(modality: Modality | None, index: Any) -> Modality | None:
    """Return the modality of some of the tokens that one is known of."""
    return modality[index] if isinstance(modality, Mixed) else modality
