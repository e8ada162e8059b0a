"""What lies on the desk: a host, a dictionary at a site, and what is known of its features."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
from PIL import Image

from vlm_edit.app.turns import Turns
from vlm_edit.dictionaries import AnyDictionary, PairedDictionary, expect_features
from vlm_edit.edits import Ablate
from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError, line
from vlm_edit.ground.notebook import several
from vlm_edit.host import Host
from vlm_edit.measures.controls import activity_paired, random_features
from vlm_edit.measuring import Measurement, Pairs, PlacesFinder, is_pooled
from vlm_edit.patches import Patch
from vlm_edit.selection import FewFeatures, by_class
from vlm_edit.tasks.answers import speaks

Way = Literal["class", "name", "number"]
Shows = Literal["answers", "labels", "drawings"]
CLASSES = ("vision", "language", "cross")
MOST_NAMED = 1000  # features in a list to choose from, which a browser holds
_SIDE = 256  # pixels of an example
_FAR = 20.0  # where an amount's slider ends, if no activations were measured


@dataclass(frozen=True)
class Found:
    """Features that were chosen, and how.

    Attributes:
        features: Their numbers.
        told: In a sentence, how they were chosen.
    """

    features: tuple[int, ...]
    told: str


@dataclass(frozen=True, eq=False)
class Example:
    """A picture to choose.

    Attributes:
        number: Of its pair.
        small: At most 256 pixels wide and high.
        text: Of its pair.
    """

    number: int
    small: Image.Image
    text: str


@dataclass(frozen=True, eq=False)
class Desk:
    """A host with a dictionary at a site, and what is known of its features.

    Args:
        host: What is edited.
        dictionary: Whose features are turned.
        site: Where.
        run: What was measured of them; None where classes are not known.
        pairs: Examples to show; those that were measured, where there is a run.
        pipe: The pipeline that draws with the host; None for one that answers, or embeds.
        names: Of features, where they were kept.

    Attributes:
        turns: Who runs the host.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> desk = Desk(Host.load("zoo:emoji-clip"), zoo.load_dictionary("joint"), "joint")
        >>> desk.shows, desk.find("number", numbers="3, 17").features
        ('labels', (3, 17))
    """

    host: Host
    dictionary: AnyDictionary
    site: str
    run: Measurement | None = None
    pairs: Pairs | None = None
    pipe: Any = None
    names: Mapping[int, str] = field(default_factory=dict)

    turns: Turns = field(default_factory=Turns, init=False)

    def __post_init__(self) -> None:
        """Refuse at once what could not be edited, or not be shown.

        Raises:
            VlmEditError: The dictionary does not fit the site, or nothing can be shown.
        """
        Patch(self.site, self.dictionary, Ablate([0])).attach(self.host).remove()
        _ = self.shows

    @cached_property
    def shows(self) -> Shows:
        """Return what is shown before and after."""
        if self.pipe is not None:
            return "drawings"
        if speaks(self.host):
            return "answers"
        if "joint" in self.host.sites and hasattr(self.host.root, "get_text_features"):
            return "labels"
        raise BadArgument(
            f"{self.host.kind.__name__} neither answers, nor draws, nor embeds labels: there is "
            "nothing to watch; vlm-edit edit makes a patch for it"
        )

    @property
    def n_features(self) -> int:
        """Return the size of the dictionary."""
        return self.dictionary.n_features

    @cached_property
    def live(self) -> Sequence[int]:
        """Return the features that some pair activates; all, where nothing was measured."""
        if self.run is None:
            return range(self.n_features)
        return cast("list[int]", (~self.run.dominance.dead).nonzero().flatten().tolist())

    @cached_property
    def kinds(self) -> Mapping[int, str]:
        """Return the class of each feature that has one."""
        if self.run is None:
            return {}
        classes = self.run.dominance.classes()
        return {number: name for name in CLASSES for number in classes[name]}

    def name(self, feature: int) -> str:
        """Return what is known of a feature on a line: number, name, class, score, top caption.

        Args:
            feature: Its number.
        """
        words = [str(feature)]
        if feature in self.names:
            words.append(self.names[feature])
        if self.run is not None:
            score = float(self.run.dominance.scores[feature])
            words += [self.kinds.get(feature, "undecided"), f"MDS {score:.2f}"]
            if feature not in self.names and (caption := self._caption(feature)):
                words.append(f"fires most for '{caption}'")
        return line(" · ".join(words))

    def _caption(self, feature: int) -> str:
        """Return the text of the pair that activates a feature most, where it is known."""
        if self.run is None or self.pairs is None:
            return ""
        score = float(self.run.dominance.scores[feature])
        top = self.run.examples["image" if score >= 0.5 else "text"]
        number = int(top.numbers[feature, 0])
        if not 0 <= number < len(self.pairs):
            return ""
        text = line(self.pairs.texts[number])
        return text if len(text) <= 48 else f"{text[:45]}..."

    @cached_property
    def named(self) -> list[tuple[str, int]]:
        """Return what a list of features shows, and their numbers: the strongest, at most 1,000."""
        if self.run is None:
            return [(self.name(feature), feature) for feature in sorted(self.names)[:MOST_NAMED]]
        order = self.run.strength().argsort(descending=True)[:MOST_NAMED].tolist()
        live = set(self.live)
        return [(self.name(feature), feature) for feature in sorted(order) if feature in live]

    def find(
        self,
        way: Way,
        *,
        kind: str = "vision",
        most: int = 10,
        names: Sequence[int] = (),
        numbers: str = "",
    ) -> Found:
        """Find the features that a visitor means.

        Args:
            way: By ``class``, ``name`` or ``number``.
            kind: The class.
            most: How many of it, the surest.
            names: The numbers of those chosen by name.
            numbers: As typed, such as ``3, 17``.

        Raises:
            VlmEditError: There are none, or numbers that no feature has.
        """
        if way == "class":
            return self._of_class(kind, int(most))
        features = list(dict.fromkeys(names if way == "name" else _typed(numbers)))
        if not features:
            mend = "choose some from the list" if way == "name" else "type some, such as 3, 17"
            raise BadArgument(f"no feature is chosen: {mend}")
        expect_features(features, self.n_features)
        return Found(tuple(features), f"{several(len(features), 'feature')}, by {way}")

    def _of_class(self, kind: str, most: int) -> Found:
        if self.run is None:
            raise CannotKnow(
                "classes are not known, since nothing was measured: choose by number, or start "
                "with --run or --pairs"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewFeatures)  # the sentence says how many
            chosen = by_class(self.run.dominance, cast("Any", kind), n=most)
        if not chosen:
            raise VlmEditError(f"no feature is on the {kind} side: choose another class")
        return Found(tuple(chosen), str(chosen))

    def random(self, features: Sequence[int], seed: int = 0) -> Found:
        """Find as many random features, each about as active as one of the given.

        Args:
            features: Chosen ones.
            seed: Of the draw.

        Raises:
            VlmEditError: There are not so many others.
        """
        others = [feature for feature in self.live if feature not in set(features)]
        count = several(len(features), "random feature")
        if self.run is None:
            drawn = random_features(features, others, draws=1, seed=seed)[0]
            return Found(tuple(drawn), f"{count}, whose activity is not known without a run")
        activity = self.run.dominance.masses[:2].sum(0) / (2 * self.run.n_pairs)
        matched = activity_paired(features, others, activity, seed)
        return Found(tuple(matched), f"{count}, each about as active as one of those chosen")

    @cached_property
    def far(self) -> float:
        """Return where the slider of an amount ends: twice what activations hardly exceed."""
        if self.run is None:
            return _FAR
        sizes = [size.quantile(0.99) for size in self.run.sizes.values()]
        largest = torch.cat([size[size.isfinite()] for size in sizes]) if sizes else torch.empty(0)
        return round(2 * float(largest.max()), 1) or _FAR if len(largest) else _FAR

    def examples(self, most: int = 8) -> list[Example]:
        """Return some pictures of the pairs, spread evenly; those that open.

        Args:
            most: How many.
        """
        if self.pairs is None:
            return []
        shown = []
        for number in range(0, len(self.pairs), max(1, len(self.pairs) // most)):
            try:
                image = self.pairs.open(number)
            except VlmEditError:
                continue
            image.thumbnail((_SIDE, _SIDE))
            shown.append(Example(number, image, line(self.pairs.texts[number])))
        return shown[:most]

    @property
    def has_tokens(self) -> bool:
        """Whether tokens pass the site, so that it shows where a feature fires."""
        return self.pipe is None and not is_pooled(self.host, self.site)

    @cached_property
    def finder(self) -> PlacesFinder:
        """Return what finds the part of a picture that a token stands for; it keeps what it found.

        Who asks it must be alone with the host.
        """
        return PlacesFinder(self.host, self.site)

    def picture(self, number: int) -> Image.Image:
        """Return the whole picture of a pair.

        Args:
            number: Of it.

        Raises:
            VlmEditError: There are no pairs, or it does not open any more.
        """
        if self.pairs is None:
            raise BadArgument("there are no example pictures: drop one of your own")
        return self.pairs.open(number)

    def about(self) -> str:
        """Say on a line what is turned here."""
        told = f"{self.host.kind.__name__} · {self.site} · {several(self.n_features, 'feature')}"
        if isinstance(self.dictionary, PairedDictionary):
            told += " for each stream"
        if self.run is not None:
            told += f" · classes by {several(self.run.n_pairs, 'pair')}"
        return line(told)


def _typed(numbers: str) -> list[int]:
    parts = [part for part in re.split(r"[\s,;]+", numbers.strip()) if part]
    wrong = [part for part in parts if not re.fullmatch(r"\d{1,9}", part)]
    if wrong:
        raise BadArgument(f"numbers of features are such as 3, 17, got {line(repr(wrong[0]))}")
    return [int(part) for part in parts]
