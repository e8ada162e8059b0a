"""Facts of single features that not every run has: names, neighbours, effects, heat maps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_edit.ground.errors import BadArgument
from vlm_edit.report.blocks import squeezed

Facts = Mapping[str, Any]
Details = Callable[[int], Facts] | Mapping[int, Facts]

KEYS = ("name", "effects", "near", "maps")
_SIDES = {"effects": ("up", "down"), "near": ("decoder", "examples"), "maps": ("image", "text")}
_BUNDLE = 64  # features


@dataclass
class Bundles:
    """Facts in bundles of features, the most active first, as far as a budget goes.

    Attributes:
        texts: Each gzip of a JSON object by feature, in base64.
        at: Feature to the number of its bundle.
        left_out: Features whose heat maps found no room; the rest is there.
        names: Feature, its name, and what its score is worth.
    """

    texts: list[str] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    names: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return the characters they take in a page."""
        return sum(map(len, self.texts))


def bundles(details: Details | None, order: Iterable[int], features: int, budget: int) -> Bundles:
    """Bundle what is known of features; heat maps are left out where they find no room.

    Args:
        details: By feature, or what returns them for one; features without may be missing, and
            ``{}`` says the same.
        order: All features, the most wanted first.
        features: Their number, which neighbours lie below.
        budget: Characters that heat maps may take.

    Raises:
        BadArgument: A fact that the page does not know, or that is not of its form.

    Example:
        >>> near = {"near": {"decoder": [[1, 0.5]]}}
        >>> bundles({0: near}, [1, 0], 2, 10_000).at
        {0: 0}
    """
    made = Bundles()
    if details is None:
        return made
    ask = asked(details)
    held: dict[int, dict[str, Any]] = {}
    for feature in order:
        facts = checked(ask(feature), feature, features)
        if facts:
            held[feature] = facts
            if name := facts.get("name"):
                made.names.append((feature, str(name["name"]), _worth(name)))
        if len(held) == _BUNDLE:
            budget = _add(made, held, budget)
            held = {}
    if held:
        _add(made, held, budget)
    return made


def asked(details: Details) -> Callable[[int], Facts]:
    """Return what gives the facts of a feature, ``{}`` where nothing is known of it."""
    if callable(details):
        return details
    return lambda feature: details.get(feature, {})


def _add(made: Bundles, held: dict[int, dict[str, Any]], budget: int) -> int:
    """Add a bundle; return what is left of the budget, nothing once heat maps found no room."""
    bare = {k: {n: v for n, v in facts.items() if n != "maps"} for k, facts in held.items()}
    text = least = _text(bare)
    mapped = [k for k, facts in held.items() if "maps" in facts]
    if mapped:
        text = _text(held)
        if len(text) - len(least) > budget:
            made.left_out += mapped
            text, budget = least, -1
    made.at |= dict.fromkeys(held, len(made.texts))
    made.texts.append(text)
    return budget - (len(text) - len(least))


def _text(held: Mapping[int, Facts]) -> str:
    document = {str(k): facts for k, facts in held.items()}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return squeezed(text.encode("utf-8", "replace"))


def checked(facts: Facts, feature: int, features: int) -> dict[str, Any]:
    """Return facts as plain values, figures in few digits, each of the form that is drawn.

    Raises:
        BadArgument: One that is not known, or of another form.
    """
    if unknown := sorted(set(facts) - set(KEYS)):
        raise BadArgument(
            f"details of feature {feature} have {unknown[0]!r}: the page draws {', '.join(KEYS)}"
        )
    try:
        plain = {key: _FORMS[key](facts[key], features) for key in KEYS if facts.get(key)}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise BadArgument(
            f"details of feature {feature} are not of the form that write_page documents: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {key: value for key, value in plain.items() if value}


def _name(name: Mapping[str, Any], _: int) -> dict[str, Any]:
    figures = {key: _figure(name[key]) for key in ("score", "low", "high") if key in name}
    held = {"held": int(name["held"])} if name.get("held") is not None else {}
    words = name.get("words") or []
    words = [words] if isinstance(words, str) else [str(word) for word in words]
    return {"name": str(name["name"]), **figures, **held, "words": words}


def _effects(effects: Mapping[str, Any], _: int) -> dict[str, Any]:
    return {
        way: [[str(word), _figure(value)] for word, value in effects[way]]
        for way in _ways(effects, "effects")
    }


def _near(near: Mapping[str, Any], features: int) -> dict[str, Any]:
    for k in (int(k) for way in _ways(near, "near") for k, _ in near[way]):
        if not 0 <= k < features:
            raise ValueError(f"neighbour {k} of {features} features")
    return {
        way: [[int(k), _figure(value)] for k, value in near[way]] for way in _ways(near, "near")
    }


def _maps(maps: Mapping[str, Any], _: int) -> dict[str, Any]:
    return {
        stream: [_map(one, "boxes" if stream == "image" else "words") for one in maps[stream]]
        for stream in _ways(maps, "maps")
    }


def _map(one: Mapping[str, Any], cells: str) -> dict[str, Any]:
    values = [_figure(value) or 0 for value in one["values"]]
    held = [_box(c) if cells == "boxes" else str(c) for c in one[cells]]
    if len(held) != len(values):
        raise ValueError(f"{len(held)} {cells} with {len(values)} values")
    return {"pair": int(one["pair"]), cells: held, "values": values}


def _box(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = (round(float(edge), 4) for edge in box)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise ValueError(f"box {box}: left, top, right, bottom are shares of the image, 0 to 1")
    return [left, top, right, bottom]


def _ways(facts: Mapping[str, Any], key: str) -> list[str]:
    if unknown := sorted(set(facts) - set(_SIDES[key])):
        raise ValueError(f"{key} have {unknown[0]!r}, and {' and '.join(_SIDES[key])} are drawn")
    return [way for way in _SIDES[key] if facts.get(way)]


def _figure(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _worth(name: Mapping[str, Any]) -> str:
    score = name.get("score")
    return "" if score is None else f"{score:.2f}"


_FORMS: dict[str, Callable[[Any, int], Any]] = {
    "name": _name,
    "effects": _effects,
    "near": _near,
    "maps": _maps,
}
