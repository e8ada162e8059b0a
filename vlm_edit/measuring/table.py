"""A measurement as a table: a row per feature, of all of them or of the first of a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

import torch
from torch import Tensor

from vlm_edit.dictionaries import expect_features
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.measures.dominance import CLASSES, RULE, Cut, Dominance
from vlm_edit.measures.interpretability import TopExamples
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring.gathering import Held
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import texts_digest
from vlm_edit.measuring.reader import STREAMS

if TYPE_CHECKING:
    from vlm_edit.measuring.result import Measurement

LISTED = 9  # examples per feature
_BETWEEN = " | "  # files, whose names may hold blanks
_SHOWN = ("mds", "mds_low", "mds_high", "active_pairs", "mean_image", "mean_text", "top_images")


def table(measurement: Measurement) -> dict[str, list[Any]]:
    """Return columns by name, as ``Measurement.table`` does."""
    dominance = measurement.dominance
    names = {rule: class_labels(dominance, rule) for rule in get_args(Cut)}
    columns: dict[str, list[Any]] = {
        "feature": list(range(len(dominance.scores))),
        "class": names[RULE],
        "paired": dominance.paired().tolist(),
        **{f"class_{rule}": labels for rule, labels in names.items() if rule != RULE},
    }
    columns |= {name: values.tolist() for name, values in _numbers(measurement).items()}
    for stream in STREAMS:
        files = measurement.files if stream == "image" else {}
        top = measurement.examples[stream].numbers[:, :LISTED].tolist()
        columns[f"top_{stream}s"] = [_top(row, files) for row in top]
    return columns


def _numbers(measurement: Measurement) -> dict[str, Tensor]:
    dominance = measurement.dominance
    low, high = dominance.intervals()
    matched, shuffled = dominance.cofiring()
    return {
        "mds": dominance.scores,
        "mds_low": low,
        "mds_high": high,
        "swap_p": dominance.swap_test(),
        "active_pairs": dominance.active,
        "image_active": dominance.image_active,
        "text_active": dominance.text_active,
        **_sizes(measurement),
        "cofiring_matched": matched,
        "cofiring_shuffled": shuffled,
        "cofiring_p": dominance.cofiring_test(),
        "modality_score": dominance.modality_score(),
        "modality_score_energy": dominance.modality_score(energy=True),
        "mutual_information": dominance.mutual_information(),
        "correlation": dominance.correlation(),
        **measurement.interpretability,
    }


def _sizes(measurement: Measurement) -> dict[str, Tensor]:
    """Return the mean and the largest activation per stream; NaN where it is not known."""
    columns = {}
    for stream in STREAMS:
        sizes = measurement.sizes.get(stream)
        unknown = torch.full_like(measurement.dominance.scores, torch.nan)
        columns[f"mean_{stream}"] = unknown if sizes is None else sizes.mean
        columns[f"max_{stream}"] = (
            unknown
            if sizes is None
            else torch.where(sizes.active > 0, sizes.largest.double(), torch.nan)
        )
    return columns


def _top(row: Sequence[int], files: Mapping[int, str]) -> str:
    numbers = [n for n in row if n >= 0]
    if files:
        return _BETWEEN.join(files.get(n, str(n)) for n in numbers)
    return " ".join(map(str, numbers))


def files_of(examples: Mapping[str, TopExamples], pairs: Pairs) -> dict[int, str]:
    """Return the files of each feature's top images by number, below the pairs' own folder.

    Images in memory have none.
    """
    folder = Path(pairs.name)
    folder = folder if os.path.isdir(folder) else folder.parent
    files = {}
    for number in examples["image"].numbers[:, :LISTED].unique().tolist():
        image = pairs.images[number] if number >= 0 else None
        if isinstance(image, Held):
            files[number] = image.name
        elif isinstance(image, Path):
            below = pairs.name != "pairs" and image.is_relative_to(folder)
            files[number] = str(image.relative_to(folder) if below else image)
    return files


def class_labels(dominance: Dominance, rule: Cut) -> list[str]:
    """Return the name of each feature's class, [m]."""
    members = dominance.classes(rule)
    names = {feature: name for name in CLASSES for feature in members[name]}
    return [names[feature] for feature in range(len(dominance.scores))]


