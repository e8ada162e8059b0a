"""Typographic attacks: a word drawn on the image."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vlm_edit.ground.errors import BadArgument


def draw_word(
    image: Image.Image,
    word: str,
    *,
    height: float = 0.2,
    at: float = 0.8,
    colour: tuple[int, int, int] = (0, 0, 0),
    behind: tuple[int, int, int] | None = (255, 255, 255),
) -> Image.Image:
    """Draw a word across an image (Goh et al. 2021, "Multimodal neurons", distill.pub).

    Args:
        image: RGB; it stays as it is.
        word: What to write; it is made smaller if it is too long.
        height: Of the letters, as a share of the image's.
        at: Of the middle of the word, from the top, likewise.
        colour: Of the letters.
        behind: Of the strip behind them; None for none.

    Raises:
        VlmEditError: No word, or a height outside of 0 to 1.

    Example:
        >>> from PIL import Image
        >>> picture = draw_word(Image.new("RGB", (64, 64), "red"), "cat")
        >>> picture.size, picture.getpixel((0, 0))
        ((64, 64), (255, 0, 0))
    """
    if not word.strip() or not 0 < height <= 1:
        raise BadArgument(f"word {word!r} of height {height}: give a word, and a share of 0 to 1")
    picture = image.convert("RGB").copy()
    pen = ImageDraw.Draw(picture)
    size = max(height * picture.height, 4.0)
    font = ImageFont.load_default(size)
    while size > 4 and pen.textlength(word, font) > 0.96 * picture.width:
        size *= 0.9
        font = ImageFont.load_default(size)
    middle = (picture.width / 2, at * picture.height)
    left, top, right, bottom = pen.textbbox(middle, word, font, anchor="mm")
    if behind is not None:
        pen.rectangle((left - 2, top - 2, right + 1, bottom + 1), fill=behind)
    pen.text(middle, word, fill=colour, font=font, anchor="mm")
    return picture


def scrambled(word: str, seed: int = 0) -> str:
    """Return the word's letters in another order: as much ink, and no word; the control.

    Example:
        >>> sorted(scrambled("teapot")) == sorted("teapot"), scrambled("teapot") == "teapot"
        (True, False)
    """
    if len(set(word)) < 2:
        return word
    letters, rng = list(word), random.Random(seed)
    while "".join(letters) == word:
        rng.shuffle(letters)
    return "".join(letters)


def other_labels(labels: Sequence[str], among: Sequence[str], seed: int = 0) -> list[str]:
    """Draw another label for each at random: the word to write, or the class to aim at.

    Raises:
        VlmEditError: Nothing else to draw from.

    Example:
        >>> other_labels(["cat", "dog"], ["cat", "dog"])
        ['dog', 'cat']
    """
    rng, draws = random.Random(seed), []
    known = sorted(set(among))
    for label in labels:
        others = [other for other in known if other != label]
        if not others:
            raise BadArgument(f"no label but {label!r} to aim at: give at least two")
        draws.append(rng.choice(others))
    return draws
