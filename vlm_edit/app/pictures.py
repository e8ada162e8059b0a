"""Pictures that visitors send, of which nobody knows what they are."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.measuring import as_seen, open_image, size_of

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 40_000_000


def read_picture(path: str | None) -> Image.Image:
    """Read a picture that a visitor sent, if it is one and not too large to decode.

    Args:
        path: Where the server has put it; None where nothing was sent.

    Raises:
        VlmEditError: Nothing was sent, too many bytes or pixels, or no picture that can be read.

    Example:
        >>> read_picture(None)
        Traceback (most recent call last):
        vlm_edit.ground.errors.BadArgument: no picture: choose an example, or drop one of your own
    """
    if not path:
        raise BadArgument("no picture: choose an example, or drop one of your own")
    size = size_of(path) or 0
    if size > MOST_BYTES:
        raise DamagedFile(
            f"the picture has {size / 2**20:.0f} MiB, and at most {MOST_BYTES // 2**20} are read: "
            "make it smaller"
        )
    try:
        with open_image(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DamagedFile(
                    f"{image.width} x {image.height} are {image.width * image.height:,} pixels, "
                    f"and at most {MOST_PIXELS:,} are decoded: make it smaller"
                )
            return as_seen(image)
    except VlmEditError as error:
        raise DamagedFile(
            f"the picture could not be read ({without_folder(str(error), path)})"
        ) from error


def without_folder(told: str, path: str) -> str:
    """Return a message without the server's own path of a file in it.

    Example:
        >>> without_folder("/tmp/x/a.png: damaged", "/tmp/x/a.png")
        'a.png: damaged'
    """
    return told.replace(str(path), Path(path).name)
