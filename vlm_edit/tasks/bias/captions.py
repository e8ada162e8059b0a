"""Words of a group in what a host says of images, and whether the rest of it stays as good."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate, mean_estimate, proportion, share_difference
from vlm_edit.host import Host, Model
from vlm_edit.report import Table

GENDER_WORDS = {
    "man": (
        *("man", "men", "male", "boy", "he", "his", "him", "gentleman", "father", "king", "prince"),
        *("hombre", "hombres", "niño", "chico", "señor", "mann", "männer", "junge", "herr"),
    ),
    "woman": (
        *("woman", "women", "female", "girl", "she", "her", "hers", "lady", "mother", "queen"),
        *("princess", "mujer", "mujeres", "niña", "chica", "señora", "frau", "frauen", "mädchen"),
    ),
}
NEITHER, BOTH = "neither", "both"


def named_group(text: str, words: Mapping[str, Sequence[str]] = GENDER_WORDS) -> str:
    """Return the group that a text names: one of the words' keys, ``neither`` or ``both``.

    Args:
        text: What is said. Only whole words count, whatever their case.
        words: By group.

    Example:
        >>> [named_group(text) for text in ("A man biking", "woman and man", "emanate")]
        ['man', 'both', 'neither']
    """
    tokens = set(_tokens(text))
    groups = [group for group, own in words.items() if tokens & {word.lower() for word in own}]
    return groups[0] if len(groups) == 1 else (BOTH if groups else NEITHER)


def without_words(text: str, words: Mapping[str, Sequence[str]] = GENDER_WORDS) -> list[str]:
    """Return a text's words without those of any group, in lower case.

    Example:
        >>> without_words("A man biking")
        ['a', 'biking']
    """
    names = {word.lower() for own in words.values() for word in own}
    return [word for word in _tokens(text) if word not in names]


def word_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Return F1 of the words of two texts, each word as often as it is in both.

    Args:
        said: Words of the one.
        wanted: Words of the other.

    Returns:
        Between 0 and 1; 1 where both are empty.

    Example:
        >>> round(word_f1(["a", "bike"], ["a", "red", "bike"]), 3)
        0.8
    """
    shared = sum(min(said.count(word), wanted.count(word)) for word in set(said))
    if not said and not wanted:
        return 1.0
    return 2 * shared / (len(said) + len(wanted))


@torch.no_grad()
def describe(
    host: Host | Model,
    images: Sequence[Image.Image],
    prompt: str,
    *,
    batch_size: int = 64,
    longest: int = 24,
) -> list[str]:
    """Describe images by a host that generates, greedily, under whatever patch is attached.

    Args:
        host: With its processor, which has an ``image_token``.
        images: What to describe.
        prompt: The text behind the image's place, such as ``what is it?``.
        batch_size: Images at once.
        longest: New tokens at most.

    Raises:
        VlmEditError: A host that does not generate, or a processor without an image token.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> images = zoo.load_pairs().images[:1]
        >>> describe(Host.of(*zoo.load_llava()), images, "what colour is the background?")
        ['white']
    """
    host = Host.of(host)
    model: Any = host.root
    processor = host.expect_processor("describing images")
    token = getattr(processor, "image_token", None)
    if not hasattr(model, "generate") or token is None:
        raise BadArgument(
            f"captions need a host that generates and a processor with an image token, got "
            f"{host.kind.__name__} and {type(processor).__name__}"
        )
    texts = []
    for start in range(0, len(images), batch_size):
        some = list(images[start : start + batch_size])
        text = [f"{token}\n{prompt}"] * len(some)
        inputs = processor(images=some, text=text, return_tensors="pt", padding=True)
        inputs = host.place(inputs)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=longest)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts += [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]
    return texts


