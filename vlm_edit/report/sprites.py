"""Small pictures, each once, packed in sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps
from tqdm.auto import tqdm

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measuring import Pairs

SIDE = 64
PER_ROW = 16
PER_SHEET = PER_ROW * PER_ROW
_QUALITY = 80


@dataclass
class Sprites:
    """Pictures of pairs, in square WebP sheets filled row by row.

    Attributes:
        row: Pictures in a row, and rows in a sheet.
        sheets: Each a WebP image in base64.
        places: Number of a pair to that of its thumbnail, counted over all sheets.
        left_out: Pairs for which the budget had no room.
        unreadable: Pairs whose image could not be opened.
        ratios: Number of a pair to the width of its image over the height.
    """

    row: int = PER_ROW
    sheets: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    left_out: int = 0
    unreadable: int = 0
    ratios: dict[int, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the characters they take in a page."""
        return sum(map(len, self.sheets))

    def listing(self, numbers: Iterable[int]) -> dict[str, Any]:
        """Say where the pictures of some pairs lie, -1 for those that are not there."""
        places = [self.places.get(number, -1) for number in numbers]
        return {"row": self.row, "per_sheet": self.row**2, "places": places}


def pack(
    pairs: Pairs,
    numbers: Iterable[int],
    budget: int,
    side: int = SIDE,
    row: int = PER_ROW,
    progress: bool = False,
) -> Sprites:
    """Pack the pictures of some pairs, the first first, as far as the budget goes.

    Args:
        pairs: Whose images.
        numbers: Which of them; a number named twice is packed once.
        budget: Most characters of all sheets.
        side: Of a picture, in pixels.
        row: Pictures in a row, and rows in a sheet.
        progress: Whether to show a bar, where standard error is a terminal.

    Example:
        >>> from PIL import Image
        >>> reds = Pairs([Image.new("RGB", (90, 60), "red")] * 3, ("red",) * 3)
        >>> pack(reds, [2, 0, 2], budget=10_000).places
        {2: 0, 0: 1}
        >>> pack(reds, [2, 0, 2], budget=10).left_out
        2
    """
    order = list(dict.fromkeys(numbers))
    sprites = Sprites(row)
    tiles: list[tuple[int, Image.Image]] = []
    told = {"desc": f"pictures of {side} pixels", "disable": None if progress else True}
    for count, tile in enumerate(_open(pairs, tqdm(order, **told), sprites, side), start=1):
        if tile is not None:
            tiles.append(tile)
        if len(tiles) == row**2 or count == len(order):
            full = _add(sprites, tiles, budget, side)
            tiles = []
            if full:
                break
    sprites.left_out = len(order) - len(sprites.places) - sprites.unreadable
    return sprites


def _open(
    pairs: Pairs, numbers: Iterable[int], done: Sprites, side: int
) -> Iterator[tuple[int, Image.Image] | None]:
    for number in numbers:
        try:
            image = pairs.open(number)
            tile = ImageOps.contain(image, (side, side))
        except VlmEditError:
            done.unreadable += 1
            yield None
        else:
            done.ratios[number] = float(f"{image.width / image.height:.4g}")
            yield number, tile


def _add(done: Sprites, tiles: list[tuple[int, Image.Image]], budget: int, side: int) -> bool:
    """Add a sheet of as many tiles as the budget allows; return whether some found no room."""
    size = len(tiles)
    while size:
        sheet = _sheet([image for _, image in tiles[:size]], done.row, side)
        if len(sheet) <= budget - done.size:
            first = done.row**2 * len(done.sheets)
            done.places |= {number: first + i for i, (number, _) in enumerate(tiles[:size])}
            done.sheets.append(sheet)
            break
        size //= 2
    return size < len(tiles)


def _sheet(tiles: list[Image.Image], row: int, side: int) -> str:
    rows = -(-len(tiles) // row)
    sheet = Image.new("RGBA", (row * side, rows * side))
    for i, tile in enumerate(tiles):
        x, y = i % row * side, i // row * side
        sheet.paste(tile, (x + (side - tile.width) // 2, y + (side - tile.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
