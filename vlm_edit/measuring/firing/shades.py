"""Pictures of coordinates: where each number of a host's inputs lies in the picture itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.host import Host, Inputs

Axis = Literal["x", "y"]
AXES: tuple[Axis, Axis] = ("x", "y")
LEVELS = 255  # of a ramp's greys, so that no coordinate is known any better


class Threshold(NamedTuple):
    """Where a picture that is black before and white behind changes from one to the other.

    Attributes:
        axis: ``x`` from left to right, ``y`` from top to bottom.
        at: Fraction of the picture.
    """

    axis: Axis
    at: float


class Line(NamedTuple):
    """How coordinates in one picture become those in another: slope * at + start."""

    slope: float
    start: float

    def map(self, at: Tensor) -> Tensor:
        """Return where coordinates lie in the other, no further than its edges."""
        return (self.slope * at + self.start).clamp(0, 1)


class _Shades(NamedTuple):
    """One argument of a host that shows the picture, and where each of its numbers lies."""

    black: Tensor
    white: Tensor
    at: Mapping[Axis, Tensor]  # fractions of the picture; NaN where it is padding
    textures: tuple[Tensor, Tensor]  # a dark one and a light one

    def between(self, threshold: Threshold) -> Tensor:
        """Return the argument for a picture that is dark before a threshold and light behind."""
        dark, light = self.textures
        return torch.where(self.at[threshold.axis] < threshold.at, dark, light)

    def touched(self, one: int) -> Tensor:
        """Return the argument for a dark picture, one number of which is the light one's."""
        dark, light = self.textures
        touched = dark.flatten().clone()
        touched[one] = light.flatten()[one]
        return touched.view_as(dark)

    def shaded(self, share: float) -> Tensor:
        """Return the argument for a picture a share of the way from the dark to the light one."""
        if share in (0.0, 1.0):
            return self.textures[int(share)]
        dark, light = (texture.float() for texture in self.textures)
        return (dark + (light - dark) * share).to(self.black.dtype)


