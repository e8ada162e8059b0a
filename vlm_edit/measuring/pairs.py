"""Image-text pairs: the user's CSV file or folder, lists and tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.measuring.gathering import (
    Held,
    Source,
    Stored,
    gather,
    source_of,
)
from vlm_edit.measuring.lists import NAMES, has_columns, read_list, text_of
from vlm_edit.measuring.pictures import IMAGE_ENDINGS, opened, size_of

_SHOWN = 5  # pairs in notebooks
# What stands beside a text or an image that is alone.
_GREY, _SIDE, _CAPTION = (128, 128, 128), 64, "a picture"


@dataclass(frozen=True)
class Pairs:
    """Images with a text each, and what else is known of them.

    Attributes:
        images: PIL images, or paths that are opened when needed; ``of`` takes other kinds.
        texts: One per image.
        columns: Further facts by name, one value per pair.
        name: Where they come from.
        only: The stream that says something, where ``one_sided`` made them; else None.

    Raises:
        VlmEditError: Other kinds of images, other lengths, or a text that says nothing.

    Example:
        >>> from PIL import Image
        >>> pairs = Pairs([Image.new("RGB", (8, 8), "red")], ("a red square",))
        >>> len(pairs)
        1
    """

    images: Sequence[Source]
    texts: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = "pairs"
    only: Literal["image", "text"] | None = None

    def __post_init__(self) -> None:
        """Check kinds and lengths, and that every text says something."""
        for what, values in (("images", self.images), ("texts", self.texts)):
            if isinstance(values, str | Image.Image | Path) or not isinstance(values, Iterable):
                raise BadArgument(
                    f"{self.name}: {what} is a {type(values).__name__}: give a list, or make pairs "
                    "of a file, a table or a dataset with Pairs.of(...)"
                )
        if not isinstance(self.images, Stored):
            images = [source_of(image, i, self.name) for i, image in enumerate(self.images)]
            object.__setattr__(self, "images", images)
        object.__setattr__(self, "texts", tuple(self.texts))
        lengths = {"texts": len(self.texts)} | {k: len(v) for k, v in self.columns.items()}
        for what, length in lengths.items():
            if length != len(self.images):
                raise BadArgument(f"{self.name}: {len(self.images)} images but {length} {what}")
        empty = [
            i for i, text in enumerate(self.texts) if not (isinstance(text, str) and text.strip())
        ]
        if empty:
            raise BadArgument(
                f"{self.name}: {len(empty)} of {len(self.texts)} pairs have no text, the first is "
                f"number {empty[0]} ({self.describe(empty[0])}): give it one or take it out"
            )

    @classmethod
    def of(cls, source: Any, image: str | None = None, text: str | None = None) -> Pairs:
        """Make pairs of a list, a table, a dataset or a file; pairs come back as they are.

        Whatever measures takes such a list or table in the place of pairs too.

        Args:
            source: A list of (image, text), the image a PIL image or a path; a pandas DataFrame;
                a ``datasets.Dataset``, whose images are read when they are needed; a mapping of
                columns, or a list of mappings; or what ``read_pairs`` takes.
            image: The column of images; by default one called ``image``, ``file_name``, ``path``
                and the like, or a dataset's only column of images.
            text: The column of texts; by default ``text``, ``caption`` or ``title``.

        Raises:
            VlmEditError: Another kind of thing, a column is missing, or there is no text.

        Example:
            >>> from PIL import Image
            >>> Pairs.of([(Image.new("RGB", (8, 8)), "a black square"), ("cat.jpg", "a cat")])
            Pairs(2 pairs from the list of pairs)
            >>> Pairs.of({"image": ["cat.jpg"], "words": ["a cat"]}, text="words").texts
            ('a cat',)
        """
        if isinstance(source, str | Path):
            return read_pairs(source, image, text)
        if not isinstance(source, Pairs):
            return cls(*gather(source, image, text))
        if image is not None or text is not None:
            raise BadArgument("image= and text= name the columns of a table, and this is none")
        return source

    def __repr__(self) -> str:
        """Say on a line how many they are, and where they come from."""
        more = f", with {several(len(self.columns), 'column')}" if self.columns else ""
        name = "" if self.name == "pairs" else f" from {self.name}"
        return one_line(f"Pairs({several(len(self), self.only or 'pair')}{name}{more})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with the first of them."""
        names = list(self.columns)[:3]
        rows = [
            (i, _shown(self.images[i]), _abridged(self.texts[i], 80),
             *(_abridged(self.columns[name][i], 30) for name in names))
            for i in range(min(_SHOWN, len(self)))
        ]  # fmt: skip
        rest = len(self) - _SHOWN
        note = f"and {rest:,} more" if rest > 0 else ""
        title = (
            several(len(self), self.only or "pair") if self.name == "pairs" else f"{self!r}"[6:-1]
        )
        return card(title, None, ("", "image", "text", *names), rows, note)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.images)

    def describe(self, i: int) -> str:
        """Name an image for messages: by its path, or its number."""
        image = self.images[i]
        if isinstance(image, Held):
            return image.name
        return str(image) if isinstance(image, Path) else f"image {i}"

    def open(self, i: int) -> Image.Image:
        """Open the image of a pair, as ``as_seen`` makes it.

        Raises:
            VlmEditError: It is missing or cannot be read.
        """
        return opened(self.images[i], self.describe(i))

    def readable(self) -> tuple[Pairs, list[tuple[int, str]]]:
        """Select the pairs whose image opens; return the others' numbers too, with the reason."""
        numbers, failures = [], []
        for i in range(len(self)):
            try:
                self.open(i)
                numbers.append(i)
            except VlmEditError as error:
                failures.append((i, str(error)))
        return self.select(numbers), failures

    def select(self, indices: Sequence[int]) -> Pairs:
        """Select some of the pairs, in the order given."""
        some = self.images.pick(indices) if isinstance(self.images, Stored) else None
        return Pairs(
            [self.images[i] for i in indices] if some is None else some,
            tuple(self.texts[i] for i in indices),
            {name: tuple(values[i] for i in indices) for name, values in self.columns.items()},
            self.name,
            self.only,
        )

    def has(self, i: int) -> bool:
        """Return whether there is a pair of this number."""
        return i < len(self) or not i

    def numbers(self) -> Iterable[int]:
        """Return the number of each pair."""
        return range(len(self))

    def batches(self, size: int) -> Iterator[range]:
        """Iterate over the numbers of the pairs, ``size`` at a time."""
        if size < 1:
            raise BadArgument(f"batch size is {size}; it must be at least 1")
        for start in range(0, len(self), size):
            yield range(start, min(start + size, len(self)))


