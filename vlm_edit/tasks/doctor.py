"""What works on a host, tried on it: its sites, who tells image tokens, an edit at each site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlm_edit.ground.errors import VlmEditError, line
from vlm_edit.ground.sites import layer_of
from vlm_edit.hooks import entering, record
from vlm_edit.host import (
    Host,
    Site,
    answers,
    is_reached,
    layouts_in,
    may_rest,
    registered_adapter,
    same_answers,
    some_inside,
)
from vlm_edit.patches import try_edit

TEXT = "What is this?"
_WITNESSES = {
    "image_mask": "the mask that was given",
    "argument": "an argument of the host's forward that marks them",
    "position": "their position, as the adapter's layout says",
    "ids": "ids of placeholders",
    "host": "the host itself, by get_placeholder_mask",
    "origin": "where their embeddings came from, the projector",
}
_LIBRARIES = ("vlm-edit", "torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What was looked at.
        told: What was found.
        holds: Whether it is as it must be; None where it is told only.
    """

    what: str
    told: str
    holds: bool | None = None


def examine(host: Host, image: Image.Image | None = None, text: str = TEXT) -> list[Finding]:
    """Try a host with an image and a text: what works, what does not, and why.

    Which tokens are image is held against the host itself: those whose state before the first
    shared layer is another where the image is.

    Args:
        host: With its processor, in evaluation mode.
        image: RGB; by default one is drawn.
        text: One that goes with it.

    Returns:
        What was found, in the order it was looked at; each says whether it holds.

    Raises:
        VlmEditError: No processor, no sites, or a host in train mode.

    Example:
        >>> from vlm_edit import zoo
        >>> findings = examine(Host.of(*zoo.load_host()))
        >>> all(finding.holds is not False for finding in findings)
        True
        >>> findings[-1].told
        'bit for bit what it was'
    """
    host.expect_eval("each forward another")
    host.expect_processor("trying a host")
    image = _drawn() if image is None else image
    other = ImageOps.invert(image).point(lambda value: value // 2)  # of another mean as well
    inputs = [_inputs(host, one, text) for one in (image, other)]
    findings = [*_known(host)]
    with torch.no_grad():
        findings += _tokens(host, inputs)
        findings += _edits(host, inputs[0])
    return findings


def _drawn() -> Image.Image:
    gradient = Image.linear_gradient("L")
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def _inputs(host: Host, image: Image.Image, text: str) -> dict[str, Any]:
    return dict(host.inputs([image], [text]).values)


def _known(host: Host) -> Iterator[Finding]:
    weight = next(host.root.parameters())
    yield Finding("host", f"{host.kind.__name__}, {weight.dtype} on {weight.device}")
    yield Finding("versions", ", ".join(f"{name} {version(name)}" for name in _LIBRARIES))
    declared = registered_adapter(host.root) == host.adapter
    how = "declared by an adapter" if declared else "read by the conventions of transformers"
    yield Finding("sites", f"{len(host.sites)}, {how}")


def _tokens(host: Host, inputs: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Hold our image tokens against those that move with the image."""
    site = _shared(host)
    if site is None:
        yield Finding("image tokens", "images and text share no sequence")
        return
    try:
        with record(host, site.name) as recording:
            answers(host, inputs[0])
    except (RuntimeError, ValueError, VlmEditError) as error:
        yield Finding("image tokens", line(f"the forward fails: {error}"), False)
        return
    tokens = recording.captures[0].tokens
    mask, who = tokens.mask("visual"), _WITNESSES.get(tokens.witness or "")
    if mask is None or who is None:
        doubt = tokens.call.why_not() or "say which are with attach(..., image_mask=)"
        yield Finding("image tokens", f"nobody tells: {doubt}", False)
        return
    yield Finding("image tokens", f"{int(mask.sum())} of {mask.shape[1]}, told by {who}")
    module = site.taps[0].module
    states = [entering(module, partial(answers, host, one)) for one in inputs]
    yield _agreement(mask, states, tokens.witness == "position")


def _shared(host: Host) -> Site | None:
    """Return the first site that images and text share, if there is one not by position alone."""
    by_position = tuple(f"{path}." for path in layouts_in(host.root, host.adapter))
    mixed = [site for site in host.sites.values() if site.taps[0].stream == "mixed"]
    others = (site for site in mixed if not site.taps[0].path.startswith(by_position))
    return next(others, mixed[0] if mixed else None)


def _agreement(mask: Tensor, states: Sequence[Tensor], by_position: bool) -> Finding:
    what = "another image"
    if states[0].shape != states[1].shape:
        return Finding(what, "makes another number of tokens: not compared")
    moved = (states[0] != states[1]).any(-1)
    moved = moved.any(-1) if moved.ndim == 3 else moved
    wrong, still = int((moved & ~mask).sum()), int((mask & ~moved).sum())
    if wrong:
        return Finding(what, f"moves {wrong} tokens that are called text", False)
    if not moved.any() and by_position:
        return Finding(what, "moves no token before this layer, which reads the image itself")
    if not moved.any():
        return Finding(what, "moves no token at all", False)
    rest = f"; {still} more stand for it, as line breaks do" if still else ""
    return Finding(what, f"moves {int(moved.sum())} tokens, image tokens all{rest}", True)


def _edits(host: Host, inputs: Mapping[str, Any]) -> Iterator[Finding]:
    """Try an edit at every site, and whether the host is what it was after them."""
    before = answers(host, inputs)
    for site in (*host.sites.values(), *some_inside(host.sites)):
        if is_reached(site, inputs):
            yield Finding(site.name, *_edit(host, site, inputs, before))
        else:
            yield Finding(site.name, "only sounds pass it: not tried")
    same = same_answers(before, answers(host, inputs))
    told = "bit for bit what it was" if same else "not what it was: it says other things"
    yield Finding("the host after all edits", told, same)


def _edit(
    host: Host, site: Site, inputs: Mapping[str, Any], before: Sequence[Tensor]
) -> tuple[str, bool | None]:
    if site.dead:
        return f"never read: {site.dead}", True
    try:
        edited, acts = try_edit(host, site, inputs, before)
    except (RuntimeError, VlmEditError) as error:
        return line(f"the edit fails: {error}"), False
    if not edited:
        rests = None if may_rest(site) else False
        return "no token passed: this forward does not run it", rests
    if not acts:
        if layer_of(site.name) != site.name:  # whose weights may be zeros
            return "changes nothing that the host says", None
        return "changes nothing that the host says", False
    return "acts", True
