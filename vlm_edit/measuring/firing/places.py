"""Find which part of a picture each image token stands for, by experiment and for any host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks import EarlyStop, Recording, bypassed, record
from vlm_edit.host import INSIDE, Host, Inputs, Site
from vlm_edit.measuring.firing.edges import find_edges, settle
from vlm_edit.measuring.firing.shades import Canvas, Rows, Threshold

_LAYER = re.compile(r"(.+?)((?:\.\d+)+)")
_ADDING = "deepstack"  # numbered, and no layers of a stack
_MOST_ROWS = 32
_MOST_TOKENS = 8192  # of one forward
_ALIKE = 0.01  # of the way from black to white
_RANDOM = 20  # times what two runs differ by
_MOST_SHARED = 3  # tokens of one size that look at one place: tiles, their overlap, a thumbnail
_WHOLE = 0.8  # of what the host sees
POOLED = "one vector stands for the whole picture"


@dataclass(frozen=True, eq=False)
class Places:
    """Hold which part of a picture each image token of a site stands for.

    Attributes:
        boxes: [t, 4] float32: left, top, right and bottom as fractions of the picture, NaN for a
            token that stands for none; in the order of measuring. None where nobody can tell.
        why: Then why not, the end of a sentence.
    """

    boxes: Tensor | None
    why: str = ""


@dataclass(eq=False)
class PlacesFinder:
    """Find which part of a picture each image token of a site stands for.

    Nothing is known of the host's family. Its own processor is given pictures that are black up
    to a line and white behind it, and its layers hand on what they are called with: then a token
    sees what its own patches show and nothing else, and the lines between which it is neither as
    in a black picture nor as in a white one are the edges of its box.

    Args:
        host: With its processor, in evaluation mode. It is as it was afterwards.
        site: The site's name.

    Raises:
        UnknownName: It has no such site.

    Example:
        >>> from vlm_edit import Host
        >>> from vlm_edit.measuring import PlacesFinder
        >>> finder = PlacesFinder(Host.load("zoo:emoji-clip", device="cpu"), "vision.1")
        >>> boxes = finder.of((48, 48)).boxes
        >>> boxes.shape
        torch.Size([37, 4])
        >>> boxes[1]  # behind the class token, which stands for no part
        tensor([0.0000, 0.0000, 0.1667, 0.1667])
    """

    host: Host
    site: str
    _known: dict[tuple[int, int], Places] = field(default_factory=dict, init=False, repr=False)
    _read: Site = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Look up where the site's tokens are read."""
        self.host.site(self.site)
        self._read = _read_at(self.host, self.site)

    def of(self, size: tuple[int, int], text: str = "") -> Places:
        """Return the places of the image tokens of a picture.

        Args:
            size: The picture's width and height in pixels.
            text: What goes with it. Where tokens lie in the picture does not hang on it, so what
                was found for a size is kept.

        Raises:
            BadArgument: The host is in train mode, or no size of a picture.
            VlmEditError: The host has no processor, or its forward fails.
        """
        size = (int(size[0]), int(size[1]))
        if min(size) < 1:
            raise BadArgument(f"size is {size}; give the picture's width and height in pixels")
        if size not in self._known:
            self._known[size] = self._found(size, text)
        return self._known[size]

    def _found(self, size: tuple[int, int], text: str) -> Places:
        if self.host.is_pipeline:
            return Places(None, "a pipeline runs several models")
        if "image" not in self._read.streams:
            return Places(None, f"no image tokens pass at site {self.site!r}")
        self.host.expect_eval("what its tokens hold random")
        try:
            canvas = Canvas.of(self.host, size, text)
            with torch.no_grad(), bypassed(self.host, *_layers(self.host)):
                return _placed(_Experiment.of(canvas, self._read), canvas)
        except CannotKnow as error:
            return Places(None, str(error))