def _shown(image: Source) -> str:
    """Name an image, or say how large one in memory is."""
    if isinstance(image, Image.Image):
        return f"{image.width} x {image.height}"
    return _abridged(image.name if isinstance(image, Held) else str(image), 48, True)


def _abridged(text: str, most: int, end: bool = False) -> str:
    """Return the beginning of a text, or its end."""
    if len(text) <= most:
        return text
    return f"...{text[3 - most :]}" if end else f"{text[: most - 3]}..."


def read_pairs(
    path: str | os.PathLike[str], image: str | None = None, text: str | None = None
) -> Pairs:
    """Read pairs from disk. Images are opened only when they are needed.

    Args:
        path: A CSV file with a header, separated by commas, semicolons, tabs or bars, or JSON
            lines (``.jsonl``), with a column of image paths, relative to the file, and one of
            texts, other columns are kept; or a folder that holds one called ``metadata`` or
            ``pairs``; or a folder of images, each with its text in a ``.txt`` file of the same
            name. A ``.txt`` file without such columns holds prompts, one on each line, as
            ``one_sided`` makes pairs of them.
        image: The column of images; by default ``image``, ``file_name``, ``path`` and the like.
        text: The column of texts; by default ``text``, ``caption`` or ``title``.

    Returns:
        The pairs in the file's order, a folder's by name.

    Raises:
        VlmEditError: The path is missing, a column is missing, there are no pairs, or some have
            no text; the message names the line and the column.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8), "red").save(pathlib.Path(folder, "a.png"))
        ...     _ = pathlib.Path(folder, "a.txt").write_text("a red square")
        ...     read_pairs(folder).texts
        ('a red square',)
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False for what is out of reach
        for name in NAMES:
            if os.path.isfile(path / name):
                return Pairs(*read_list(path / name, image, text))
        if image is not None or text is not None:
            raise BadArgument(
                f"{str(path)!r} is a folder of images, without columns: leave image= and text= out"
            )
        return _read_folder(path)
    if size_of(path) is None:
        raise BadArgument(
            f"no pairs at {str(path)!r}: the path does not exist, or is out of your reach"
        )
    named = image is not None or text is not None
    if path.suffix.lower() != ".txt" or named or has_columns(path):
        return Pairs(*read_list(path, image, text))
    prompts = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    if not prompts:
        raise DamagedFile(f"{path} holds no prompts: write one on each line")
    return one_sided(prompts, str(path))


def one_sided(examples: Pairs | Iterable[Any], name: str) -> Pairs:
    """Make pairs of texts alone, or of images alone.

    A text stands beside a grey image, an image beside the text "a picture", which hosts that need
    both are given; ``Pairs.only`` tells which of the two is said.

    Args:
        examples: Texts, images, or paths of images; pairs come back as they are.
        name: Where they come from.

    Raises:
        BadArgument: No examples, one text instead of several, or other kinds of things.

    Example:
        >>> one_sided(["a cat", "a dog"], "prompts")
        Pairs(2 texts from prompts)
    """
    if isinstance(examples, Pairs):
        return examples
    items: list[Any] = [] if isinstance(examples, str) else list(examples)
    if not items:
        text = f"{examples!r}, one text" if isinstance(examples, str) else "none"
        raise BadArgument(f"{name}: got {text}; give a list of texts or of images")
    if all(isinstance(one, str) for one in items):
        grey = Image.new("RGB", (_SIDE, _SIDE), _GREY)
        return Pairs([grey] * len(items), tuple(items), name=name, only="text")
    if all(isinstance(one, Image.Image | Path) for one in items):
        return Pairs(items, (_CAPTION,) * len(items), name=name, only="image")
    kinds = ", ".join(sorted({type(one).__name__ for one in items}))
    raise BadArgument(f"{name} are of {kinds}: give texts only, or images and paths only")


def _read_folder(path: Path) -> Pairs:
    try:
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    except OSError as error:
        raise BadArgument(f"{str(path)!r} cannot be listed: {error}") from error
    images = [p for p in paths if not os.path.isdir(p)]
    if not images:
        raise BadArgument(f"{str(path)!r} holds no images ({', '.join(IMAGE_ENDINGS)})")
    texts = []
    for image in images:
        file = image.with_suffix(".txt")
        try:
            known = os.path.isfile(file)
            texts.append(file.read_text(encoding="utf-8-sig").strip() if known else "")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedFile(f"{file} is not UTF-8 text: {error}") from error
    return Pairs(images, tuple(texts), name=str(path))
