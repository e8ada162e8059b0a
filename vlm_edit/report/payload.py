"""What the page's script reads: one JSON object with everything but the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.controls import expect_known
from vlm_edit.measures.dominance import CLASSES, Cut, null_histogram
from vlm_edit.measuring import STREAMS, Measurement, Pairs
from vlm_edit.report.blocks import Block, block, counts, rounded
from vlm_edit.report.columns import Column, columns
from vlm_edit.report.details import Bundles
from vlm_edit.report.sprites import Sprites
from vlm_edit.report.tables import CLASS_NAMES, RULE_NAMES

BINS = 40
SIZE_BINS = 16
_TOP = 10
_LONGEST = 240
_NOTES: dict[Cut, str] = {
    "interval": "The 90 % interval of the score lies wholly beyond a cut, or between both.",
    "significant": "Fixed cuts, and outside of them only what a swap test finds beyond chance.",
    "fixed": "Fixed cuts, whatever chance would give.",
    "sd": "Mean minus and plus one sd: finds about a third dominant in any data.",
}


@dataclass(frozen=True)
class Examples:
    """Pairs shown with a line each, such as what a model says of them before and after an edit.

    Attributes:
        title: What they show.
        items: Number of the pair, and what to say of it, line by line.
        note: How they were chosen.
    """

    title: str
    items: Sequence[tuple[int, Sequence[str]]]
    note: str = ""


@dataclass(eq=False)
class Payload:
    """Turn a measurement into plain values.

    Attributes:
        measurement: What was measured.
        pairs: The pairs it was measured on.
        examples: Pairs to show on their own.
        shown: Features per class, and drawn at random.
        seed: Of the random features.
        recurring: Features that came again; None where nobody looked.
    """

    measurement: Measurement
    pairs: Pairs
    examples: Sequence[Examples]
    shown: int
    seed: int
    recurring: Sequence[int] | None = None
    rules: dict[Cut, dict[str, list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        """Expect the right pairs, classify once, rank once."""
        self._expect_pairs()
        dominance = self.measurement.dominance
        expect_known(self.recurring or (), len(dominance.scores))
        self.rules = {rule: dominance.classes(rule) for rule in RULE_NAMES}
        self._strength = torch.nan_to_num(self.measurement.strength()).tolist()
        self._top = {
            stream: self.measurement.examples[stream].numbers[:, :_TOP] for stream in STREAMS
        }
        self._columns = columns(self.measurement)
        self._null = [_number(count) for count in null_histogram(dominance, BINS)]
        self._checksum = self.measurement.checksum()
        self._index = {number: i for i, number in enumerate(self._shown_pairs())}

    def _expect_pairs(self) -> None:
        sources = {
            f"top {s}s": self.measurement.examples[s].numbers.flatten().tolist() for s in STREAMS
        }
        for part in self.examples:
            sources.setdefault(part.title, []).extend(number for number, _ in part.items)
        for what, numbers in sources.items():
            if not self.pairs.has(max(numbers, default=0)):
                raise BadArgument(
                    f"{what!r} names pair {max(numbers)}, and {self.pairs.name} has "
                    f"{len(self.pairs)} (0 to {len(self.pairs) - 1}): these are not the pairs it "
                    "was made of; name those, or leave it out"
                )

    def random(self) -> list[int]:
        """Draw live features at random."""
        live = (~self.measurement.dominance.dead).nonzero().flatten()
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(self.seed))
        return [int(k) for k in live[order[: self.shown]]]

    def strongest(self, rule: Cut) -> dict[str, list[int]]:
        """Return the strongest features of each class but the dead."""
        return {
            name: sorted(members, key=lambda k: -self._strength[k])[: self.shown]
            for name, members in self.rules[rule].items()
            if name != "dead"
        }

    def pictures(self) -> Iterator[int]:
        """Iterate over the pairs whose picture is wanted, the most wanted first."""
        for part in self.examples:
            yield from (number for number, _ in part.items)
        images = self._top["image"].tolist()
        for feature in self.order():
            yield from (number for number in images[feature] if number >= 0)

    def order(self) -> list[int]:
        """Return all features, the most wanted first: those on cards, then by strength."""
        first = [*self.random()]
        for rule in self.rules:
            first += [k for members in self.strongest(rule).values() for k in members]
        by_strength = sorted(range(len(self._strength)), key=lambda k: -self._strength[k])
        return list(dict.fromkeys([*first, *by_strength]))

    def blocks(self) -> list[Block]:
        """Return the figures of all features."""
        sizes = self.measurement.sizes
        return [
            *(_column_block(column) for column in self._columns),
            *(block(f"top {s}", self._indexed(s), "i4") for s in STREAMS),
            *(block(f"values {s}", rounded(self._values(s), 3), "f4") for s in STREAMS),
            counts("ratios", self.measurement.dominance.levels),
            *(counts(f"sizes {s}", sizes[s].by_size(SIZE_BINS)) for s in STREAMS if s in sizes),
        ]

    def data(self, small: Sprites, large: Sprites, details: Bundles) -> dict[str, Any]:
        """Return all other values, JSON-able, figures rounded to four digits."""
        index = self._index
        dominance = self.measurement.dominance
        told = {"at": details.at, "left": details.left_out}
        return {
            "run": self._checksum,
            "pairs": self.measurement.n_pairs,
            "features": len(dominance.scores),
            "seed": self.seed,
            "listed": self._top["image"].shape[1],
            "levels": dominance.levels.shape[1],
            "bins": SIZE_BINS,
            "classes": [{"name": name, "title": CLASS_NAMES[name]} for name in CLASSES],
            "rules": [self._rule(rule) for rule in self.rules],
            "columns": [_column(column) for column in self._columns],
            "numbers": list(index),
            "captions": [self._caption(number) for number in index],
            "ratio": [small.ratios.get(number, 0) for number in index],
            "sheets": {"small": small.listing(index), "large": large.listing(index)},
            "null": self._null,
            "random": self.random(),
            "recurring": None if self.recurring is None else sorted(self.recurring),
            "names": details.names,
            "details": told if details.texts else None,
            "examples": [
                {"title": e.title, "note": e.note, "items": [[index[n], *ls] for n, ls in e.items]}
                for e in self.examples
            ],
        }

    def _caption(self, number: int) -> str:
        text = self.pairs.texts[number]
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

    def _values(self, stream: str) -> Tensor:
        return self.measurement.examples[stream].values[:, :_TOP]

    def _shown_pairs(self) -> list[int]:
        numbers = {n for part in self.examples for n, _ in part.items}
        for top in self._top.values():
            numbers.update(top[top >= 0].tolist())
        return sorted(numbers)

    def _indexed(self, stream: str) -> Tensor:
        """Return the places of a stream's top pairs among those of the page, -1 for none."""
        top = self._top[stream].contiguous()
        places = torch.searchsorted(torch.tensor(list(self._index), dtype=torch.int64), top)
        return torch.where(top < 0, -1, places)

    def _rule(self, rule: Cut) -> dict[str, Any]:
        dominance, members = self.measurement.dominance, self.rules[rule]
        low, high = dominance.cuts(rule)
        member = [len(CLASSES) - 1] * len(dominance.scores)
        for code, name in enumerate(CLASSES):
            for k in members[name]:
                member[k] = code
        return {
            "name": rule,
            "title": RULE_NAMES[rule],
            "note": _NOTES[rule],
            "cuts": [_number(low), _number(high)],
            "member": "".join(map(str, member)),
            "counts": [len(members[name]) for name in CLASSES],
            "bars": [_histogram(dominance.scores[members[name]]) for name in CLASSES[:-1]],
            "strongest": self.strongest(rule),
        }


def to_json(value: object) -> str:
    r"""Write compact JSON that can stand inside a script element, whatever the captions say.

    Example:
        >>> print(to_json(["</script>", 1.5]))
        ["\u003c/script>",1.5]
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "title": column.title,
        "explanation": column.explanation,
        "format": column.format,
        "shown": column.shown,
    }


def _column_block(column: Column) -> Block:
    # A p-value may be smaller than the smallest float32, and a count larger than it holds exactly.
    kind = "f8" if column.format in ("p", "count") else "f4"
    values = column.values.double()
    return block(
        f"column {column.name}",
        values if kind == "f8" and column.format == "count" else rounded(values),
        kind,
    )


def _histogram(scores: Tensor) -> list[int]:
    return [int(count) for count in torch.histc(scores.float(), BINS, 0.0, 1.0)]


def _number(value: float) -> float | int | None:
    """Round to four digits; None for what is not finite: JSON knows no NaN."""
    if not math.isfinite(value):
        return None
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.4g}")
