"""What features promote: tokens of a host that speaks, labels of a joint embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary, PairedDictionary, expect_features
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks import expect_one
from vlm_edit.host import Host, Model
from vlm_edit.measuring.naming.head import OutputHead
from vlm_edit.measuring.naming.vocabulary import Vocabulary
from vlm_edit.measuring.naming.words import EmbeddedWords, Words, decoder_rows, strongest

_BLOCK = 256


@dataclass(frozen=True)
class Promoted:
    """Hold what a feature's direction moves most.

    Attributes:
        up: Words that more of the feature makes likelier, or labels nearer, strongest first.
        down: Those it makes less likely, or farther, strongest first.
    """

    up: Words
    down: Words

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "up": [list(pair) for pair in self.up],
            "down": [list(pair) for pair in self.down],
        }


def promotes(
    host: Host | Model,
    dictionary: AnyDictionary,
    site: str,
    features: int | Sequence[int],
    labels: Sequence[str] | Path | None = None,
    *,
    most: int = 10,
    template: str = "{}",
    batch_size: int = 64,
) -> dict[int, Promoted]:
    """Say which words features promote and suppress, by where their decoder rows point.

    At a language layer, the tokens that the last norm and the output head read off the row; what
    layers in between make of it is not looked at. At a joint embedding, the labels by cosine of
    the row with their texts, less the texts' mean.

    Args:
        host: With its processor.
        dictionary: Of the site.
        site: ``joint``, or a layer of the language model.
        features: One, or several.
        labels: At a joint embedding, what may be moved: texts, or a file with one on each line.
        most: Words of each side.
        template: What a label is put into, such as "a picture of {}".
        batch_size: Labels per forward.

    Returns:
        By feature. Values are standard deviations over all tokens, or cosines.

    Raises:
        CannotKnow: A site that no words are read at, or a joint embedding without labels.
        VlmEditError: A feature that is not there, or labels at a language layer.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> host = Host.load("zoo:emoji-llava", device="cpu")
        >>> moved = promotes(host, zoo.load_dictionary("language.3"), "language.3", 7, most=3)
        >>> len(moved[7].up), len(moved[7].down)
        (3, 3)
    """
    host = Host.of(host)
    numbers = [features] if isinstance(features, int) else list(features)
    expect_features(numbers, dictionary.n_features)
    place = host.site(site)
    expect_one(place)
    host.expect_width(place, dictionary.width)
    if most < 1:
        raise BadArgument(f"most is {most}: ask for at least 1 word of each side")
    reading: EmbeddedWords | OutputHead
    if site == "joint":
        if labels is None:
            raise CannotKnow("a joint embedding has no words of its own: pass labels=, a list")
        vocabulary = Vocabulary.of(labels)
        reading = EmbeddedWords.of(host, dictionary, vocabulary, site, template, batch_size)
    elif labels is not None:
        raise BadArgument(f"labels are moved in a joint embedding, and {site!r} moves tokens")
    else:
        reading = OutputHead.of(host, site)
    moved: dict[int, Promoted] = {}
    for start in range(0, len(numbers), _BLOCK):
        some = numbers[start : start + _BLOCK]
        moved |= _moved(some, _rows(dictionary, some), reading, most)
    return moved


def _moved(
    numbers: list[int], rows: Tensor, reading: EmbeddedWords | OutputHead, most: int
) -> dict[int, Promoted]:
    values, texts = read_directions(reading, rows)
    up, down = strongest(values, texts, most), strongest(-values, texts, most)
    return {
        number: Promoted(more, tuple((text, -value) for text, value in less))
        for number, more, less in zip(numbers, up, down, strict=True)
    }


def read_directions(
    reading: EmbeddedWords | OutputHead, rows: Tensor
) -> tuple[Tensor, Sequence[str]]:
    """Return how much directions [t, d] point to each text, [t, w], and the texts."""
    if isinstance(reading, OutputHead):
        return reading.values(rows), reading.texts
    return reading.cosines(rows), reading.vocabulary.texts


def _rows(dictionary: AnyDictionary, features: Sequence[int]) -> Tensor:
    """Return decoder rows; of a paired dictionary the mean of both streams' rows."""
    image = decoder_rows(dictionary, features, "image")
    if not isinstance(dictionary, PairedDictionary):
        return image
    return (image + decoder_rows(dictionary, features, "text")) / 2
