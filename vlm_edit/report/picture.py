"""A picture with what it shows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

_QUALITY = 85


@dataclass(frozen=True, eq=False)
class Picture:
    """A titled picture, such as a grid of drawings.

    Attributes:
        title: What it shows.
        image: As it is; pages show it at its own size at most.
        told: The same in words, for who does not see it.
        note: How it was made; may be empty.

    Example:
        >>> Picture("Nothing", Image.new("RGB", (2, 2)), "a black square").address[:22]
        'data:image/png;base64,'
    """

    title: str
    image: Image.Image
    told: str
    note: str = ""

    @property
    def address(self) -> str:
        """Return ``address_of`` the picture."""
        return address_of(self.image)


def address_of(image: Image.Image, is_photo: bool = False) -> str:
    """Return an address that holds the image itself: as a PNG, or a photo as a lossy WebP."""
    file = io.BytesIO()
    if is_photo:
        image.save(file, "WEBP", quality=_QUALITY)
    else:
        image.save(file, "PNG", optimize=True)
    kind = "webp" if is_photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
