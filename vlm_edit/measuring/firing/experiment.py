"""Show a host pictures while its layers are bypassed, and see what its tokens make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.ground.notebook import several
from vlm_edit.hooks import EarlyStop, Recording, record
from vlm_edit.host import Inputs, Site
from vlm_edit.measuring.firing.shades import Canvas, Rows, Threshold

_MOST_ROWS = 32
_MOST_TOKENS = 8192  # of one forward
_MOST_NUMBERS = 1 << 23  # of its pictures
_ALIKE = 0.01  # of the way from dark to light; at 0.03 edges move by a quarter of a patch
_RANDOM = 20  # times what two runs differ by
_PROBES = 16  # numbers of the input that are changed alone
_RANDOM_HOST = "the host's tokens differ from run to run"
_BLIND = "no token shows anything of the picture before tokens look at one another"
_POOLED = "one vector stands for the whole picture"


@dataclass(eq=False)
class Experiment:
    """Pictures, and what the tokens at a site make of them.

    Attributes:
        rows: Of pictures that run together.
        site: Where tokens are read.
        early: Runs the host as far as that.
    """

    rows: Rows
    site: Site
    early: EarlyStop
    _dark: Tensor = field(init=False, repr=False)
    _light: Tensor = field(init=False, repr=False)
    _noise: Tensor = field(init=False, repr=False)

    @classmethod
    def of(cls, canvas: Canvas, site: Site) -> Experiment:
        """Return one of as many pictures in a forward as the host takes."""
        early = EarlyStop(canvas.host, site.name)
        alone = cls(canvas.rows(1), site, early)
        count = min(
            _MOST_ROWS, _MOST_TOKENS // max(1, len(alone.spans)), _MOST_NUMBERS // canvas.numbers
        )
        if count > 1:
            try:
                return cls(canvas.rows(count), site, early)
            except CannotKnow:  # then one by one
                pass
        return alone

    def __post_init__(self) -> None:
        """See all dark and all light, and what two runs of one picture differ by."""
        self._dark, again = (self._states(self.rows.shaded(0.0)) for _ in range(2))
        self._light = self._states(self.rows.shaded(1.0))
        self._noise = (torch.cat([self._dark, again]) - self._dark[:1]).norm(dim=-1).amax(0)

    @property
    def spans(self) -> Tensor:
        """Return by how much each token changes from dark to light, [t]."""
        spans: Tensor = (self._light - self._dark).norm(dim=-1)[0]
        return spans

    @cached_property
    def changing(self) -> Tensor:
        """Return which tokens see anything of the picture, [t] bool.

        Raises:
            CannotKnow: None does.
        """
        spans = self.spans
        least = 1e-5 * self._dark[0].norm(dim=-1)
        changing: Tensor = (spans > least) & (spans > _RANDOM * self._noise)
        if not bool(changing.any()):
            random = bool((self._noise > least).any())
            raise CannotKnow(_RANDOM_HOST if random else _BLIND)
        nearly = [self._states(self.rows.shaded(share))[0] for share in (0.5, 0.5 + 1 / 64)]
        if bool((nearly[0] == nearly[1]).all(-1)[changing].any()):
            raise CannotKnow("its tokens are chosen from a codebook, and show nothing by halves")
        return changing

    @property
    def reached(self) -> int:
        """Return how many tokens one number of the input reaches at most.

        A token that all reach, a mean of others, is none of them.

        Raises:
            CannotKnow: None of those that were tried reaches any.
        """
        starts = range(0, _PROBES, self.rows.count)
        states = [self._states(self.rows.touched(start)) for start in starts]
        moved = (torch.cat(states) - self._dark[:1]).norm(dim=-1) > _RANDOM * self._noise
        everywhere = moved.all(0)
        if int(everywhere.sum()) == 1 and int(self.changing.sum()) > 1:
            moved = moved[:, ~everywhere]
        if not bool(moved.any()):
            raise CannotKnow("what single pixels show is lost in the host's rounding")
        return int(moved.sum(1).max())

    def look(self, thresholds: Sequence[Threshold]) -> tuple[Tensor, Tensor]:
        """Return which tokens see the light alone, and which the dark, [n, t] bool."""
        parts = [
            self._compared(thresholds[i : i + self.rows.count])
            for i in range(0, len(thresholds), self.rows.count)
        ]
        lights, darks = zip(*parts, strict=True)
        return torch.cat(lights), torch.cat(darks)

    def _compared(self, thresholds: Sequence[Threshold]) -> tuple[Tensor, Tensor]:
        states = self._states(self.rows.painted(thresholds))
        near = _ALIKE * self.spans + 2 * self._noise
        alike = ((states - one).norm(dim=-1) <= near for one in (self._light, self._dark))
        light, dark = (some[: len(thresholds)] for some in alike)
        return light, dark

    def _states(self, made: Inputs) -> Tensor:
        """Return the image tokens [n, t, d] of pictures, float32 on the CPU."""
        host = self.rows.canvas.host
        inputs = host.receive(made)
        with record(host, self.site.name) as recording:
            self.early.run(inputs.values, self.rows.count)
        tokens = _image_tokens(recording, self.site, self.rows.count)
        if len(tokens) % self.rows.count:
            raise CannotKnow("pictures of one size have different numbers of tokens")
        if not bool(tokens.isfinite().all()):
            raise CannotKnow("the tokens hold NaN or infinity")
        return tokens.reshape(self.rows.count, -1, tokens.shape[-1]).cpu()


def _image_tokens(recording: Recording, site: Site, count: int) -> Tensor:
    """Return a site's image tokens as measuring picks them, [t, d] float32, of some pictures."""
    tap = next(tap for tap in site.taps if tap.stream in ("image", "mixed"))
    capture = recording.last(site.name, tap.stream)
    hidden = capture.hidden.float()
    hidden = hidden.flatten(1, -2) if hidden.ndim > 3 else hidden
    tokens = capture.tokens.at(hidden)
    whole_rows = tap.stream == "mixed" if tokens.in_rows else tokens.requests is None
    if whole_rows and len(hidden) != count:
        pictures = several(count, "picture")
        raise CannotKnow(f"{len(hidden)} rows pass for {pictures}, and nobody can tell whose")
    if tokens.in_rows:
        mask = tokens.select("image")
        return hidden.flatten(0, 1) if mask is None else hidden[mask]
    if tokens.requests is None:
        raise CannotKnow(_POOLED)
    return hidden
