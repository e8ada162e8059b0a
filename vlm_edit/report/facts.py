"""Names, effects, neighbours and maps of a run's features, as the page takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlm_edit.measuring import Firing, Maps

_FIGURES = ("score", "low", "high")


def facts_of(
    maps: Maps | None = None, names: Mapping[int, Mapping[str, Any]] | None = None
) -> Callable[[int], dict[str, Any]]:
    """Return what tells the facts of a feature, as ``write_page`` takes ``details``.

    Args:
        maps: Where features fire.
        names: By feature, what ``Name.as_json`` says, with ``promotes`` and ``neighbours``.
    """

    def facts(feature: int) -> dict[str, Any]:
        told = {} if names is None else _named(names.get(feature, {}))
        return told if maps is None else told | _mapped(maps, feature)

    return facts


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if entry:
        figures = {key: entry[key] for key in _FIGURES if entry.get(key) is not None}
        words = [str(word) for word, *_ in entry.get("words", [])]
        name = {"name": entry["name"], "words": words, **figures}
        facts["name"] = name
    if entry.get("promotes"):
        facts["effects"] = entry["promotes"]
    if entry.get("neighbours"):
        facts["near"] = entry["neighbours"]
    return facts


def _mapped(maps: Maps, feature: int) -> dict[str, Any]:
    firings = maps.of(feature)
    images = [_boxed(one) for one in firings if one.boxes is not None and "image" in one.values]
    texts = [
        {"pair": one.number, "words": list(one.words), "values": one.values["text"].tolist()}
        for one in firings
        if one.words and "text" in one.values
    ]
    facts = {"image": images, "text": texts}
    return {"maps": facts} if images or texts else {}


def _boxed(firing: Firing) -> dict[str, Any]:
    """Return the boxes of the tokens that fire and stand for a part of the picture."""
    assert firing.boxes is not None
    values = firing.values["image"]
    shown = (values != 0) & ~firing.boxes.isnan().any(1)
    return {
        "pair": firing.number,
        "boxes": firing.boxes[shown].clamp(0, 1).tolist(),
        "values": values[shown].tolist(),
    }
