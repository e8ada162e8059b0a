"""What each emoji means: concept, gender, skin tone and names in three languages.

Everything is read from `emojibase-data`, which carries Unicode's names and keywords.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "de", "es")
TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark")

_TONE_POINTS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_WOMAN, _MAN, _PERSON = "1f469", "1f468", "1f9d1"
_SIGNS = {"2640": "woman", "2642": "man"}
# Single code points that say a gender, with the code point of the neutral form.
_SINGLES = {
    _WOMAN: ("woman", _PERSON),
    _MAN: ("man", _PERSON),
    "1f467": ("woman", "1f9d2"),  # girl, child
    "1f466": ("man", "1f9d2"),  # boy
    "1f475": ("woman", "1f9d3"),  # old woman, older person
    "1f474": ("man", "1f9d3"),  # old man
    "1f478": ("woman", "1fac5"),  # princess, person with crown
    "1f934": ("man", "1fac5"),  # prince
    "1f930": ("woman", "1fac4"),  # pregnant woman, pregnant person
    "1fac3": ("man", "1fac4"),  # pregnant man
    "1f936": ("woman", "1f9d1-200d-1f384"),  # Mrs. Claus, Mx Claus
    "1f385": ("man", "1f9d1-200d-1f384"),  # Santa Claus
}
_GENDER_WORDS = re.compile(r"^(man|woman|person|men|women|people)[: ]+|: (man|woman)$")


@dataclass(frozen=True)
class Variant:
    """One emoji: a concept with a gender and a skin tone.

    Attributes:
        code: Code points in hexadecimal, joined by `-`, without the variation selector.
        label: English name without skin tone: the class in zero-shot classification.
        concept: English name without skin tone and gender.
        group: Unicode's group, such as `food-drink`.
        gender: `woman`, `man`, `person` (neutral where gendered forms exist) or `none`.
        tone: One of `TONES`.
    """

    code: str
    label: str
    concept: str
    group: str
    gender: str
    tone: str


@dataclass(frozen=True)
class Names:
    """The words for one label in one language."""

    name: str
    keywords: tuple[str, ...]


def plain_code(code: str) -> str:
    """Lower-case a code point sequence and drop the variation selector.

    Example:
        >>> plain_code("2764-FE0F")
        '2764'
    """
    return "-".join(p.lstrip("0") for p in code.lower().split("-") if p != "fe0f")


def neutral_code(code: str) -> tuple[str, str | None]:
    """Take gender out of a code point sequence without skin tone.

    Args:
        code: A sequence as `plain_code` returns it.

    Returns:
        The sequence of the neutral form, and the gender it said, `None` if it said none.

    Example:
        >>> neutral_code("1f6b4-200d-2640")
        ('1f6b4', 'woman')
        >>> neutral_code("1f468-200d-1f373")
        ('1f9d1-200d-1f373', 'man')
    """
    if code in _SINGLES:
        gender, neutral = _SINGLES[code]
        return neutral, gender
    points = [p for p in code.split("-") if p != "200d"]
    people = [p for p in points if p in (_WOMAN, _MAN, _PERSON)]
    if len(people) > 1:
        return code, None
    for sign, gender in _SIGNS.items():
        if sign in points and len(points) > 1:
            return "-200d-".join(p for p in points if p != sign), gender
    if len(points) > 1 and points[0] in (_WOMAN, _MAN):
        gender = "woman" if points[0] == _WOMAN else "man"
        return "-200d-".join([_PERSON, *points[1:]]), gender
    return code, None


def read_names(data: Path, codes: dict[str, str]) -> dict[str, dict[str, Names]]:
    """Read names and keywords of every label.

    Args:
        data: The unpacked `emojibase-data` package.
        codes: Label by plain code point sequence.

    Returns:
        By label, then by language.
    """
    names: dict[str, dict[str, Names]] = {}
    for language in LANGUAGES:
        for entry in _entries(data, language):
            label = codes.get(plain_code(entry["hexcode"]))
            if label is not None:
                keywords = tuple(str(t) for t in entry.get("tags", ()))
                names.setdefault(label, {})[language] = Names(entry["label"], keywords)
    return names


def read_variants(data: Path) -> list[Variant]:
    """Read every emoji with its concept, gender and skin tone.

    Emoji of two skin tones and Unicode's `component` group are left out.

    Args:
        data: The unpacked `emojibase-data` package.

    Returns:
        The variants in Unicode's order.
    """
    groups = {
        int(g["order"]): str(g["key"])
        for g in json.loads((data / "en" / "messages.json").read_text("utf-8"))["groups"]
    }
    entries = [e for e in _entries(data, "en") if groups.get(e.get("group", -1)) != "component"]
    labels = {plain_code(e["hexcode"]): str(e["label"]) for e in entries if "group" in e}
    gendered = {n for n, g in map(neutral_code, labels) if g is not None}
    variants = []
    for entry in entries:
        if "group" not in entry:
            continue
        base = plain_code(entry["hexcode"])
        neutral, gender = neutral_code(base)
        said = gender or ("person" if base in gendered else "none")
        concept = labels.get(neutral) or _GENDER_WORDS.sub("", labels[base])
        for code, tone in _tones(entry):
            variants.append(
                Variant(code, labels[base], concept, groups[entry["group"]], said, tone)
            )
    return variants


def _tones(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield plain_code(entry["hexcode"]), "none"
    for skin in entry.get("skins", ()):
        if isinstance(skin["tone"], int):
            yield plain_code(skin["hexcode"]), TONES[skin["tone"]]


def _entries(data: Path, language: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((data / language / "data.json").read_text("utf-8"))
    return entries