@dataclass(frozen=True, eq=False)
class Captions:
    """What was said of images whose group is known.

    Attributes:
        said: The captions.
        groups: Of the images.
        wanted: What would have been right.
        words: Of each group.

    Example:
        >>> one = Captions(("man biking",), ("woman",), ("woman biking",))
        >>> one.shares("woman")["man"].value, one.quality().value
        (1.0, 1.0)
    """

    said: Sequence[str]
    groups: Sequence[str]
    wanted: Sequence[str]
    words: Mapping[str, Sequence[str]] = field(default_factory=lambda: GENDER_WORDS)

    def __post_init__(self) -> None:
        """Check that all are of the same images."""
        if not len(self.said) == len(self.groups) == len(self.wanted):
            raise BadArgument(
                f"{len(self.said)} captions, {len(self.groups)} groups and {len(self.wanted)} "
                "right captions are not of the same images"
            )

    def named(self) -> list[str]:
        """Return the group that each caption names."""
        return [named_group(text, self.words) for text in self.said]

    def shares(self, group: str) -> dict[str, Estimate]:
        """Return the shares of one group's captions that name each group, neither, or both.

        Args:
            group: Of the images.

        Raises:
            VlmEditError: No image is of it.
        """
        names = [name for name, own in zip(self.named(), self.groups, strict=True) if own == group]
        if not names:
            raise UnknownName(f"no image is of group {group!r}: there is {set(self.groups)}")
        kinds = (*self.words, NEITHER, BOTH)
        return {kind: proportion(names.count(kind), len(names)) for kind in kinds}

    def overlap(self) -> Tensor:
        """Return ``word_f1`` of each caption with the right one, words of groups left out, [n]."""
        pairs = zip(self.said, self.wanted, strict=True)
        return torch.tensor(
            [
                word_f1(without_words(caption, self.words), without_words(truth, self.words))
                for caption, truth in pairs
            ],
            dtype=torch.float64,
        )

    def quality(self) -> Estimate:
        """Return its mean."""
        return mean_estimate(self.overlap(), bounds=(0.0, 1.0))

    def more_often(self, other: Captions, group: str, kind: str) -> Estimate:
        """Estimate how much more often these name a group than others of the same images.

        Args:
            other: What was said of them otherwise, such as without an edit.
            group: Of the images.
            kind: A group of words, ``neither`` or ``both``.

        Raises:
            VlmEditError: Captions of other images, or no image of the group.

        Example:
            >>> groups, wanted = ("woman",) * 4, ("woman biking",) * 4
            >>> before = Captions(("woman biking",) * 4, groups, wanted)
            >>> after = Captions(("person biking",) * 4, groups, wanted)
            >>> after.more_often(before, "woman", "woman").value
            -1.0
        """
        self._expect_same(other)
        own = torch.tensor([g == group for g in self.groups])
        if not own.any():
            raise UnknownName(f"no image is of group {group!r}: there is {set(self.groups)}")
        sides = (torch.tensor([n == kind for n in one.named()])[own] for one in (self, other))
        return share_difference(*sides)

    def better(self, other: Captions) -> Estimate:
        """Estimate how much better the other words are than others' of the same images.

        Raises:
            VlmEditError: Captions of other images.
        """
        self._expect_same(other)
        return mean_estimate(self.overlap() - other.overlap(), bounds=(-1.0, 1.0))

    def _expect_same(self, other: Captions) -> None:
        if list(self.groups) != list(other.groups) or list(self.wanted) != list(other.wanted):
            raise BadArgument("captions are compared image by image: these are of other images")


def caption_table(found: Mapping[str, Captions], title: str, note: str = "") -> Table:
    """Make a table with a row for each edit and group of images.

    The last two columns compare an edit with the first, image by image.
    """
    base, first = next(iter(found.items()))
    kinds = (*first.words, NEITHER)
    rows = []
    for name, captions in found.items():
        for group in dict.fromkeys(captions.groups):
            shares = captions.shares(group)
            own = [i for i, g in enumerate(captions.groups) if g == group]
            rows.append(
                (
                    name,
                    f"{group} ({len(own)})",
                    *(str(shares[kind]) for kind in kinds),
                    str(mean_estimate(captions.overlap()[own], bounds=(0.0, 1.0))),
                    "" if captions is first else str(captions.more_often(first, group, group)),
                    "" if captions is first else str(captions.better(first)),
                )
            )
    said = (*(f"says {kind}" for kind in kinds), "other words (F1)")
    apart = (f"names the group, less {base}", f"other words of all, less {base}")
    return Table(title, ("edit", "images of", *said, *apart), rows, note)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
