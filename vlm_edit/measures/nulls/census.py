"""A census: how many features of each class the data have, and how many each null has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import STREAMS, AnyDictionary, Dictionary, train_dictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.measures.controls import random_features
from vlm_edit.measures.dominance import (
    CLASSES,
    LEVELS,
    RULE,
    Cut,
    Dominance,
    flipped_sums,
    modality_dominance,
    sureness,
)
from vlm_edit.measures.nulls.dictionaries import (
    config_like,
    expect_shared,
    frozen_dictionary,
    random_dictionary,
)
from vlm_edit.measures.nulls.gaussians import joint_gaussian, unpaired_gaussians
from vlm_edit.measures.probing import probe

# Names of the rows, and what tables call them. The last three train a dictionary.
ROWS = {
    "data": "the data",
    "swapped": "swapped inside pairs",
    "unpaired": "unpaired Gaussians",
    "joint": "joint Gaussian",
    "random-dictionary": "random directions",
    "frozen-dictionary": "trained here, decoder frozen",
    "retrained": "trained here",
    "random-host": "random host, trained on it",
}
QUICK = ("data", "swapped", "unpaired", "joint", "random-dictionary")
LITTLE = (
    "Class sizes say little: they follow largely from the covariances of the two streams, as "
    "Gaussians of the same covariances show."
)
_SWAPS = 100
_DRAWS = 5


@dataclass(frozen=True)
class Read:
    """How well a factor is read off images, by a linear probe, before and after deletions.

    Attributes:
        whole: Share of images of which it is read right.
        without: The same when the surest vision-dominant features are deleted.
        random: The same when as many random live features are, on average.
        deleted: How many those are.
    """

    whole: float
    without: float
    random: float
    deleted: int


@dataclass(frozen=True)
class CensusRow:
    """What one source has.

    Attributes:
        name: A key of ``ROWS``.
        sizes: Features by class; of random swaps their mean number.
        paired: Features that fire together on pairs more than by chance; None where that is not
            asked.
        sd: Standard deviation of the scores of live features.
        read: Of a factor, if one was given and the source has it.
    """

    name: str
    sizes: Mapping[str, float]
    paired: int | None
    sd: float
    read: Read | None = None


@dataclass(frozen=True)
class Halves:
    """What halves of the pairs say of the same features, as it is shown.

    Attributes:
        columns: Headings.
        cells: One row, as text.
        told: How to read it.
        recurring: Features of one class in all halves.
    """

    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    told: str
    recurring: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Census:
    """Features by class of the data and of its nulls.

    Attributes:
        rows: One a source.
        rule: Of the classes.
        n_features: Of each dictionary.
        n_pairs: Of each source.
        factor: What was read; None for nothing.
        halves: How well scores and classes come again; None where nobody looked.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> streams = {"image": x, "text": x.flip(1)}
        >>> census = census_of(streams, Dictionary.identity(4), ["data", "unpaired"])
        >>> [row.name for row in census.rows], census.row("unpaired").paired
        (['data', 'unpaired'], 0)
    """

    rows: tuple[CensusRow, ...]
    rule: str
    n_features: int
    n_pairs: int
    factor: str | None = None
    halves: Halves | None = None

    def row(self, name: str) -> CensusRow:
        """Return the row of a source.

        Raises:
            UnknownName: It was left out, or there is none of this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UnknownName(f"no row {name!r}: there are {', '.join(r.name for r in self.rows)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the headings of ``cells``."""
        heads = ("source", *CLASSES, "paired", "sd")
        if self.factor is None:
            return heads
        deleted = max((row.read.deleted for row in self.rows if row.read), default=0)
        return (
            *heads,
            self.factor,
            f"less {deleted} vision",
            f"less {deleted} random",
        )

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text."""
        table = []
        for row in self.rows:
            sizes = [f"{row.sizes[name]:.0f}" for name in CLASSES]
            paired = "–" if row.paired is None else str(row.paired)
            cells = (ROWS[row.name], *sizes, paired, _decimal(row.sd))
            if self.factor is not None:
                read = row.read
                shares = (read.whole, read.without, read.random) if read else ()
                cells = (*cells, *(map(_decimal, shares) if read else ("–", "–", "–")))
            table.append(cells)
        return table

    def note(self) -> str:
        """Say how to read the rows."""
        told = f"{LITTLE}\nClasses by the rule {self.rule}; {several(self.n_pairs, 'pair')}."
        if any(row.paired is not None for row in self.rows):
            told += (
                "\npaired: features that fire together on matched pairs more than on shuffled "
                "ones. sd: of the scores."
            )
        if self.factor is not None:
            told += (
                f"\n{self.factor}: share of images whose {self.factor} a linear probe tells "
                f"from their activations: whole, without the surest\nvision-dominant features, and "
                f"without as many random ones (mean of {_DRAWS} draws). Gaussians have none."
            )
        return told

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON-able values."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Census:
        """Return the census of what ``as_json`` gave.

        Raises:
            DamagedFile: Something of it is missing or of another kind.
        """
        try:
            rows = []
            for told in value["rows"]:
                read = None if told["read"] is None else Read(**told["read"])
                sizes = {name: float(told["sizes"][name]) for name in CLASSES}
                if told["name"] not in ROWS:
                    raise ValueError(f"unknown row {told['name']!r}")
                rows.append(CensusRow(**{**told, "sizes": sizes, "read": read}))
            halves = value.get("halves")
            if halves is not None:
                halves = Halves(
                    tuple(halves["columns"]),
                    tuple(map(tuple, halves["cells"])),
                    str(halves["told"]),
                    tuple(map(int, halves["recurring"])),
                )
            return cls(**{**value, "rows": tuple(rows), "halves": halves})
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"not a census: {error}; make it again") from error

    def __repr__(self) -> str:
        """Say on a line what it is of."""
        return one_line(f"Census({', '.join(row.name for row in self.rows)})")

    def _repr_html_(self) -> str:
        """Show the rows in a notebook."""
        return card("Census of features", {}, self.columns, self.cells(), self.note())


def census_of(
    streams: Mapping[str, Tensor],
    dictionary: AnyDictionary,
    rows: Sequence[str] = tuple(ROWS),
    *,
    random: Mapping[str, Tensor] | None = None,
    rule: Cut = RULE,
    factor: tuple[str, Sequence[str]] | None = None,
    deleted: int = 16,
    steps: int = 600,
    seed: int = 0,
    progress: bool = False,
) -> Census:
    """Count the features of each class in activations of pairs, and in their nulls.

    Gaussians are measured with the given dictionary, the others with dictionaries as large and as
    sparse. Those are trained on the very activations that they are measured on: compare them with
    the row ``retrained``, not with the given dictionary, which may have seen more.

    Args:
        streams: [n, d], ``image`` and ``text``, row i of both a pair.
        dictionary: Of these activations.
        rows: Keys of ``ROWS``, in the order wanted.
        random: Activations of the same pairs in a host of random weights; without them there is
            no such row.
        rule: As in ``Dominance.classes``.
        factor: Name and label per pair of something that images show, to be read before and after
            features are deleted; None for nothing.
        deleted: Features, at most, that are.
        steps: Of each training.
        seed: Of every draw and training.
        progress: Whether to show bars of trainings.

    Raises:
        VlmEditError: Streams that are no pairs, labels of other pairs, an unknown row; or rows
            that ask for one dictionary in memory and were given another kind.
    """
    _expect(streams, rows, factor)
    wanted = [name for name in rows if name != "random-host" or random is not None]
    maker = _Maker(streams, dictionary, random, rule, factor, deleted, steps, seed, progress)
    made = tuple(maker.row(name) for name in wanted)
    n = len(streams["image"])
    return Census(made, rule, dictionary.n_features, n, factor[0] if factor else None)


@dataclass(frozen=True, eq=False)
class _Maker:
    """Make rows, as ``census_of`` is asked for them."""

    streams: Mapping[str, Tensor]
    dictionary: AnyDictionary
    random: Mapping[str, Tensor] | None
    rule: Cut
    factor: tuple[str, Sequence[str]] | None
    deleted: int
    steps: int
    seed: int
    progress: bool

    def row(self, name: str) -> CensusRow:
        given, streams = self.dictionary, self.streams
        if name == "data":
            return self._count(name, given, streams, self.factor is not None)
        if name == "swapped":
            return self._swapped()
        if name in ("unpaired", "joint"):
            draw = unpaired_gaussians if name == "unpaired" else joint_gaussian
            return self._count(name, given, draw(streams, seed=self.seed), False)
        makers: dict[str, Callable[[], Dictionary]] = {
            "random-dictionary": lambda: random_dictionary(given, streams, self.seed),
            "frozen-dictionary": lambda: frozen_dictionary(
                streams, given, steps=self.steps, seed=self.seed, progress=self.progress
            ),
            "retrained": lambda: self._trained(streams),
        }
        if name in makers:
            return self._count(name, makers[name](), streams, self.factor is not None)
        assert self.random is not None
        own = self._trained(self.random)
        return self._count(name, own, self.random, self.factor is not None)

    def _trained(self, streams: Mapping[str, Tensor]) -> Dictionary:
        config = config_like(self.dictionary, self.streams, self.steps, self.seed)
        return train_dictionary(streams, config, progress=self.progress)

    def _count(
        self, name: str, dictionary: AnyDictionary, streams: Mapping[str, Tensor], reads: bool
    ) -> CensusRow:
        codes = {s: dictionary.encode_sparse(streams[s], s) for s in STREAMS}
        dominance = modality_dominance(codes["image"], codes["text"])
        classes = dominance.classes(self.rule)
        return CensusRow(
            name,
            {kind: float(len(classes[kind])) for kind in CLASSES},
            int(dominance.paired().sum()),
            dominance.sd,
            self._read(dictionary, streams["image"], codes["image"], dominance) if reads else None,
        )

    def _swapped(self) -> CensusRow:
        image, text = (self.dictionary.encode_sparse(self.streams[s], s) for s in STREAMS)
        dominance = modality_dominance(image, text)
        expected = dominance.expected_classes(self.rule, draws=_SWAPS, seed=self.seed)
        sizes = {kind: expected[kind].value for kind in CLASSES}
        return CensusRow("swapped", sizes, None, _swapped_sd(dominance, self.seed))

    def _read(
        self, dictionary: AnyDictionary, x: Tensor, codes: SparseCodes, dominance: Dominance
    ) -> Read | None:
        """Read the factor before and after the surest vision-dominant features are deleted."""
        assert self.factor is not None
        dictionary, labels = expect_shared(dictionary), self.factor[1]
        space = dictionary.normalise(x, "image")
        if dictionary.encoder.centers:
            space = space - dictionary.encoder.center("image")
        members = torch.tensor(dominance.classes(self.rule)["vision"], dtype=torch.int64)
        if not len(members):
            return None
        order = sureness(dominance, "vision")[members].argsort(descending=True, stable=True)
        chosen = members[order][: self.deleted].tolist()
        live = (~dominance.dead).nonzero().flatten().tolist()
        dense = codes.dense()

        def share(features: Sequence[int]) -> float:
            index = torch.as_tensor(features, dtype=torch.int64)
            left = space - dense[:, index] @ dictionary.decoder[index]
            return float(probe(left, labels, seed=self.seed).double().mean())

        others = [share(f) for f in random_features(chosen, live, _DRAWS, self.seed)]
        return Read(share([]), share(chosen), sum(others) / len(others), len(chosen))


def _swapped_sd(dominance: Dominance, seed: int) -> float:
    """Return the standard deviation of scores over live features, on average over random swaps."""
    live = ~dominance.dead
    sums = flipped_sums(dominance.levels, _SWAPS, seed)[:, live].double()
    scores = 0.5 + sums / (2 * LEVELS * dominance.active[live])
    return float(scores.std(1).mean())


def _expect(
    streams: Mapping[str, Tensor], rows: Sequence[str], factor: tuple[str, Sequence[str]] | None
) -> None:
    shapes = {name: tuple(x.shape) for name, x in streams.items()}
    if set(shapes) != set(STREAMS) or len(set(shapes.values())) != 1:
        raise BadArgument(
            "a census takes activations of pairs, 'image' and 'text' with as many rows of one "
            f"width, row i of both a pair; got {shapes}"
        )
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        raise UnknownName(f"no row {unknown[0]!r} of a census: use {', '.join(ROWS)}")
    if factor is not None and len(factor[1]) != len(streams["image"]):
        raise BadArgument(
            f"{factor[0]} has {len(factor[1])} labels for {len(streams['image'])} pairs: give one "
            "of each"
        )


def _decimal(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"
