"""Find which part of a picture each image token stands for, by experiment and for any host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.ground.sites import layer_of
from vlm_edit.hooks import bypassed
from vlm_edit.host import Host, Site
from vlm_edit.measuring.firing.edges import find_edges, meet, settle
from vlm_edit.measuring.firing.experiment import Experiment
from vlm_edit.measuring.firing.shades import AXES, Axis, Canvas, Line

_LAYER = re.compile(r"(.+?)((?:\.\d+)+)")
_ADDING = "deepstack"  # numbered, and no layers of a stack
_KEPT = 4  # sizes that others are compared with
_MOST_REACHED = 4  # tokens by one number of the input: patches that overlap along both axes
_MOST_OF_ALL = 0.8


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
    in a black picture nor as in a white one are the edges of its box. A picture of another size
    that is laid out alike, as where all are cropped to one, is not tried again.

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

    A class token, a newline or a register has no place, and neither has any token where each looks
    at all of the picture, as a Q-Former's: then it is said so.

        >>> PlacesFinder(finder.host, "joint").of((48, 48)).why
        'one vector stands for the whole picture'
    """

    host: Host
    site: str
    _known: dict[tuple[int, int], Places] = field(default_factory=dict, init=False, repr=False)
    _tried: list[tuple[Canvas, Places]] = field(default_factory=list, init=False, repr=False)
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
            CannotKnow: The host has no processor.
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
        self.host.expect_processor("finding where tokens lie in a picture")
        self.host.expect_eval("what its tokens hold random")
        try:
            canvas = Canvas.of(self.host, size, text)
        except CannotKnow as error:
            return Places(None, str(error))
        for other, places in self._tried:
            lines = other.onto(canvas)
            if lines is not None:
                return _checked(_moved(places, lines), canvas)
        places = self._tried_on(canvas)
        self._tried = [*self._tried, (canvas, places)][-_KEPT:]
        return _checked(places, canvas)

    def _tried_on(self, canvas: Canvas) -> Places:
        try:
            with torch.no_grad(), bypassed(self.host, *_layers(self.host)):
                return _placed(Experiment.of(canvas, self._read), canvas)
        except CannotKnow as error:
            return Places(None, str(error))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what lies behind may ask for what layers have left aside
            kind = type(error).__name__
            return Places(None, f"the host fails while its layers are bypassed: {kind}: {error}")


def _placed(experiment: Experiment, canvas: Canvas) -> Places:
    """Return the places that an experiment finds."""
    changing = experiment.changing
    reached = experiment.reached
    why = _doubt(reached, int(changing.sum()))
    if why:
        return Places(None, why)
    boxes = torch.full((len(changing), 4), torch.nan)
    for start, axis in enumerate(AXES):
        limits = canvas.limits(axis)
        first, last = find_edges(experiment.look, axis, len(changing))
        left, right = settle(first[changing], last[changing], limits, canvas.size[start])
        boxes[changing, start], boxes[changing, start + 2] = left.float(), right.float()
    if reached > 1:
        boxes[changing] = meet(boxes[changing])
    return Places(boxes)


def _moved(places: Places, lines: Mapping[Axis, Line]) -> Places:
    """Return places in another picture that the host's inputs hold as they hold the first."""
    if places.boxes is None:
        return places
    sides = (lines[axis].map(places.boxes[:, i]) for i, axis in enumerate((*AXES, *AXES)))
    return Places(torch.stack([*sides], 1))


def _checked(places: Places, canvas: Canvas) -> Places:
    """Return places, or that a picture is too small to tell them.

    What lies before the middle of its first pixel is of one colour.
    """
    if places.boxes is not None:
        for start, pixels in enumerate(canvas.size):
            edges = places.boxes[:, start]
            tokens = len(edges[~edges.isnan()].unique())
            if pixels < max(2, tokens / 2):
                why = f"a picture of {pixels} pixels a side is too small for {tokens} tokens a side"
                return Places(None, why)
    return places


def _doubt(reached: int, count: int) -> str:
    """Return why boxes of some tokens are none of theirs alone, the end of a sentence."""
    if reached > 1 and reached > _MOST_OF_ALL * count:
        return "each of its tokens looks at the whole picture"
    if reached > _MOST_REACHED or (reached > 1 and 2 * reached > count):
        return f"what one place of the picture shows reaches {reached} of its tokens"
    return ""


def _read_at(host: Host, name: str) -> Site:
    """Return where the tokens of a site are read: a stack that text shares, at its first layer."""
    site = host.site(layer_of(name))
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
