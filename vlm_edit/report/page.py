"""One HTML page with pictures, self-contained: it opens from disk, without a network."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vlm_edit.dominance import CLASSES
from vlm_edit.measurement import Measurement
from vlm_edit.pairs import Pairs
from vlm_edit.report.table import Table
from vlm_edit.report.tables import CLASS_NAMES, strongest

_BINS = 40
_THUMBNAIL = 96


@dataclass(frozen=True)
class Examples:
    """Pairs shown with a line each, such as what a model says of them before and after an edit.

    Attributes:
        title: What they show.
        items: Number of the pair, and what to say of it, line by line.
        note: How they were chosen.
    """

    title: str
    items: Sequence[tuple[int, Sequence[str]]]
    note: str = ""


@dataclass(eq=False)
class _Page:
    """Turns a measurement into what the template shows."""

    found: Measurement
    pairs: Pairs
    shown: int
    members: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.members = self.found.dominance.classes("sd")
        self.matched, self.shuffled = self.found.dominance.cofiring()

    def classes(self) -> list[dict[str, Any]]:
        """The strongest features of each class."""
        strength = strongest(self.found)
        shown = []
        for name in CLASSES[:3]:
            ranked = sorted(self.members[name], key=lambda k: -strength[k])
            cards = [self.card(k) for k in ranked[: self.shown]]
            shown.append({"name": CLASS_NAMES[name], "count": len(ranked), "cards": cards})
        return shown

    def random(self, seed: int) -> list[dict[str, Any]]:
        """Features drawn at random among the live ones."""
        live = (~self.found.dominance.dead).nonzero().flatten()
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))
        return [self.card(k) for k in live[order[: self.shown]].tolist()]

    def card(self, feature: int) -> dict[str, Any]:
        """One feature with its examples."""
        found = self.found.dominance
        name = next(n for n in CLASSES if feature in self.members[n])
        images = self.found.examples["image"].of(feature)[:6]
        texts = self.found.examples["text"].of(feature)[:4]
        return {
            "number": feature,
            "class": CLASS_NAMES[name],
            "mds": f"{float(found.scores[feature]):.2f}",
            "active": int(found.active[feature]),
            "pairs": found.n_pairs,
            "cofiring": f"{float(self.matched[feature]):.2f}",
            "chance": f"{float(self.shuffled[feature]):.2f}",
            "images": [self.picture(number) for number, _ in images],
            "texts": [self.pairs.texts[number] for number, _ in texts],
        }

    def picture(self, number: int) -> dict[str, str]:
        """A pair's image as a data address, with its text for those who cannot see it."""
        return {"source": _encode(self.pairs.open(number)), "text": self.pairs.texts[number]}

    def histogram(self) -> dict[str, Any]:
        """Bars of the scores of live features, and where the classes are cut."""
        found = self.found.dominance
        scores = found.scores[~found.dead]
        counts = torch.histc(scores.float(), _BINS, 0.0, 1.0).int().tolist()
        low, high = found.cuts("sd")
        most = max(1, *counts)
        return {
            "bars": [
                {
                    "x": i / _BINS,
                    "count": count,
                    "height": count / most,
                    "class": _class_at((i + 0.5) / _BINS, low, high),
                    "range": f"{i / _BINS:.3f} to {(i + 1) / _BINS:.3f}",
                }
                for i, count in enumerate(counts)
            ],
            "width": 1 / _BINS,
            "low": low,
            "high": high,
            "most": most,
        }


def write_page(
    path: str | os.PathLike[str],
    found: Measurement,
    pairs: Pairs,
    title: str,
    tables: Sequence[Table] = (),
    examples: Sequence[Examples] = (),
    shown: int = 6,
    seed: int = 0,
) -> None:
    """Write a page that shows a measurement.

    It has the histogram of scores with the cuts of the classes, the given tables, the strongest
    features of each class and as many drawn at random, each with its top images and texts.

    Args:
        path: The file.
        found: What was measured.
        pairs: The pairs it was measured on.
        title: Of the page.
        tables: Shown after the histogram.
        examples: Shown after the tables.
        shown: Features per class.
        seed: Of the random features.
    """
    environment = Environment(
        loader=PackageLoader("vlm_edit.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = _Page(found, pairs, shown)
    text = environment.get_template("page.html.jinja").render(
        title=title,
        found=found,
        source=pairs.name,
        histogram=page.histogram(),
        classes=page.classes(),
        random=page.random(seed),
        seed=seed,
        tables=tables,
        examples=[
            {
                "title": e.title,
                "note": e.note,
                "items": [(page.picture(number), lines) for number, lines in e.items],
            }
            for e in examples
        ],
    )
    Path(path).write_text(text, encoding="utf-8")


def _encode(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _class_at(score: float, low: float, high: float) -> str:
    if score > high:
        return "vision"
    return "language" if score < low else "cross"
