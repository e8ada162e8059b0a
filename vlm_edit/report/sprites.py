"""Small pictures, each once, packed in sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measuring import Pairs

SIDE = 64
PER_ROW = 16
PER_SHEET = PER_ROW * PER_ROW
_QUALITY = 80


@dataclass
class Sprites:
    """Thumbnails of pairs, in WebP sheets of 16 in a row, filled row by row.

    Attributes:
        sheets: Each a WebP image in base64.
        places: Number of a pair to that of its thumbnail, counted over all sheets.
        left_out: Pairs for which the budget had no room.
        unreadable: Pairs whose image could not be opened.
    """

    sheets: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    left_out: int = 0
    unreadable: int = 0


def pack(pairs: Pairs, numbers: Iterable[int], budget: int) -> Sprites:
    """Pack the thumbnails of some pairs, the first first, as far as the budget goes.

    Args:
        pairs: Whose images.
        numbers: Which of them; a number named twice is packed once.
        budget: Most characters of all sheets.

    Example:
        >>> from PIL import Image
        >>> reds = Pairs([Image.new("RGB", (90, 60), "red")] * 3, ("red",) * 3)
        >>> pack(reds, [2, 0, 2], budget=10_000).places
        {2: 0, 0: 1}
        >>> pack(reds, [2, 0, 2], budget=10).left_out
        2
    """
    order = list(dict.fromkeys(numbers))
    sprites, spent = Sprites(), 0
    tiles: list[tuple[int, Image.Image]] = []
    count = 0
    for count, tile in enumerate(_open(pairs, order, sprites), start=1):
        if tile is not None:
            tiles.append(tile)
        if len(tiles) == PER_SHEET or count == len(order):
            full = _add(sprites, tiles, budget - spent)
            spent, tiles = sum(map(len, sprites.sheets)), []
            if full:
                break
    sprites.left_out = len(order) - len(sprites.places) - sprites.unreadable
    return sprites


def _open(
    pairs: Pairs, numbers: Iterable[int], done: Sprites
) -> Iterator[tuple[int, Image.Image] | None]:
    for number in numbers:
        try:
            yield number, ImageOps.contain(pairs.open(number), (SIDE, SIDE))
        except VlmEditError:
            done.unreadable += 1
            yield None


def _add(done: Sprites, tiles: list[tuple[int, Image.Image]], budget: int) -> bool:
    """Add a sheet of as many tiles as the budget allows; return whether some found no room."""
    size = len(tiles)
    while size:
        sheet = _sheet([image for _, image in tiles[:size]])
        if len(sheet) <= budget:
            first = PER_SHEET * len(done.sheets)
            done.places |= {number: first + i for i, (number, _) in enumerate(tiles[:size])}
            done.sheets.append(sheet)
            break
        size //= 2
    return size < len(tiles)


def _sheet(tiles: list[Image.Image]) -> str:
    rows = -(-len(tiles) // PER_ROW)
    sheet = Image.new("RGBA", (PER_ROW * SIDE, rows * SIDE))
    for i, tile in enumerate(tiles):
        x, y = i % PER_ROW * SIDE, i // PER_ROW * SIDE
        sheet.paste(tile, (x + (SIDE - tile.width) // 2, y + (SIDE - tile.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
