"""Captions of an emoji: six phrasings in three languages."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from recipes.concepts import Names

PHRASINGS = ("plain", "picture", "emoji", "hashtags", "shout", "keywords")

_TEMPLATES = {
    "picture": {"en": "a picture of {}", "de": "ein Bild von {}", "es": "una imagen de {}"},
    "emoji": {
        "en": "an emoji showing {}",
        "de": "ein Emoji zeigt {}",
        "es": "un emoji que muestra {}",
    },
}
_KEYWORDS = 3


def caption(names: Mapping[str, Names], language: str, phrasing: str, rng: random.Random) -> str:
    """Write one caption.

    Args:
        names: The label's words by language.
        language: A key of `names`.
        phrasing: One of `PHRASINGS`.
        rng: Draws and orders the keywords; the other phrasings do not use it.

    Returns:
        The caption.

    Example:
        >>> dog = {"en": Names("dog face", ("pet", "puppy"))}
        >>> caption(dog, "en", "picture", random.Random(0))
        'a picture of dog face'
        >>> caption(dog, "en", "hashtags", random.Random(0))
        '#dog #face'
    """
    words = names[language]
    if phrasing == "plain":
        return words.name
    if phrasing == "hashtags":
        return " ".join("#" + w for w in re.findall(r"[^\W_]+", words.name))
    if phrasing == "shout":
        return words.name.upper() + "!!!"
    if phrasing == "keywords":
        others = [k for k in words.keywords if k.lower() != words.name.lower()]
        chosen = [words.name, *rng.sample(others, min(_KEYWORDS, len(others)))]
        rng.shuffle(chosen)
        return ", ".join(chosen)
    return _TEMPLATES[phrasing][language].format(words.name)
