"""Images with a group each, the texts they are compared with, and what a host makes of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate
from vlm_edit.measures.probing import hits
from vlm_edit.measuring import Pairs, shown
from vlm_edit.tasks.bias.metrics import balanced_accuracy


@dataclass(frozen=True)
class Questions:
    """What a host is asked about images, as texts.

    Attributes:
        attribute: Column of the images' groups, such as ``gender``.
        classes: Prompts of each value that is told apart, ``{"man": ["a photo of a man"]}``; images
            of other values are left out of what is asked about the attribute.
        queries: Texts that name no group, for retrieval.
        label: Column that must still be recognised; empty for none.
        labels: Value of that column that each text stands for.
        variants: By text, the same text naming each value: ``{"nurse": {"man": "male nurse"}}``,
            for baselines that work with such pairs.
    """

    attribute: str
    classes: Mapping[str, Sequence[str]]
    queries: Sequence[str] = ()
    label: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check for two values at least, a prompt each, and labels only of a column."""
        bare = [value for value, prompts in self.classes.items() if not prompts]
        if len(self.classes) < 2 or bare or isinstance(self.classes, str):
            raise BadArgument(
                f"classes of {self.attribute!r} need two values with a prompt each, got "
                f"{dict(self.classes)}"
            )
        if bool(self.label) != bool(self.labels):
            raise BadArgument(
                f"label is {self.label!r} and there are {len(self.labels)} texts of labels: name "
                "the column and give texts of its values, or neither"
            )

    @property
    def values(self) -> tuple[str, ...]:
        """Return the values that are told apart."""
        return tuple(self.classes)

    def texts(self) -> list[str]:
        """Return every text once."""
        prompts = [text for texts in self.classes.values() for text in texts]
        variants = [text for texts in self.variants.values() for text in texts.values()]
        return list(dict.fromkeys([*prompts, *self.queries, *self.labels, *variants]))


