"""Pictures of coordinates: where each number of a host's inputs lies in the picture itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.host import Host, Inputs

Axis = Literal["x", "y"]
LEVELS = 255  # of a ramp's greys, so that no coordinate is known any better


class Threshold(NamedTuple):
    """Where a picture that is black before and white behind changes from one to the other.

    Attributes:
        axis: ``x`` from left to right, ``y`` from top to bottom.
        at: Fraction of the picture.
    """

    axis: Axis
    at: float


class _Shades(NamedTuple):
    """One argument of a host that shows the picture, and where each of its numbers lies."""

    black: Tensor
    white: Tensor
    at: Mapping[Axis, Tensor]  # fractions of the picture; NaN where it is padding


@dataclass(frozen=True, eq=False)
class Canvas:
    """A host's inputs of one picture, of which any half can be painted without its processor.

    Attributes:
        host: The host.
        size: Width and height of the picture.
        text: What goes with it.
        shades: Of each argument that shows the picture, by name.
    """

    host: Host
    size: tuple[int, int]
    text: str
    shades: Mapping[str, _Shades]

    @classmethod
    def of(cls, host: Host, size: tuple[int, int], text: str) -> Canvas:
        """Make a host's inputs of a black picture, a white one and a ramp along each axis.

        Raises:
            CannotKnow: Where its numbers lie does not show.
        """
        made = [_made(host, [picture], text).values for picture in _pictures(size)]
        shades = {}
        for name in made[0]:
            values = [values.get(name) for values in made]
            if not _same(values):
                shades[name] = _shades(name, values)
        if not shades or all(not bool(s.at["x"].isfinite().any()) for s in shades.values()):
            raise CannotKnow("none of the host's inputs shows the picture as a tensor")
        return cls(host, size, text, shades)

    def limits(self, axis: Axis) -> tuple[float, float, float]:
        """Return the first and the last coordinate that the host sees, and the step between two.

        A picture is cropped where they do not reach its edges.
        """
        known = torch.cat([s.at[axis][s.at[axis].isfinite()] for s in self.shades.values()])
        steps = (known * 2 * LEVELS).round().unique() / (2 * LEVELS)
        low, high = float(steps[0]), float(steps[-1])
        return low, high, (high - low) / max(1, len(steps) - 1)

    def rows(self, count: int) -> Rows:
        """Return inputs of as many copies of the picture.

        Raises:
            CannotKnow: They are not those of one picture, one after the other.
        """
        made = _made(self.host, [_pictures(self.size)[0]] * count, self.text)
        for name, shades in self.shades.items():
            several = torch.cat([shades.black] * count)
            if not _same([made.values.get(name), several]):
                raise CannotKnow(f"{name} of several pictures is not that of each")
        return Rows(self, made, count)


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs of several copies of a picture, each painted by itself."""

    canvas: Canvas
    made: Inputs
    count: int

    def painted(self, thresholds: Sequence[Threshold]) -> Inputs:
        """Return inputs of pictures that are black before their threshold, and white behind it.

        Args:
            thresholds: Of each copy; the last is repeated where they are fewer.
        """
        thresholds = [*thresholds, *[thresholds[-1]] * (self.count - len(thresholds))]
        values = dict(self.made.values)
        for name, shades in self.canvas.shades.items():
            parts = [torch.where(shades.at[a] < at, shades.black, shades.white)
                     for a, at in thresholds]  # fmt: skip
            values[name] = torch.cat(parts)
        return Inputs(values, self.made.cut, self.made.caption)


def _made(host: Host, pictures: Sequence[Image.Image], text: str) -> Inputs:
    return host.maker.inputs(pictures, [text] * len(pictures), False)


def _pictures(size: tuple[int, int]) -> list[Image.Image]:
    """Return a black picture, a white one, and ramps from left to right and from top to bottom."""
    width, height = size
    across = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    flat = (np.zeros((height, width)), np.ones((height, width)), across, down)
    return [Image.fromarray((p * LEVELS).round().astype(np.uint8)).convert("RGB") for p in flat]


def _same(values: Sequence[Any]) -> bool:
    first, *others = values
    if isinstance(first, Tensor):
        return all(isinstance(v, Tensor) and torch.equal(v, first) for v in others)
    if isinstance(first, list | tuple) and any(isinstance(part, Tensor) for part in first):
        several = [v for v in values if isinstance(v, list | tuple) and len(v) == len(first)]
        return len(several) == len(values) and all(map(_same, zip(*several, strict=True)))
    return all(type(v) is type(first) and bool(np.all(v == first)) for v in others)


def _shades(name: str, values: Sequence[Any]) -> _Shades:
    """Return where each number of an argument lies, from that of the four pictures."""
    black, white, *ramps = values
    kinds = all(
        isinstance(v, Tensor) and (v.is_floating_point() or v.dtype == torch.uint8) for v in values
    )
    if not kinds:
        raise CannotKnow(f"the host's {name!r} hangs on what the picture shows, and is no picture")
    if len({v.shape for v in values}) > 1:
        raise CannotKnow(f"the shape of the host's {name!r} hangs on what the picture shows")
    span = white.float() - black.float()
    seen = span.abs() > 1e-6 * span.abs().max()
    across, down = (
        torch.where(seen, (ramp.float() - black.float()) / span, torch.nan) for ramp in ramps
    )
    return _Shades(black, white, {"x": across, "y": down})
