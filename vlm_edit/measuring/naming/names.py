"""What features are called, how well each name tells where its feature fires, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.ground.statistics import Estimate
from vlm_edit.measuring.naming.words import Words

UNDESCRIBED = "undescribed"
_SHOWN = 25


@dataclass(frozen=True)
class Name:
    """Hold what a feature is called, and whether that holds on pairs that did not make it.

    Attributes:
        feature: Its number.
        tried: The name that was chosen on the first half of the pairs; empty where none was.
        score: AUC with which it tells where the feature fires, on the other half, with its 95 %
            interval over images; ``n`` counts the pairs there in which it fires. NaN where it
            fires, or does not, in fewer than five.
        chance: The score of names shuffled among features, .5 at least; what ``p`` is of.
        p: Chance of such a score where the name says nothing, one-sided.
        held: Whether the name beats chance, at a rate of false discoveries over all features.
        stream: Where the feature fires in more pairs, ``image`` or ``text``: what is scored.
        words: Words its direction points to, with cosines, or with standard deviations over all
            tokens of the output head; empty where nothing reads its direction.
    """

    feature: int
    tried: str
    score: Estimate
    chance: float
    p: float
    held: bool
    stream: str
    words: Words = ()

    @property
    def name(self) -> str:
        """Return the name where it beats chance, and else ``undescribed``."""
        return self.tried if self.held else UNDESCRIBED

    def __str__(self) -> str:
        """Say on a line what it is called and how well."""
        return one_line(f"{self.feature}: {self.name}, AUC {self.score} in {self.stream}s")

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-able values; a score that is not known is null."""
        figures = {
            "score": self.score.value,
            "low": self.score.low,
            "high": self.score.high,
            "chance": self.chance,
            "p": self.p,
        }
        return {
            "name": self.name,
            **{key: None if value != value else value for key, value in figures.items()},
            "held": self.held,
            "words": [list(pair) for pair in self.words],
            "tried": self.tried,
            "firing": self.score.n,
            "stream": self.stream,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Names(Sequence[Name]):
    """Hold the names of some features, as a list of them that shows itself as a table.

    Attributes:
        names: In the order in which features were asked for.
        site: Where.
        alpha: Rate of false discoveries among the names that hold, at most.
        source: Where names come from, and how they were scored, in words.
        chosen_on: Pairs of the half that names were chosen on.
        scored_on: Pairs of the half that they were scored on.
        vocabulary: The words that names were chosen among; empty at a language layer, whose words
            are its tokens.
    """

    names: tuple[Name, ...]
    site: str
    alpha: float
    source: str
    chosen_on: int
    scored_on: int
    vocabulary: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return their number."""
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Name: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Name, ...]: ...
    def __getitem__(self, index: int | slice) -> Name | tuple[Name, ...]:
        """Return one name, or some."""
        return self.names[index]

    @property
    def held(self) -> tuple[Name, ...]:
        """Return the names that beat chance."""
        return tuple(name for name in self.names if name.held)

    def table(self) -> dict[str, list[Any]]:
        """Return columns by name, a value per feature; a score that is not known is NaN."""
        return {
            "feature": [name.feature for name in self],
            "name": [name.name for name in self],
            "auc": [name.score.value for name in self],
            "auc_low": [name.score.low for name in self],
            "auc_high": [name.score.high for name in self],
            "chance": [name.chance for name in self],
            "p": [name.p for name in self],
            "held": [name.held for name in self],
            "stream": [name.stream for name in self],
            "firing": [name.score.n for name in self],
            "tried": [name.tried for name in self],
            "words": [", ".join(word for word, _ in name.words) for name in self],
        }

    def to_pandas(self) -> Any:
        """Return ``table`` as a pandas DataFrame.

        Raises:
            VlmEditError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BadArgument("to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.table())

    def note(self) -> str:
        """Say how names were made and scored, and how many hold."""
        return (
            f"{self.source}. Chosen on {several(self.chosen_on, 'pair')} and scored on "
            f"{self.scored_on:,} of other images: AUC for where the feature fires, 95 % interval "
            f"over images.\n{len(self.held)} of {several(len(self), 'name')} beat chance (names "
            f"shuffled among features, .5 at least) at a false discovery rate of {self.alpha:g}; "
            "the rest are undescribed."
        )

    def cells(self, most: int | None = None) -> list[tuple[str, ...]]:
        """Return the rows that tables show: feature, name, AUC, chance, stream, words."""
        return [
            (
                *(str(name.feature), name.name, str(name.score) if name.score.n else ""),
                "" if name.chance != name.chance else f"{name.chance:.3f}".removeprefix("0"),
                *(name.stream, ", ".join(word for word, _ in name.words[:3])),
            )
            for name in self.names[:most]
        ]

    def __repr__(self) -> str:
        """Say on a line which they are."""
        first = ", ".join(f"{name.feature} {name.name}" for name in self.held[:5])
        count = f"{len(self.held)} of {several(len(self), 'feature')} described"
        return one_line(f"Names({self.site}, {count}{': ' if first else ''}{first})")

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        rest = [f"and {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else []
        note = "\n".join([*rest, self.note()])
        return card(
            f"Names of features at {self.site}", None, NAME_COLUMNS, self.cells(_SHOWN), note
        )


NAME_COLUMNS = ("feature", "name", "AUC", "chance", "stream", "direction")
