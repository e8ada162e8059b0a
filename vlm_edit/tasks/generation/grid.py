"""A picture of what is taken from which reference, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vlm_edit.ground.errors import BadArgument

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_GAP, _LINE, _MARGIN, _LABEL = 6, 18, 8, 144


@dataclass(frozen=True)
class Row:
    """Drawings from one reference, by rising strength.

    Attributes:
        title: What is taken, such as ``vision``.
        reference: The reference, an image or a text; None where nothing is taken from any.
        drawings: One per strength.
    """

    title: str
    reference: Image.Image | str | None
    drawings: Sequence[Image.Image]


def grid(
    rows: Sequence[Row], strengths: Sequence[float], title: str = "", side: int = 96
) -> Image.Image:
    """Lay drawings out: a line per row, a column per strength, the reference before them.

    Without any reference its column is left out.

    Args:
        rows: Lines, in order; a title that is the line's before is not written again.
        strengths: Over the columns.
        title: Over all.
        side: Pixels of a tile; drawings are enlarged without smoothing.

    Raises:
        VlmEditError: No row, or one with another number of drawings.

    Example:
        >>> from PIL import Image
        >>> blank = Image.new("RGB", (8, 8), "white")
        >>> grid([Row("vision", blank, [blank, blank])], [0.0, 1.0]).size
        (460, 136)
    """
    if not rows:
        raise BadArgument("a grid needs at least one row of drawings")
    for row in rows:
        if len(row.drawings) != len(strengths):
            raise BadArgument(
                f"row {row.title!r} has {len(row.drawings)} drawings for {len(strengths)} strengths"
            )
    font = ImageFont.load_default(size=13)
    first = any(row.reference is not None for row in rows)  # columns before the drawings
    width = _LABEL + (len(strengths) + first) * (side + _GAP) + 2 * _MARGIN - _GAP
    top = _MARGIN + _LINE + (_LINE if title else 0)
    page = Image.new("RGB", (width, top + len(rows) * (side + _GAP) + _MARGIN), "white")
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((_MARGIN, _MARGIN), _cut(title, width - 2 * _MARGIN, pen, font), "black", font)
    head = top - _LINE
    pen.text((_MARGIN, head), "features, strength", "black", font)
    left = [_MARGIN + _LABEL + i * (side + _GAP) for i in range(len(strengths) + first)]
    if first:
        pen.text((left[0], head), "reference", "black", font)
    for x, strength in zip(left[first:], strengths, strict=True):
        pen.text((x, head), f"{strength:g}", "black", font)
    for n, row in enumerate(rows):
        y = top + n * (side + _GAP)
        if n == 0 or rows[n - 1].title != row.title:
            pen.text((_MARGIN, y + side // 2 - _LINE // 2), row.title, "black", font)
        if row.reference is not None:
            _put(page, pen, (left[0], y), row.reference, side, font)
        for x, drawing in zip(left[first:], row.drawings, strict=True):
            _put(page, pen, (x, y), drawing, side, font)
    return page


def _put(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    what: Image.Image | str,
    side: int,
    font: _Font,
) -> None:
    """Put a tile: a picture, or words, broken where they would leave it."""
    if isinstance(what, Image.Image):
        page.paste(what.convert("RGB").resize((side, side), Image.Resampling.NEAREST), place)
        return
    lines: list[str] = []
    for word in what.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font) <= side:
            lines[-1] = longer
        else:
            lines.append(word)
    most = max(1, side // 16)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} ..."]
    texts = [_cut(line, side, pen, font) for line in lines]
    pen.multiline_text(place, "\n".join(texts), "black", font, spacing=2)


def _cut(text: str, width: int, pen: ImageDraw.ImageDraw, font: _Font) -> str:
    """Return the text, or so much of it as fits with three dots behind it."""
    if pen.textlength(text, font) <= width:
        return text
    start = text.removesuffix(" ...")
    while start and pen.textlength(f"{start}...", font) > width:
        start = start[:-1]
    return f"{start}..."