@dataclass(frozen=True, eq=False)
class Study:
    """Embeddings of images and texts, and what is read off them.

    Attributes:
        questions: What is asked.
        pairs: The images with their columns and captions.
        image: [n, d] embeddings.
        caption: [n, d], of the pairs' texts.
        text: [t, d], of ``questions.texts()`` in that order.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from vlm_edit import Pairs
        >>> pairs = Pairs([Image.new("RGB", (8, 8))] * 2, ("one", "two"), {"sex": ("f", "m")})
        >>> asked = Questions("sex", {"f": ["a woman"], "m": ["a man"]})
        >>> study = Study(asked, pairs, torch.eye(2), torch.eye(2), torch.eye(2))
        >>> study.read_out().value
        1.0
    """

    questions: Questions
    pairs: Pairs
    image: Tensor
    caption: Tensor
    text: Tensor

    def __post_init__(self) -> None:
        """Check for rows of all images and texts, and the columns that are asked about."""
        expected = (len(self.pairs), len(self.pairs), len(self.questions.texts()))
        counts = (len(self.image), len(self.caption), len(self.text))
        if counts != expected:
            raise BadArgument(
                f"embeddings of images, captions and texts: {counts} rows for {expected} of them"
            )
        for name in filter(None, (self.questions.attribute, self.questions.label)):
            if name not in self.pairs.columns:
                raise UnknownName(
                    f"{self.pairs.name} has no column {name!r}: it has "
                    f"{', '.join(self.pairs.columns) or 'none'}"
                )
        missing = set(self.questions.values) - set(self.pairs.columns[self.questions.attribute])
        if missing:
            raise BadArgument(
                f"no image of {self.pairs.name} has {self.questions.attribute} {min(missing)!r}: "
                f"the values are {', '.join(sorted(set(self.groups)))}"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the group of every image."""
        return self.pairs.columns[self.questions.attribute]

    @cached_property
    def told_apart(self) -> list[int]:
        """Return the numbers of the images whose group is one of those that are told apart."""
        return [i for i, group in enumerate(self.groups) if group in self.questions.classes]

    @cached_property
    def asked_groups(self) -> list[str]:
        """Return the groups of those."""
        return [self.groups[i] for i in self.told_apart]

    def embedded(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of some of the questions' texts, [len(texts), d]."""
        place = {text: i for i, text in enumerate(self.questions.texts())}
        return self.text[[place[text] for text in texts]]

    def similarity(self, texts: Sequence[str]) -> Tensor:
        """Return the cosine of every image and some of the questions' texts, [n, len(texts)]."""
        return F.normalize(self.image, dim=1) @ F.normalize(self.embedded(texts), dim=1).mT

    def class_similarity(self) -> Tensor:
        """Return the cosine of images told apart and the mean prompt of each value, [m, values]."""
        prompts = [
            F.normalize(self.embedded(list(texts)), dim=1).mean(0)
            for texts in self.questions.classes.values()
        ]
        means = F.normalize(torch.stack(prompts), dim=1)
        return F.normalize(self.image[self.told_apart], dim=1) @ means.mT

    def named_right(self) -> Tensor:
        """Say whether the nearest value's prompts are those of the image's own group, [m] bool."""
        own = torch.tensor([self.questions.values.index(group) for group in self.asked_groups])
        return self.class_similarity().argmax(1) == own

    def read_out(self) -> Estimate:
        """Return balanced accuracy of telling the attribute from prompts; chance is 1 / values."""
        return balanced_accuracy(self.named_right(), self.asked_groups)

    def recognised(self) -> Tensor:
        """Say whether the label text nearest to an image that is told apart is one of its value.

        Returns:
            [m] bool.

        Raises:
            VlmEditError: There are no labels.
        """
        return self._recognised()[self.told_apart]

    def kept(self) -> Tensor:
        """Say the same of all images, those of no group included, [n] bool."""
        return self._recognised()

    def finds(self, k: int = 1) -> Tensor:
        """Say whether an image finds a caption like its own among the first k, of all images.

        A caption equal to its own counts, and so does one of the same label.

        Returns:
            [n] bool.
        """
        label = self.questions.label
        names = self.pairs.columns[label] if label else self.pairs.texts
        return hits(self.image, self.caption, names, names, k)

    def query_similarity(self) -> Tensor:
        """Return the cosine of the queries and the images that are told apart, [q, m]."""
        return self.similarity(self.questions.queries)[self.told_apart].mT

    @cached_property
    def images(self) -> Tensor | None:
        """Return which image each pair shows, [n] int64; None where each shows its own."""
        numbers = torch.as_tensor(shown(self.pairs))
        return None if len(numbers.unique()) == len(numbers) else numbers

    def once(self) -> list[int]:
        """Return the places of different images among those that are told apart."""
        if self.images is None:
            return list(range(len(self.told_apart)))
        first: dict[int, int] = {}
        for i, key in enumerate(self.images[self.told_apart].tolist()):
            first.setdefault(key, i)
        return list(first.values())

    def part(self, numbers: Sequence[int]) -> Study:
        """Return the same of some of the images."""
        rows = list(numbers)
        return replace(
            self,
            pairs=self.pairs.select(rows),
            image=self.image[rows],
            caption=self.caption[rows],
        )

    def _recognised(self) -> Tensor:
        if not self.questions.labels:
            raise BadArgument("nothing is to be recognised: give Questions a label and labels")
        values = list(self.questions.labels.values())
        nearest = self.similarity(list(self.questions.labels)).argmax(1).tolist()
        truth = self.pairs.columns[self.questions.label]
        return torch.tensor([values[j] == t for j, t in zip(nearest, truth, strict=True)])


def split(
    pairs: Pairs, by: str | None = None, share: float = 0.5, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split numbers of pairs into those to tune on and those to test on.

    Args:
        pairs: All of them.
        by: Column whose values are never on both sides, such as ``concept`` or a person's name.
        share: Of the values, or of the pairs, that is tuned on.
        seed: Of the draw.

    Raises:
        VlmEditError: No such column, or a side that stays empty.

    Example:
        >>> from vlm_edit import zoo
        >>> pairs = zoo.load_pairs()
        >>> tune, test = split(pairs, by="concept")
        >>> (
        ...     len(tune) + len(test),
        ...     {pairs.columns["concept"][i] for i in tune}
        ...     & {pairs.columns["concept"][i] for i in test},
        ... )
        (1024, set())
    """
    if by is not None and by not in pairs.columns:
        raise UnknownName(f"{pairs.name} has no column {by!r}: it has {', '.join(pairs.columns)}")
    keys = pairs.columns[by] if by else tuple(map(str, range(len(pairs))))
    names = sorted(set(keys))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    sample = {names[i] for i in order[: round(share * len(names))]}
    sides = ([], [])  # type: tuple[list[int], list[int]]
    for i, key in enumerate(keys):
        sides[key not in sample].append(i)
    if not all(sides):
        raise BadArgument(
            f"a share of {share} of {len(names)} {by or 'pairs'} leaves one side empty: both need "
            "at least one"
        )
    return sides
