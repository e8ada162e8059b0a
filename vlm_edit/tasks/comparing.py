"""What a patch changes on one image, before and after, as a small table with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from markupsafe import Markup
from PIL import Image, ImageOps

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import card, one_line
from vlm_edit.host import Host, Model
from vlm_edit.measuring import as_seen, open_image
from vlm_edit.patches import Patch
from vlm_edit.report import address_of
from vlm_edit.tasks.adversarial import ZeroShot
from vlm_edit.tasks.answers import Decoding, answer, behind, speaks
from vlm_edit.tasks.generation import draw

_SIDE = 160
_IMAGE = Markup('<img src="{}" alt="{}" width="{}" height="{}" style="margin:0 8px 4px 0">')
T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Compared:
    """Hold what a host gave before and after an edit.

    Attributes:
        asked: What it was asked.
        rows: What is compared, before, and after: answers, or how likely labels are.
        report: What was really edited, site by site.
        pictures: The image that was asked about; or the drawings before and after.
        note: What a reader could overlook; empty where there is nothing.
    """

    asked: str
    rows: Sequence[tuple[str, str, str]]
    report: str
    pictures: Sequence[Image.Image]
    note: str = ""

    def __repr__(self) -> str:
        """Say on a line what was asked."""
        return one_line(f"Compared({self.asked!r}: {len(self.rows)} before and after)")

    def __str__(self) -> str:
        """Align it for a terminal."""
        rows = [("", "before", "after"), *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.asked, *lines, self.report, *filter(None, [self.note])])

    def _repr_html_(self) -> str:
        """Show it in a notebook, with its pictures."""
        small = [ImageOps.contain(one.convert("RGB"), (_SIDE, _SIDE)) for one in self.pictures]
        shown = [
            _IMAGE.format(address_of(one, is_photo=True), self.asked, *one.size) for one in small
        ]
        note = "\n".join(filter(None, [self.report, self.note]))
        table = card(self.asked, None, ("", "before", "after"), self.rows, note)
        return f"<div>{Markup('').join(shown)}</div>{table}"


def compare(
    host: Host | Model,
    patch: Patch,
    image: Image.Image | str | Path | None,
    question: str | Sequence[str],
    *,
    template: str = "a picture of {}",
    most: int = 64,
    steps: int | None = None,
    seed: int = 0,
) -> Compared:
    """Ask a host about an image without a patch and with it.

    Args:
        host: One that speaks, one that embeds images and texts in one space, or a pipeline that
            draws.
        patch: What is compared; it is on the host while this runs, and not afterwards.
        image: The image, or its file; None for a pipeline.
        question: Of a host that speaks a question; of one that embeds a list of labels; of a
            pipeline a prompt.
        template: What each label is put into, at ``{}``.
        most: New tokens of an answer at most; decoding is greedy.
        steps: Of a pipeline's scheduler; None for its own.
        seed: Of a drawing's noise.

    Raises:
        VlmEditError: A question that is none for this host, or the patch does not fit it.

    Example:
        >>> from vlm_edit import Ablate, Host, Patch, zoo
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> host = Host.of(*zoo.load_host())
        >>> compare(host, patch, zoo.load_pairs().open(0), ["tomato", "car"])
        Compared('tomato, car': 2 before and after)
    """
    host = Host.of(host)
    patch.check(host)
    if host.is_pipeline:
        return _drawings(host, patch, question, steps, seed)
    seen = _image(image)
    if speaks(host):
        return _answers(host, patch, seen, question, most)
    return _labels(host, patch, seen, question, template)


def _image(image: Image.Image | str | Path | None) -> Image.Image:
    if image is None:
        raise BadArgument("compare needs an image to ask about: give one, or its file")
    if isinstance(image, Image.Image):
        return as_seen(image)
    with open_image(image) as opened:
        return as_seen(opened)


def _both(host: Host, patch: Patch, call: Callable[[], T]) -> tuple[T, T, str, str]:
    before = call()
    after, report, acted = behind(host, patch, call)
    nothing = "" if acted else "Nothing was edited: no token was one of those meant."
    return before, after, report, nothing


def _text(question: str | Sequence[str], what: str) -> str:
    if not isinstance(question, str) or not question.strip():
        raise BadArgument(f"this host takes a {what}, a text, and got {question!r}")
    return question


def _answers(
    host: Host, patch: Patch, image: Image.Image, question: str | Sequence[str], most: int
) -> Compared:
    asked, how = _text(question, "question"), Decoding(most)
    before, after, report, note = _both(host, patch, lambda: answer(host, image, asked, how))
    if not note and before.text == after.text:
        note = "The answers are equal."
    return Compared(asked, [("answer", before.text, after.text)], report, [image], note)


def _labels(
    host: Host, patch: Patch, image: Image.Image, labels: str | Sequence[str], template: str
) -> Compared:
    if isinstance(labels, str) or len(labels) < 2:
        raise BadArgument(f"this host compares labels: give a list of two or more, not {labels!r}")
    if "{}" not in template:
        raise BadArgument(f"template {template!r} has no {{}} where the label goes")

    @torch.inference_mode()
    def choose() -> list[float]:
        chosen = ZeroShot.of(host, [template.replace("{}", label) for label in labels])
        pixels = chosen.host.pixels.read([image]).to(host.device)
        chances: list[float] = chosen(pixels)[0].softmax(0).tolist()
        return chances

    before, after, report, note = _both(host, patch, choose)
    if not note and before == after:
        note = "Nothing changed."
    rows = [(w, f"{a:.1%}", f"{b:.1%}") for w, a, b in zip(labels, before, after, strict=True)]
    return Compared(", ".join(labels), rows, report, [image], note)


def _drawings(
    host: Host, patch: Patch, prompt: str | Sequence[str], steps: int | None, seed: int
) -> Compared:
    asked, pipe = _text(prompt, "prompt"), cast("Any", host.model)
    before, after, report, note = _both(host, patch, lambda: draw(pipe, asked, steps, seed))
    if not note and before.tobytes() == after.tobytes():
        note = "Both drawings are equal."
    rows = [("drawing", "left", "right")]
    return Compared(asked, rows, report, [before, after], note)
