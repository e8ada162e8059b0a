"""The words that features may be called by: of captions, of a list, or of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument

OR = " / "  # between words of which one is enough
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_CLAUSE = re.compile(r"[^\w\s'’-]+")
_AT_ONCE = 3  # words of the longest phrase
_TWICE = 2  # captions that must hold a phrase


@dataclass(frozen=True)
class Vocabulary:
    """Hold texts with their weights: what a feature may be called.

    Attributes:
        texts: Words and short phrases, each once.
        weights: How often captions hold each; 1 for texts of a list.
        source: Where they come from.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...]
    source: str

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    @classmethod
    def of_captions(cls, captions: Sequence[str], most: int = 1000) -> Vocabulary:
        """Take words and phrases of up to three words that at least two captions hold.

        Phrases do not go over a comma or a stop; case makes no difference. The commonest come
        first.

        Args:
            captions: The texts of pairs.
            most: How many at most.

        Raises:
            BadArgument: Captions that share no two words.

        Example:
            >>> captions = ["A red apple", "a red car!", "the car, red"]
            >>> Vocabulary.of_captions(captions).texts
            ('red', 'a', 'a red', 'car')
        """
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(set(_phrases(caption)))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        chosen = [(text, float(count)) for text, count in ranked if count >= _TWICE][:most]
        return cls._checked([t for t, _ in chosen], [w for _, w in chosen], "captions")

    @classmethod
    def of(cls, words: Sequence[str] | Path | str) -> Vocabulary:
        """Take a list of texts, or the lines of a file.

        Args:
            words: Texts, or a UTF-8 file with one on each line; empty lines are left out.

        Raises:
            BadArgument: The file cannot be read, something is no text, or fewer than two texts.

        Example:
            >>> Vocabulary.of(["dog", "cat", "dog "]).texts
            ('dog', 'cat')
        """
        source = str(words) if isinstance(words, Path | str) else "a list"
        lines = _lines(Path(words)) if isinstance(words, Path | str) else list(words)
        wrong = next((word for word in lines if not isinstance(word, str)), None)
        if wrong is not None:
            raise BadArgument(f"the vocabulary holds {wrong!r}, which is no text")
        texts = list(dict.fromkeys(word.strip() for word in lines if word.strip()))
        return cls._checked(texts, [1.0] * len(texts), source)

    @classmethod
    def _checked(cls, texts: list[str], weights: list[float], source: str) -> Vocabulary:
        if len(texts) < 2:
            raise BadArgument(
                f"a vocabulary needs at least 2 texts, {source} gave {len(texts)}: their mean is "
                "taken out, so one alone says nothing; pass vocabulary= a list of words"
            )
        return cls(tuple(texts), tuple(weights), source)


def any_of(words: Sequence[str]) -> str:
    """Return one name of several words, each once whatever its case, or "" of fewer than two.

    Example:
        >>> any_of(["heart", "Herz", "HEART"]), any_of(["heart", "Heart"])
        ('heart / Herz', '')
    """
    own: dict[str, str] = {}
    for word in words:
        own.setdefault(word.casefold(), word)
    return OR.join(own.values()) if len(own) > 1 else ""


def caption_holds(captions: Sequence[str], names: Sequence[str]) -> Tensor:
    """Tell which captions hold which names, whole words in their order, whatever their case.

    Args:
        captions: To be looked through, n of them.
        names: Words or phrases, w of them; of several with ``OR`` between, one is enough. One
            without any word is held by none.

    Returns:
        [n, w] bool.

    Example:
        >>> caption_holds(["Red apples", "a red, round apple"], ["Apple", "red"])
        tensor([[False,  True],
                [ True,  True]])
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, name in enumerate(names):
        for part in name.split(OR):
            places.setdefault(_words(part), []).append(place)
    lengths = sorted({len(words) for words in places} - {0})
    held = torch.zeros(len(captions), len(names), dtype=torch.bool)
    for row, caption in enumerate(captions):
        words = _words(caption)
        runs = {words[i : i + n] for n in lengths for i in range(len(words) - n + 1)}
        held[row, [place for run in runs for place in places.get(run, ())]] = True
    return held


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _phrases(caption: str) -> Iterator[str]:
    for clause in _CLAUSE.split(caption.casefold()):
        words = _WORD.findall(clause)
        for length in range(1, _AT_ONCE + 1):
            for start in range(len(words) - length + 1):
                yield " ".join(words[start : start + length])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArgument(f"the vocabulary {path} cannot be read as text: {error}") from error