@dataclass(frozen=True, eq=False)
class Canvas:
    """A host's inputs of one picture, of which any half can be painted without its processor.

    Attributes:
        host: The host.
        size: Width and height of the picture.
        text: What goes with it.
        shades: Of each argument that shows the picture, by name.
        others: Arguments that do not, by name.
    """

    host: Host
    size: tuple[int, int]
    text: str
    shades: Mapping[str, _Shades]
    others: Mapping[str, Any]

    @classmethod
    def of(cls, host: Host, size: tuple[int, int], text: str) -> Canvas:
        """Make a host's inputs of a black picture, a white one and a ramp along each axis.

        Raises:
            CannotKnow: Where its numbers lie does not show.
        """
        made = [_made(host, [picture], text).values for picture in _pictures(size)]
        shades, others = {}, {}
        for name, value in made[0].items():
            values = [values.get(name) for values in made]
            if _same(values):
                others[name] = value
            else:
                shades[name] = _shades(name, values)
        if not shades or all(not bool(s.at["x"].isfinite().any()) for s in shades.values()):
            raise CannotKnow("none of the host's inputs shows the picture as a tensor")
        return cls(host, size, text, shades, others)

    def limits(self, axis: Axis) -> tuple[float, float, float]:
        """Return the first and the last coordinate that the host sees, and the step between two.

        A picture is cropped where they do not reach its edges.
        """
        known = torch.cat([s.at[axis][s.at[axis].isfinite()] for s in self.shades.values()])
        steps = (known * 2 * LEVELS).round().unique() / (2 * LEVELS)
        low, high = float(steps[0]), float(steps[-1])
        return low, high, (high - low) / max(1, len(steps) - 1)

    def onto(self, other: Canvas) -> Mapping[Axis, Line] | None:
        """Return how coordinates in this picture become those in another, along each axis.

        Returns:
            None where the host's inputs of the two are not laid out alike, so that a token may see
            another part.
        """
        names = (self.shades.keys(), self.others.keys())
        if names != (other.shades.keys(), other.others.keys()):
            return None
        if not all(_same([value, other.others[name]]) for name, value in self.others.items()):
            return None
        pairs = [(shades, other.shades[name]) for name, shades in self.shades.items()]
        lines = {axis: _line([(a.at[axis], b.at[axis]) for a, b in pairs]) for axis in AXES}
        found = {axis: line for axis, line in lines.items() if line is not None}
        return found if len(found) == len(AXES) else None

    @property
    def numbers(self) -> int:
        """Return how many numbers one picture is."""
        return sum(shades.black.numel() for shades in self.shades.values())

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
        """Return inputs of pictures that are dark before their threshold, and light behind it.

        Args:
            thresholds: Of each copy; the last is repeated where they are fewer.
        """
        wanted = [*thresholds, *[thresholds[-1]] * (self.count - len(thresholds))]
        return self._with({n: [s.between(t) for t in wanted] for n, s in self._shades})

    def shaded(self, share: float) -> Inputs:
        """Return inputs of pictures a share of the way from the dark to the light one."""
        return self._with({n: [s.shaded(share)] * self.count for n, s in self._shades})

    def touched(self, start: int) -> Inputs:
        """Return inputs of dark pictures, each with one number of its own that is light.

        Args:
            start: Number of the first; each number stands for another.
        """
        painted = {name: [shades.textures[0]] * self.count for name, shades in self._shades}
        names = list(painted)
        for row in range(self.count):
            name = names[(start + row) % len(names)]
            shades = self.canvas.shades[name]
            seen = shades.at["x"].flatten().isfinite().nonzero().flatten()
            generator = torch.Generator().manual_seed(start + row)
            one = seen[torch.randint(len(seen), (), generator=generator)]
            painted[name][row] = shades.touched(int(one))
        return self._with(painted)

    @property
    def _shades(self) -> Iterable[tuple[str, _Shades]]:
        return self.canvas.shades.items()

    def _with(self, parts: Mapping[str, Sequence[Tensor]]) -> Inputs:
        painted = {name: torch.cat([*some]) for name, some in parts.items()}
        return Inputs({**self.made.values, **painted}, self.made.cut, self.made.caption)


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
    if not all(isinstance(v, Tensor) and _may_shine(v) for v in values):
        raise CannotKnow(f"the host's {name!r} hangs on what the picture shows, and is no picture")
    if len({v.shape for v in values}) > 1:
        raise CannotKnow(f"the shape of the host's {name!r} hangs on what the picture shows")
    span = white.float() - black.float()
    seen = span.abs() > 1e-6 * span.abs().max()
    across, down = (
        torch.where(seen, (ramp.float() - black.float()) / span, torch.nan) for ramp in ramps
    )
    return _Shades(black, white, {"x": across, "y": down}, _textures(black, span))


def _line(pairs: Sequence[tuple[Tensor, Tensor]]) -> Line | None:
    """Return the line on which pairs of coordinates lie; None where they lie on none."""
    if any(one.shape != other.shape for one, other in pairs):
        return None
    known = [(one.isfinite(), other.isfinite()) for one, other in pairs]
    if not all(torch.equal(one, other) for one, other in known):
        return None
    seen = zip(pairs, known, strict=True)
    one, other = torch.cat([torch.stack([a[k], b[k]]) for (a, b), (k, _) in seen], 1).double()
    spread = one - one.mean()
    slope = float((spread * other).sum() / spread.square().sum())
    line = Line(slope, float(other.mean() - slope * one.mean()))
    far = (line.slope * one + line.start - other).abs().max()
    return line if bool(far < 1.5 / LEVELS) else None


def _may_shine(value: Tensor) -> bool:
    return value.is_floating_point() or value.dtype == torch.uint8


def _textures(black: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Return a dark texture and a light one; hosts that norm patches tell no even greys apart."""
    generator = torch.Generator().manual_seed(0)
    dark, light = torch.rand((2, *black.shape), generator=generator) * 0.4
    return tuple((black.float() + span * t).to(black.dtype) for t in (dark, light + 0.6))
