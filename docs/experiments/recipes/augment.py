"""Augmentation of drawings, on whole batches of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Strength:
    """How strongly drawings are changed before each step.

    Besides, every drawing is stretched by up to a tenth.

    Attributes:
        rotate: Largest rotation in radians.
        scale: Smallest and largest scale.
        shift: Largest shift, as a share of the image.
        shear: Largest shear.
        hue: Largest rotation of hue in radians.
        saturation: Largest relative change of saturation.
        contrast: Largest relative change of contrast, and of brightness by half of it.
        grey: Share of drawings without colour.
        blend: Share of drawings blended with another vendor's drawing of the same label.
        erase: Share of images with a rectangle erased.
        blur: Share of images blurred.
        mirror: Share of drawings mirrored, where the label allows it.
        edges: Share of drawings reduced to their outlines.
    """

    rotate: float = 0.25
    scale: tuple[float, float] = (0.75, 1.15)
    shift: float = 0.1
    shear: float = 0.15
    hue: float = 0.4
    saturation: float = 0.5
    contrast: float = 0.4
    grey: float = 0.15
    blend: float = 0.3
    erase: float = 0.3
    blur: float = 0.15
    mirror: float = 0.3
    edges: float = 0.05

    def scaled(self, share: float) -> Strength:
        """Weaken every change.

        Args:
            share: 1 for these strengths, 0 for no change at all.
        """
        values: dict[str, float] = {
            f.name: share * getattr(self, f.name) for f in fields(self) if f.name != "scale"
        }
        low, high = self.scale
        return Strength(scale=(1 - share * (1 - low), 1 + share * (high - 1)), **values)


def lay(drawings: Tensor, colours: Tensor) -> Tensor:
    """Lay premultiplied RGBA drawings on plain colours.

    Args:
        drawings: Shape (batch, 4, height, width), values in [0, 1], colour times alpha.
        colours: Shape (batch, 3), values in [0, 1].

    Returns:
        Shape (batch, 3, height, width).
    """
    return drawings[:, :3] + (1 - drawings[:, 3:]) * colours[:, :, None, None]


def premultiply(drawings: Tensor) -> Tensor:
    """Turn `uint8` RGBA into float RGBA in [0, 1] with colour times alpha."""
    x = drawings.float() / 255
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)


class Augmenter:
    """Draws new views of drawings; all chance comes from one generator."""

    def __init__(self, strength: Strength, generator: torch.Generator) -> None:
        self.strength = strength
        self.generator = generator

    def __call__(
        self, drawings: Tensor, partners: Tensor, mirrors: Tensor, colours: Tensor
    ) -> Tensor:
        """Draw one view of each drawing.

        Args:
            drawings: `uint8` RGBA, shape (batch, 4, height, width).
            partners: Other drawings of the same labels, in the same form.
            mirrors: Which drawings may be mirrored, shape (batch,).
            colours: Background colours in [0, 1], shape (batch, 3).

        Returns:
            Images in [0, 1], shape (batch, 3, height, width).
        """
        s = self.strength
        view = self._warp(self._recolour(premultiply(drawings)), mirrors)
        mixed = self._chance(len(view), s.blend).nonzero().flatten()
        if len(mixed):
            other = self._warp(self._recolour(premultiply(partners[mixed])), mirrors[mixed])
            share = self._uniform(len(mixed), 0.2, 0.8)[:, None, None, None]
            view = view.index_copy(0, mixed, share * view[mixed] + (1 - share) * other)
        outlined = self._chance(len(view), s.edges).nonzero().flatten()
        if len(outlined):
            view = view.index_copy(0, outlined, outlines(view[outlined]))
        view = self._erase(view)
        images = lay(view, colours)
        blurred = self._chance(len(view), s.blur).nonzero().flatten()
        if len(blurred):
            soft = F.avg_pool2d(F.pad(images[blurred], (1, 1, 1, 1), mode="replicate"), 3, 1)
            images = images.index_copy(0, blurred, soft)
        return images

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low

    def _chance(self, count: int, share: float) -> Tensor:
        return torch.rand(count, generator=self.generator) < share

    def _recolour(self, x: Tensor) -> Tensor:
        """Rotate hue, change saturation, contrast and brightness; all linear in colour."""
        s, n = self.strength, len(x)
        angle = self._uniform(n, -s.hue, s.hue)
        cos, third = torch.cos(angle), 1 / 3
        sin = torch.sin(angle) * math.sqrt(third)
        eye = torch.eye(3)[None]
        cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])[None]
        grey = torch.full((1, 3, 3), third)
        c, d = cos[:, None, None], sin[:, None, None]
        hue = c * eye + (1 - c) * grey + d * cross
        keep = 1 + self._uniform(n, -s.saturation, s.saturation)
        keep = torch.where(self._chance(n, s.grey), torch.zeros(n), keep)[:, None, None]
        gain = (1 + self._uniform(n, -s.contrast, s.contrast))[:, None, None]
        matrix = gain * (keep * hue + (1 - keep) * grey)
        lift = self._uniform(n, -s.contrast / 2, s.contrast / 2)[:, None, None, None]
        alpha = x[:, 3:]
        middle = 0.5 * (1 - gain[..., None]) + lift
        flat = torch.bmm(matrix, x[:, :3].flatten(2)).view_as(x[:, :3])
        colour = torch.minimum((flat + middle * alpha).clamp(min=0), alpha)
        return torch.cat([colour, alpha], 1)

    def _warp(self, x: Tensor, mirrors: Tensor) -> Tensor:
        s, n = self.strength, len(x)
        angle = self._uniform(n, -s.rotate, s.rotate)
        zoom = 1 / self._uniform(n, *s.scale)
        stretch = self._uniform(n, 0.9, 1.1)
        flip = torch.where(self._chance(n, s.mirror) & mirrors, -1.0, 1.0)
        shear = self._uniform(n, -s.shear, s.shear)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = cos * flip * stretch, (shear * cos - sin) / stretch
        theta[:, 1, 0], theta[:, 1, 1] = sin * flip * stretch, (shear * sin + cos) / stretch
        theta[:, :, 2] = self._uniform(2 * n, -2 * s.shift, 2 * s.shift).view(n, 2)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def _erase(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        chosen = self._chance(n, self.strength.erase)
        rows, columns = torch.arange(height)[None], torch.arange(width)[None]
        h, w = self._uniform(n, 0.15, 0.45) * height, self._uniform(n, 0.15, 0.45) * width
        top, left = self._uniform(n, 0, 1) * (height - h), self._uniform(n, 0, 1) * (width - w)
        inside_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
        inside_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
        hole = inside_rows[:, :, None] & inside_columns[:, None, :] & chosen[:, None, None]
        return x * (~hole)[:, None]


def outlines(x: Tensor) -> Tensor:
    """Reduce premultiplied RGBA drawings to black lines where they change."""
    dx = F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
    dy = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    edge = (4 * (dx.abs() + dy.abs()).amax(1, keepdim=True)).clamp(max=1)
    return torch.cat([torch.zeros_like(x[:, :3]), edge], 1)
