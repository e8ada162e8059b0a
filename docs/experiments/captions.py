"""Codes of images with several captions each: sparse, heavy-tailed, and alike within an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """How a feature fires.

    Attributes:
        image: Share of images that activate it.
        text: Share of captions that do.
        louder: By which factor it is stronger in images.
        together: Correlation of what makes it fire in an image and in its captions, 0 to 1.
        alike: Of what makes it fire in two captions of an image, beyond ``together``.
        tail: Spread of the logarithm of its activations.
    """

    image: float
    text: float
    louder: float = 1.0
    together: float = 0.5
    alike: float = 0.0
    tail: float = 0.5


# From dense to rare, of either side, balanced and not, with light and heavy tails.
KINDS = tuple(
    Kind(image, text, louder, together, tail=tail)
    for tail in (0.5, 1.5)
    for image, text, louder, together in (
        (0.3, 0.3, 1.0, 0.5),
        (0.1, 0.1, 1.0, 0.5),
        (0.12, 0.12, 1.0, 0.95),
        (0.15, 0.06, 1.65, 0.5),
        (0.2, 0.008, 1.0, 0.3),
        (0.03, 0.25, 0.6, 0.5),
        (0.04, 0.15, 4.0, 0.3),
    )
)


def captioned(kind: Kind, features: int, images: int, captions: int, seed: int) -> list[Tensor]:
    """Draw codes of images and of their captions, all features of one kind.

    Args:
        kind: How they fire.
        features: How many, independent of each other.
        images: How many.
        captions: Of each.
        seed: Of the draw.

    Returns:
        Codes of images and of texts, [images * captions, features] each, captions of one image
        one below the other.

    Example:
        >>> image, text = captioned(KINDS[0], features=2, images=3, captions=5, seed=0)
        >>> image.shape, bool((image[0] == image[4]).all())
        (torch.Size([15, 2]), True)
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(columns: int) -> Tensor:
        return torch.randn(images, columns, features, generator=generator)

    both, alike = normal(1), normal(1)
    own = math.sqrt(1 - kind.together)
    seen = math.sqrt(kind.together) * both + own * normal(1)
    # What captions share beyond the image takes a part of what is their own.
    rest = math.sqrt(kind.alike) * alike + math.sqrt(1 - kind.alike) * normal(captions)
    said = math.sqrt(kind.together) * both + own * rest
    least = torch.special.ndtri(torch.tensor([1 - kind.image, 1 - kind.text]))
    image = (seen > least[0]) * kind.louder * torch.exp(kind.tail * normal(1))
    text = (said > least[1]) * torch.exp(kind.tail * normal(captions))
    shape = (images * captions, features)
    return [image.expand(-1, captions, -1).reshape(shape), text.reshape(shape)]
