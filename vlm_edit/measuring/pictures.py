"""Open image files that nobody vouches for: as viewers show them, as large as they are needed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlm_edit.ground.errors import DamagedFile
from vlm_edit.measuring.gathering import Held, Source

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Of the files themselves, whatever they are called. No PostScript: Pillow hands it to Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_SPARE = 2  # times the side that is needed: what is shrunk further looks another
_IN_PIECES = (
    *("image_grid_pinpoints", "do_image_splitting", "split_image", "crop_to_patches"),
    *("do_pan_and_scan", "max_image_tiles", "max_patches", "max_num_patches"),
)
_OF_ONE_SIZE = ({"height", "width"}, {"shortest_edge"})


def opened(image: Source, name: str, least: int | None = None) -> Image.Image:
    """Open an image as ``as_seen`` makes it.

    Args:
        image: The image, its path or its bytes.
        name: What messages call it.
        least: Pixels that its shorter side must keep. A larger one is shrunk by a whole number,
            while it is decoded where it is a JPEG, to no less than twice that; None for no less
            than all.

    Raises:
        DamagedFile: It is missing or cannot be read.
    """
    if isinstance(image, Path | Held):
        with open_image(image) as file:
            whole = file.size
            factor = _factor(whole, least)
            if factor > 1:
                file.draft(None, (-(-whole[0] // factor), -(-whole[1] // factor)))
            return _shrunk(as_seen(file), whole, file.size, factor)
    try:
        factor = _factor(image.size, least)
        return _shrunk(as_seen(image), image.size, image.size, factor)
    except Exception as error:
        raise DamagedFile(f"{name}: {_reason(error)}") from error


def _factor(size: tuple[int, int], least: int | None) -> int:
    return 1 if least is None else max(1, min(size) // (_SPARE * least))


def _shrunk(
    image: Image.Image, whole: tuple[int, int], decoded: tuple[int, int], factor: int
) -> Image.Image:
    """Shrink an image to a whole number's share of what it was before it was decoded."""
    if factor == 1:
        return image
    # A JPEG is decoded in whole blocks, of which the last may be only partly of the image.
    scale = max(1, round(whole[0] / decoded[0]))
    width, height = (side / scale for side in whole)
    if image.size != decoded:  # it was on its side
        whole, width, height = whole[::-1], image.width, image.height
    target = (round(whole[0] / factor), round(whole[1] / factor))
    return image.resize(target, Image.Resampling.BOX, box=(0, 0, width, height))


def side_needed(processor: Any) -> int | None:
    """Return the shorter side in pixels that a processor needs of an image; None where it is open.

    It is open where an image is cut into pieces, or given whole.

    Example:
        >>> from vlm_edit import zoo
        >>> side_needed(zoo.load_host()[1])
        48
    """
    maker = getattr(processor, "image_processor", processor)
    size: Any = getattr(maker, "size", None)
    in_pieces = any(getattr(maker, name, None) for name in _IN_PIECES)
    if in_pieces or not getattr(maker, "do_resize", False) or not size:
        return None
    try:
        sides = {name: int(side) for name, side in dict(size).items() if side is not None}
    except (TypeError, ValueError):
        return None
    return max(sides.values()) if set(sides) in _OF_ONE_SIZE else None


@contextmanager
def open_image(path: str | os.PathLike[str] | Held) -> Iterator[Image.Image]:
    """Open an image file that nobody vouches for; it is decoded within the block.

    Args:
        path: The file, or what is in it.

    Raises:
        VlmEditError: No regular file, none of ``IMAGE_FORMATS``, more pixels than Pillow's own
            limit (``PIL.Image.MAX_IMAGE_PIXELS``), damaged, or not within reach; or the block
            failed.

    Example:
        >>> with open_image("/dev/zero") as image:
        ...     image.load()
        Traceback (most recent call last):
        vlm_edit.ground.errors.DamagedFile: /dev/zero: not a regular file
    """
    try:
        file = BytesIO(path.data) if isinstance(path, Held) else path
        # Opening a pipe would wait for its other end.
        if not isinstance(file, BytesIO) and not stat.S_ISREG(os.stat(file).st_mode):
            raise DamagedFile("not a regular file")
        Image.init()
        formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
        with Image.open(file, formats=formats) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:
                raise DamagedFile(
                    f"{image.width} x {image.height} are {pixels:,} pixels, and at most {most:,} "
                    "are decoded: make it smaller"
                )
            yield image
    except Exception as error:  # decoders fail in many ways: a broken PNG is a SyntaxError
        name = path.name if isinstance(path, Held) else os.fspath(path)
        raise DamagedFile(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def size_of(path: str | os.PathLike[str]) -> int | None:
    """Return the bytes of a regular file; None where there is none within reach."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # such as a name that is too long, or holds a zero
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def as_seen(image: Image.Image) -> Image.Image:
    """Return an image as viewers show it, RGB: upright, on white where it is transparent.

    ``convert("RGB")`` alone shows the colours that lie hidden below transparent pixels, leaves
    photographs on their side, and cuts 16-bit greys off at 255.

    Example:
        >>> from PIL import Image
        >>> as_seen(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
