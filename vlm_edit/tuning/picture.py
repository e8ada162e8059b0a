"""A picture of points between two axes, drawn with Pillow alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from vlm_edit.ground.files import packed, write_bytes

Span = tuple[float, float, float]
Box = tuple[float, float, float, float]

_SIZE = (1280, 960)
_LEFT, _RIGHT, _TOP, _BOTTOM = 150, 50, 70, 120
_INK, _PALE, _GRID = (32, 36, 44), (150, 156, 166), (226, 229, 234)
_LINE, _START = (31, 98, 189), (196, 78, 30)
_FAINT = {_PALE: (214, 217, 222), _LINE: (168, 196, 232), _START: (236, 190, 168)}
_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        name: Of the figure.
        better: Which way is better, ``raise`` or ``lower``.
    """

    name: str
    better: Literal["raise", "lower"]


@dataclass(frozen=True)
class Mark:
    """A point to draw.

    Attributes:
        x: Low end, value and high end of the target.
        y: The same of the utility.
        label: Written beside it if it is on the front or the start.
        front: Whether it is on the front.
        start: Whether it is the host without a patch.
    """

    x: Span
    y: Span
    label: str
    front: bool
    start: bool


def draw(path: str | os.PathLike[str], marks: Sequence[Mark], x: Axis, y: Axis) -> None:
    """Write the points as a PNG file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        marks: At least one.
        x: The horizontal axis.
        y: The vertical one.

    Raises:
        VlmEditError: It cannot be written.
    """
    write_bytes(path, packed(partial(picture(marks, x, y).save, format="PNG")), "picture")


def picture(marks: Sequence[Mark], x: Axis, y: Axis) -> Image.Image:
    """The picture itself, RGB."""
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    width, height = _SIZE
    across, ticks = scale([m.x for m in marks], _LEFT, width - _RIGHT)
    up, steps = scale([m.y for m in marks], height - _BOTTOM, _TOP)
    _grid(pen, across, up, ticks, steps)
    _names(image, x, y)
    _legend(pen)
    behind = sorted(marks, key=lambda m: (m.front, m.start))
    for mark in behind:
        _interval(pen, mark, across, up)
    front = sorted((m for m in marks if m.front), key=lambda m: m.x[1])
    path = [(across(m.x[1]), up(m.y[1])) for m in front]
    if len(path) > 1:
        pen.line(path, fill=_LINE, width=4, joint="curve")
    taken = [_dot(pen, across(m.x[1]), up(m.y[1]), _colour(m), _size(m)) for m in behind]
    for mark in sorted(marks, key=lambda m: (not m.start, m.x[1])):
        if mark.front or mark.start:
            _label(pen, mark.label, across(mark.x[1]), up(mark.y[1]), taken)
    return image


def scale(
    spans: Sequence[Span], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """From figures to pixels, with room at both ends; and round figures to write at the axis.

    Args:
        spans: Everything that is to be seen.
        start: Pixel of the lowest figure.
        end: Pixel of the highest.

    Example:
        >>> place, ticks = scale([(0.0, 0.5, 1.0)], 0, 120)
        >>> [round(tick, 1) for tick in ticks], round(place(0.5))
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 60)
    """
    low, high = min(s[0] for s in spans), max(s[2] for s in spans)
    # Figures that are all alike stand in the middle of some room.
    room = 0.06 * (high - low) or 0.1 * max(abs(high), 1.0)
    low, high = low - room, high + room
    rough = (high - low) / _TICKS
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def place(figure: float) -> float:
        return start + (figure - low) / (high - low) * (end - start)

    return place, ticks


def _grid(
    pen: ImageDraw.ImageDraw,
    across: Callable[[float], float],
    up: Callable[[float], float],
    ticks: Sequence[float],
    steps: Sequence[float],
) -> None:
    left, right, top, bottom = _LEFT, _SIZE[0] - _RIGHT, _TOP, _SIZE[1] - _BOTTOM
    font = _font(22)
    for tick in ticks:
        at = across(tick)
        pen.line([(at, top), (at, bottom)], fill=_GRID, width=2)
        pen.text((at, bottom + 12), _figure(tick, ticks), fill=_INK, font=font, anchor="ma")
    for tick in steps:
        at = up(tick)
        pen.line([(left, at), (right, at)], fill=_GRID, width=2)
        pen.text((left - 12, at), _figure(tick, steps), fill=_INK, font=font, anchor="rm")
    pen.rectangle([(left, top), (right, bottom)], outline=_PALE, width=2)


def _names(image: Image.Image, x: Axis, y: Axis) -> None:
    pen, font = ImageDraw.Draw(image), _font(26)
    middle = (_LEFT + _SIZE[0] - _RIGHT) / 2, _SIZE[1] - 34
    pen.text(middle, _named(x), fill=_INK, font=font, anchor="mm")
    length = _SIZE[1] - _TOP - _BOTTOM
    side = Image.new("RGB", (length, 40), "white")
    ImageDraw.Draw(side).text((length / 2, 20), _named(y), fill=_INK, font=font, anchor="mm")
    image.paste(side.rotate(90, expand=True), (10, _TOP))


def _named(axis: Axis) -> str:
    return f"{axis.name} ({'higher' if axis.better == 'raise' else 'lower'} is better)"


def _legend(pen: ImageDraw.ImageDraw) -> None:
    font, at = _font(20), float(_LEFT)
    for colour, told in ((_LINE, "front, with strengths"), (_PALE, "others"), (_START, "unedited")):
        _dot(pen, at + 8, _TOP - 26, colour, 8)
        pen.text((at + 26, _TOP - 26), told, fill=_INK, font=font, anchor="lm")
        at += 66 + pen.textlength(told, font=font)


def _interval(
    pen: ImageDraw.ImageDraw,
    mark: Mark,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> None:
    x, y, faint = across(mark.x[1]), up(mark.y[1]), _FAINT[_colour(mark)]
    if mark.x[0] < mark.x[2]:
        pen.line([(across(mark.x[0]), y), (across(mark.x[2]), y)], fill=faint, width=2)
    if mark.y[0] < mark.y[2]:
        pen.line([(x, up(mark.y[0])), (x, up(mark.y[2]))], fill=faint, width=2)


def _colour(mark: Mark) -> tuple[int, int, int]:
    if mark.start:
        return _START
    return _LINE if mark.front else _PALE


def _size(mark: Mark) -> int:
    return 9 if mark.front or mark.start else 6


def _dot(
    pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int], size: int
) -> Box:
    box = (x - size, y - size, x + size, y + size)
    pen.ellipse(box, fill=colour)
    return box


def _label(
    pen: ImageDraw.ImageDraw,
    label: str,
    x: float,
    y: float,
    taken: list[Box],
) -> None:
    """Write a label at the first of eight places beside a point that is free, or leave it out."""
    font = _font(20)
    for anchor, dx, dy in (
        *(("lb", 10, -10), ("rb", -10, -10), ("lt", 10, 10), ("rt", -10, 10)),
        *(("lb", 30, -30), ("rb", -30, -30), ("lt", 30, 30), ("rt", -30, 30)),
    ):
        at = (x + dx, y + dy)
        box = pen.textbbox(at, label, font=font, anchor=anchor)
        frame = (_LEFT, _TOP, _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM)
        inside = box[0] > frame[0] and box[1] > frame[1] and box[2] < frame[2] and box[3] < frame[3]
        if inside and not any(_meet(box, other) for other in taken):
            taken.append(box)
            pen.text(at, label, _INK, font, anchor, stroke_width=3, stroke_fill="white")
            return


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _figure(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
    return f"{tick + 0.0:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
