"""Where a feature fires, on its examples: in a notebook, and as a page without scripts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.notebook import one_line, several
from vlm_edit.measuring import Firing, Maps, Measurement, Pairs
from vlm_edit.report.picture import address_of
from vlm_edit.report.templates import template, write_plain

SIDE = 160
_MOST_SHARE = 0.85  # what is below still shows through


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSheet:
    """Hold a feature's examples, each with where it fires.

    Attributes:
        title: Which feature it is.
        facts: What was measured of it, by name.
        examples: As they are drawn, the strongest first.
        note: What a reader must know.
        side: Of a picture, in pixels.
    """

    title: str
    facts: Mapping[str, str]
    examples: Sequence[Mapping[str, Any]]
    note: str = ""
    side: int = field(default=SIDE)

    @classmethod
    def of(
        cls,
        feature: int,
        pairs: Pairs,
        firings: Sequence[Firing],
        facts: Mapping[str, str] | None = None,
        *,
        note: str = "",
        side: int = SIDE,
    ) -> FeatureSheet:
        """Draw where a feature fires.

        Args:
            feature: Its number.
            pairs: Whose images and texts are shown, by the firings' numbers.
            firings: Of the feature.
            facts: What else is said of it.
            note: What a reader must know.
            side: Of a picture, in pixels.
        """
        most = max((_most(one) for one in firings), default=0.0)
        order = sorted(firings, key=_most, reverse=True)
        examples = [_example(one, pairs, most, side) for one in order]
        return cls(f"feature {feature}", dict(facts or {}), examples, note, side)

    def __repr__(self) -> str:
        """Say on a line which it is."""
        return one_line(f"FeatureSheet({self.title}: {several(len(self.examples), 'example')})")

    def _repr_html_(self) -> str:
        """Show it in a notebook; it loads nothing, and what comes from data is escaped."""
        macros: Any = template("firing.html.jinja").module
        text: str = macros.sheet(self)
        return text.encode("utf-8", "replace").decode("utf-8")


def feature_sheet(
    measurement: Measurement, feature: int, pairs: Pairs, maps: Maps | None = None, side: int = SIDE
) -> FeatureSheet:
    """Return a feature of a measurement with its examples, and where it fires if maps are given.

    Args:
        measurement: What was measured.
        feature: Its number.
        pairs: The pairs that were measured.
        maps: Of the measurement, by ``map_examples``.
        side: Of a picture, in pixels.
    """
    dominance = measurement.dominance
    low, high = (float(end[feature]) for end in dominance.intervals())
    score = float(dominance.scores[feature])
    labels = {k: name for name, members in dominance.classes().items() for k in members}
    facts = {
        "class": labels[feature],
        "MDS": f"{score:.3f} [{low:.3f}, {high:.3f}]",
        "active": several(int(dominance.active[feature]), "pair"),
    }
    firings = [] if maps is None else maps.of(feature)
    note = "" if maps is None else maps.why and f"No heat maps: {maps.why}."
    if not firings:
        firings = _bare(measurement, feature)
        note = "No maps of this feature: map_examples makes them." if maps is None else note
    return FeatureSheet.of(feature, pairs, firings, facts, note=note, side=side)


def write_maps(
    path: str | os.PathLike[str],
    maps: Maps,
    pairs: Pairs,
    title: str,
    features: Sequence[int] | None = None,
    *,
    notes: Sequence[str] = (),
    side: int = SIDE,
) -> None:
    """Write a page of where features fire, without scripts, that needs no other file.

    Args:
        path: The file.
        maps: Of the features.
        pairs: The pairs, whose images are shown.
        title: Of the page.
        features: Which are shown, in this order; by default all that have maps.
        notes: Sentences at the top.
        side: Of a picture, in pixels.
    """
    numbers = maps.features.unique().tolist() if features is None else list(features)
    sheets = [FeatureSheet.of(k, pairs, maps.of(k), side=side) for k in numbers]
    where = [f"Nobody can tell where tokens lie in the picture: {maps.why}."] if maps.why else []
    write_plain(
        path, "maps.html.jinja", "vlm_edit.report", title=title, sheets=sheets,
        notes=[*notes, *where],
    )  # fmt: skip


def _bare(measurement: Measurement, feature: int) -> list[Firing]:
    """Return the top examples of a feature, without saying where it fires."""
    numbers = {n for top in measurement.examples.values() for n, _ in top.of(feature)[:3]}
    return [Firing(number, {}, None, ()) for number in sorted(numbers)]


def _most(firing: Firing) -> float:
    return max((float(v.abs().max()) for v in firing.values.values() if len(v)), default=0.0)


def _example(firing: Firing, pairs: Pairs, most: float, side: int) -> dict[str, Any]:
    caption = pairs.texts[firing.number]
    picture = _picture(pairs, firing.number, side)
    told = ", ".join(f"{s} {float(v.abs().max()):.3g}" for s, v in firing.values.items() if len(v))
    words = [
        {"text": text, "share": _share(value, most), "told": f"{float(value):.3g}"}
        for text, value in zip(firing.words, firing.values.get("text", ()), strict=False)
    ]
    return {
        "caption": caption,
        "told": f"most {told}" if told else "",
        "words": words,
        "boxes": _boxes(firing, most),
        **picture,
    }


def _picture(pairs: Pairs, number: int, side: int) -> dict[str, Any]:
    try:
        image = pairs.open(number)
    except VlmEditError:
        return {"address": "", "width": 0, "height": 0}
    small = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    address = address_of(small, is_photo=True)
    return {"address": address, "width": small.width, "height": small.height}


def _boxes(firing: Firing, most: float) -> list[dict[str, str]]:
    """Return the boxes of the tokens that fire, as fractions of the picture."""
    values = firing.values.get("image")
    if firing.boxes is None or values is None:
        return []
    boxes = []
    for i in values.nonzero().flatten().tolist():
        left, top, right, bottom = firing.boxes[i].tolist()
        if left == left:  # NaN stands for no place
            box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            box |= {"share": _share(values[i], most)}
            boxes.append({k: f"{v:.4g}" for k, v in box.items()} | {"told": f"{values[i]:.3g}"})
    return boxes


def _share(value: Tensor, most: float) -> float:
    return round(_MOST_SHARE * float(value.abs()) / most, 3) if most else 0.0
