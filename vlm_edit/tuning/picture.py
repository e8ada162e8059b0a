"""A picture of points between two axes, drawn by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import packed, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Span = tuple[float, float, float]

FRONT, OTHERS, START = "#1f62bd", "#969ca6", "#c44e1e"
# Where a label may stand, in points from its dot: the first place that is free.
_PLACES = [(dx * far, dy * far) for far in (7, 18) for dy in (1, -1) for dx in (1, -1)]


@dataclass(frozen=True)
class Axis:
    """Name what an axis shows, and which way is better.

    Attributes:
        name: Of the figure.
        better: Which way is better, ``raise`` or ``lower``.
    """

    name: str
    better: Literal["raise", "lower"]

    def __str__(self) -> str:
        """Name it, with the way that is better."""
        return f"{self.name} ({'higher' if self.better == 'raise' else 'lower'} is better)"


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

    @property
    def colour(self) -> str:
        """Tell apart the start, the front and the rest."""
        return START if self.start else FRONT if self.front else OTHERS


def draw(path: str | os.PathLike[str], marks: Sequence[Mark], x: Axis, y: Axis) -> None:
    """Write the points as a PNG file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        marks: At least one.
        x: The horizontal axis.
        y: The vertical one.

    Raises:
        VlmEditError: It cannot be written, or matplotlib is not installed.
    """
    # matplotlib's version and the hour would make equal pictures differ.
    save = partial(picture(marks, x, y).savefig, format="png", metadata={"Software": None})
    write_bytes(path, packed(save), "picture")


def picture(marks: Sequence[Mark], x: Axis, y: Axis) -> Figure:
    """Draw the picture, 1280 by 960 pixels.

    Raises:
        VlmEditError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VlmEditError(
            "plots are drawn with matplotlib, which is not installed: pip install 'vlm-edit[plots]'"
        ) from error
    figure = Figure(figsize=(8, 6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=str(x), ylabel=str(y))
    axes.grid(color="#e2e5ea")
    axes.set_axisbelow(True)
    for mark in sorted(marks, key=lambda m: (m.front, m.start)):
        _dot(axes, mark)
    front = sorted((m for m in marks if m.front), key=lambda m: m.x[1])
    axes.plot([m.x[1] for m in front], [m.y[1] for m in front], color=FRONT, linewidth=2, zorder=2)
    _legend(axes)
    figure.draw_without_rendering()  # only now is known where what stands
    _label(axes, sorted((m for m in marks if m.front or m.start), key=lambda m: not m.start), marks)
    return figure


def _dot(axes: Any, mark: Mark) -> None:
    """Put a mark with its intervals in place; a figure without one has none."""
    (x, y), spans = (mark.x[1], mark.y[1]), {"xerr": mark.x, "yerr": mark.y}
    lengths = {
        name: [[middle - low], [high - middle]]
        for name, (low, middle, high) in spans.items()
        if low < high
    }
    axes.errorbar(
        x,
        y,
        **lengths,
        fmt="o",
        color=mark.colour,
        markersize=9 if mark.front or mark.start else 6,
        elinewidth=1,
        zorder=3,
        gid="start" if mark.start else "front" if mark.front else "others",
    )


def _legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    names = {FRONT: "front, with strengths", OTHERS: "others", START: "unedited"}
    dots = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=name)
        for colour, name in names.items()
    ]
    axes.figure.legend(handles=dots, loc="outside upper left", ncols=3, frameon=False)


def _label(axes: Any, labelled: Sequence[Mark], marks: Sequence[Mark]) -> None:
    """Write each label at the first place beside its dot that is free, or leave it out."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    places = axes.transData.transform([(m.x[1], m.y[1]) for m in marks])
    boxes = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in places]
    frame = axes.get_window_extent()
    for mark in labelled:
        for dx, dy in _PLACES:
            text = axes.annotate(
                mark.label,
                (mark.x[1], mark.y[1]),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
                fontsize=9,
                gid="label",
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
            box = text.get_window_extent()
            inside = frame.x0 < box.x0 and box.x1 < frame.x1
            inside = inside and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
                break
            text.remove()