@dataclass(eq=False)
class _Experiment:
    """Pictures, and what the tokens at a site make of them.

    Attributes:
        rows: Of pictures that run together.
        site: Where tokens are read.
        early: Runs the host as far as that.
    """

    rows: Rows
    site: Site
    early: EarlyStop
    _black: Tensor = field(init=False, repr=False)
    _white: Tensor = field(init=False, repr=False)
    _noise: Tensor = field(init=False, repr=False)

    @classmethod
    def of(cls, canvas: Canvas, site: Site) -> _Experiment:
        """Return one of as many pictures in a forward as the host takes."""
        early = EarlyStop(canvas.host, site.name)
        alone = cls(canvas.rows(1), site, early)
        count = min(_MOST_ROWS, _MOST_TOKENS // max(1, len(alone.spans)))
        if count > 1:
            try:
                return cls(canvas.rows(count), site, early)
            except CannotKnow:  # then one by one
                pass
        return alone

    def __post_init__(self) -> None:
        """See all black and all white, and what two runs of one picture differ by."""
        once, again = (self._states([Threshold("x", 2.0)]) for _ in range(2))
        self._white = self._states([Threshold("x", -1.0)])
        self._black = once
        self._noise = (torch.stack([once, again]) - once[:1]).norm(dim=-1).amax((0, 1))

    @property
    def spans(self) -> Tensor:
        """Return by how much each token changes from black to white, [t]."""
        return (self._white - self._black).norm(dim=-1)[0]

    @property
    def changing(self) -> Tensor:
        """Return which tokens see anything of the picture, [t] bool.

        Raises:
            CannotKnow: None does.
        """
        spans = self.spans
        least = 1e-5 * self._black[0].norm(dim=-1)
        changing = (spans > least) & (spans > _RANDOM * self._noise)
        if not bool(changing.any()):
            random = bool((self._noise > least).any())
            raise CannotKnow(
                "the host's tokens differ from run to run"
                if random
                else "no token shows anything of the picture before tokens look at one another"
            )
        return changing

    def look(self, thresholds: Sequence[Threshold]) -> tuple[Tensor, Tensor]:
        """Return which tokens see white alone, and which black alone, [n, t] bool."""
        parts = [
            self._compared(thresholds[i : i + self.rows.count])
            for i in range(0, len(thresholds), self.rows.count)
        ]
        whites, blacks = zip(*parts, strict=True)
        return torch.cat(whites), torch.cat(blacks)

    def _compared(self, thresholds: Sequence[Threshold]) -> tuple[Tensor, Tensor]:
        states = self._states(thresholds)
        near = _ALIKE * self.spans + 2 * self._noise
        alike = ((states - one).norm(dim=-1) <= near for one in (self._white, self._black))
        white, black = (some[: len(thresholds)] for some in alike)
        return white, black

    def _states(self, thresholds: Sequence[Threshold]) -> Tensor:
        """Return the image tokens [n, t, d] of pictures, float32 on the CPU."""
        host = self.rows.canvas.host
        inputs: Inputs = host.receive(self.rows.painted(thresholds))
        with record(host, self.site.name) as recording:
            self.early.run(inputs.values, self.rows.count)
        tokens = _image_tokens(recording, self.site)
        if len(tokens) % self.rows.count:
            raise CannotKnow("pictures of one size have different numbers of tokens")
        if not bool(tokens.isfinite().all()):
            raise CannotKnow("the tokens hold NaN or infinity")
        return tokens.unflatten(0, (self.rows.count, -1)).cpu()


def _image_tokens(recording: Recording, site: Site) -> Tensor:
    """Return a site's image tokens as measuring picks them, [t, d] float32."""
    tap = next(tap for tap in site.taps if tap.stream in ("image", "mixed"))
    capture = recording.last(site.name, tap.stream)
    hidden = capture.hidden.float()
    hidden = hidden.flatten(1, -2) if hidden.ndim > 3 else hidden
    tokens = capture.tokens.at(hidden)
    if tokens.in_rows:
        mask = tokens.select("image")
        return hidden.flatten(0, 1) if mask is None else hidden[mask]
    if tokens.requests is None:
        raise CannotKnow(POOLED)
    return hidden


def _placed(experiment: _Experiment, canvas: Canvas) -> Places:
    """Return the places that an experiment finds."""
    changing = experiment.changing
    boxes = torch.full((len(changing), 4), torch.nan)
    whole = 1.0
    for start, axis in enumerate(("x", "y")):
        limits = canvas.limits(axis)
        first, last = find_edges(experiment.look, axis, len(changing))
        left, right = settle(first[changing], last[changing], limits, canvas.size[start])
        boxes[changing, start], boxes[changing, start + 2] = left.float(), right.float()
        whole *= min(1.0, limits[1] - limits[0] + limits[2])
    why = _doubt(boxes[changing], whole)
    return Places(None, why) if why else Places(boxes)


def _doubt(boxes: Tensor, whole: float) -> str:
    """Return why boxes [t, 4] are none of single tokens, the end of a sentence; or nothing."""
    sides = boxes[:, 2:] - boxes[:, :2]
    wide = (sides.prod(1) > _WHOLE * whole).sum()
    if len(boxes) > 1 and int(wide) * 2 > len(boxes):
        return "each of its tokens looks at the whole picture"
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    shared = torch.tensor([
        int((((centres - centre).abs() < 0.45 * side) & ((sides / side).log().abs() < 0.4)).all(1)
            .sum()) for centre, side in zip(centres, sides, strict=True)
    ])  # fmt: skip
    if int(shared.median()) > _MOST_SHARED:
        return "several tokens look at one place, each beyond its own"
    return ""


def _layer_of(name: str) -> str:
    inside = INSIDE.fullmatch(name)
    return inside[1] if inside else name


def _read_at(host: Host, name: str) -> Site:
    """Return where the tokens of a site are read: a stack that text shares, at its first layer."""
    site = host.site(_layer_of(name))
    match = _LAYER.fullmatch(site.name)
    if match is None or all(tap.stream != "mixed" for tap in site.taps):
        return site
    stack = (other for other in host.sites.values() if _stack_of(other.name) == match[1])
    return next(stack, site)


def _stack_of(name: str) -> str | None:
    match = _LAYER.fullmatch(name)
    return match[1] if match else None


def _layers(host: Host) -> list[str]:
    """Return the sites that are layers where image tokens look at one another."""
    return [
        site.name
        for site in host.sites.values()
        if _stack_of(site.name) not in (None, _ADDING)
        and any(tap.stream in ("image", "mixed") for tap in site.taps)
    ]