@dataclass(frozen=True, eq=False, repr=False)
class Features(Sequence[int]):
    """Some features in an order, with what was measured of each: a list of their numbers.

    Rules take it as such, ``Ablate(measurement.top("vision"))``; a notebook shows it as a table.

    Attributes:
        title: Which they are.
        numbers: The features.
        columns: A value of each by name.
    """

    title: str
    numbers: tuple[int, ...]
    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, measurement: Measurement, title: str, numbers: Sequence[int]) -> Features:
        """Look up what a table shows of some features."""
        known = _numbers(measurement)
        columns: dict[str, list[Any]] = {
            name: known[name][list(numbers)].tolist() for name in _SHOWN if name in known
        }
        top = measurement.examples["image"].numbers[list(numbers), :3].tolist()
        columns["top_images"] = [_top(row, measurement.files) for row in top]
        return cls(title, tuple(numbers), columns)

    def __len__(self) -> int:
        """Return their number."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Features: ...
    def __getitem__(self, index: int | slice) -> int | Features:
        """Return one number, or some of the features as a table again."""
        if not isinstance(index, slice):
            return self.numbers[index]
        columns = {name: values[index] for name, values in self.columns.items()}
        return Features(self.title, self.numbers[index], columns)

    def __eq__(self, other: object) -> bool:
        """Compare the numbers, with a list too."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say on a line which they are."""
        shown = ", ".join(map(str, self.numbers[:_FIRST]))
        more = ", ..." if len(self) > _FIRST else ""
        return one_line(f"Features({self.title}: {shown}{more})")

    def __str__(self) -> str:
        """Align a table for a terminal."""
        names, *rows = [("feature", *self.columns), *self._cells()]
        widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in (names, *rows)
        ]
        rest = [self._rest] if self._rest else []
        return "\n".join([f"{self.title}, {several(len(self), 'feature')}", *lines, *rest])

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        title = f"{self.title}, {several(len(self), 'feature')}"
        return card(title, None, ("feature", *self.columns), list(self._cells()), self._rest)

    @property
    def _rest(self) -> str:
        return f"and {len(self) - _ROWS:,} more" if len(self) > _ROWS else ""

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for i, number in enumerate(self.numbers[:_ROWS]):
            yield (str(number), *(_cell(values[i]) for values in self.columns.values()))


_FIRST = 12  # numbers on a line
_ROWS = 25  # of a table that is shown


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def quantile(
    sizes: Mapping[str, ActivationSizes], features: Any, level: float, stream: str
) -> float | list[float]:
    """Return quantiles of activations, as ``Measurement.quantile`` does."""
    names = STREAMS if stream == "both" else (stream,)
    if not set(names) <= set(STREAMS):
        raise UnknownName(f"no stream {stream!r}: use 'image', 'text' or 'both'")
    if not sizes:
        raise CannotKnow(
            "this run is of a former version, which did not keep how large activations are: "
            "measure again"
        )
    chosen = sizes[names[0]] if len(names) == 1 else sizes["image"].together(sizes["text"])
    numbers = torch.as_tensor(features)
    if numbers.dtype.is_floating_point or numbers.dtype == torch.bool or numbers.ndim > 1:
        raise BadArgument(f"features must be whole numbers, got {features!r}")
    expect_features(numbers.flatten().tolist(), len(chosen.sums))
    values = chosen.quantile(level)[numbers.flatten()].tolist()
    for number, value in zip(numbers.flatten().tolist(), values, strict=True):
        if value == value:
            continue
        where = "the tokens" if stream == "both" else f"{stream} tokens"
        raise CannotKnow(
            f"feature {number} is never active in {where} that were measured: it has no quantile"
            if not int(chosen.active[number])
            else f"the {level} quantile of feature {number} lies below a sixteenth of its largest "
            f"activation, {float(chosen.largest[number]):.4g}, and is not kept: ask for a higher "
            "one"
        )
    return values if numbers.ndim else values[0]


def host_words(provenance: Mapping[str, Any]) -> str:
    """Name the host that was measured, without the folders above it, which concern nobody."""
    host = provenance.get("host", {})
    name = str(host.get("name") or host.get("architecture") or "")
    return os.path.basename(os.path.normpath(name)) if os.path.isabs(name) else name


def title_of(site: str, provenance: Mapping[str, Any]) -> str:
    """Return a title for a page that names site and host."""
    return f"Features at {site} of {host_words(provenance) or 'a host'}"


def expect_measured(provenance: Mapping[str, Any], pairs: Pairs) -> None:
    """Refuse other pairs than those that were measured, where it is known which.

    Raises:
        BadArgument: Other texts, or another number of them.
    """
    there = provenance.get("pairs", {})
    count = there.get("of", there.get("count", len(pairs)))
    if count != len(pairs):
        raise BadArgument(
            f"{count:,} pairs were measured, and {pairs.name} has {len(pairs):,}: pass "
            "those that were measured, all of them"
        )
    if there.get("texts", texts_digest(pairs)) != texts_digest(pairs):
        raise BadArgument(
            f"{pairs.name} has other texts than the pairs that were measured: pass those"
        )
