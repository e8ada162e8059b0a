"""What the page says of the whole: key figures, sizes of classes, warnings, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_edit.ground.notebook import several
from vlm_edit.ground.statistics import Estimate
from vlm_edit.measures.dominance import CLASSES, how_many_pairs
from vlm_edit.measures.nulls import LITTLE
from vlm_edit.measuring import Measurement, Pairs
from vlm_edit.report.details import Bundles
from vlm_edit.report.folders import folders_of, without_folders
from vlm_edit.report.sprites import Sprites
from vlm_edit.report.tables import CLASS_NAMES, RULE_NAMES

_DRAWS = 100
_LISTED = 8


@dataclass(frozen=True)
class ClassRow:
    """Sizes of the classes by one rule."""

    name: str
    cuts: str
    sizes: Sequence[tuple[str, int, str]]  # class, features, a range by chance


@dataclass(frozen=True)
class Overview:
    """Texts for the top of the page."""

    figures: Sequence[tuple[str, str, str]]  # what, value, a word more
    classes: Sequence[tuple[str, str]]
    rules: Sequence[ClassRow]
    warnings: Sequence[str]
    provenance: Sequence[tuple[str, str]]
    little: str

    @classmethod
    def of(cls, measurement: Measurement, pairs: Pairs, seed: int) -> Overview:
        """Write the texts for a measurement."""
        return cls(
            _figures(measurement),
            [(name, CLASS_NAMES[name]) for name in CLASSES],
            _rules(measurement),
            measurement.warnings(),
            [*_flat(_provenance(measurement, pairs)), ("seed of the random features", str(seed))],
            LITTLE,
        )


def _figures(measurement: Measurement) -> list[tuple[str, str, str]]:
    dominance = measurement.dominance
    live = int((~dominance.dead).sum())
    return [
        ("Features", f"{len(dominance.scores):,}", f"{live:,} of them active"),
        ("Pairs", f"{measurement.n_pairs:,}", f"{len(measurement.skipped):,} left out"),
        ("Images", f"{dominance.images:,}", "what intervals and tests count"),
        ("Mean MDS", _decimal(dominance.mean), f"sd {_decimal(dominance.sd)}"),
        ("Modality gap", _decimal(measurement.gap), "distance of the centroids"),
        ("Texts cut short", f"{measurement.truncated:,}", "at the host's limit"),
    ]


def _rules(measurement: Measurement) -> list[ClassRow]:
    rows = []
    for rule, name in RULE_NAMES.items():
        low, high = measurement.dominance.cuts(rule)
        members = measurement.dominance.classes(rule)
        sizes = [(key, len(members[key]), "") for key in CLASSES]
        rows.append(ClassRow(name, f"{low:.2f}, {high:.2f}", sizes))
        estimates = measurement.dominance.expected_classes(rule, draws=_DRAWS)
        chance = [(key, round(estimates[key].value), _range(estimates[key])) for key in CLASSES]
        rows.append(ClassRow(f"{name}, by chance", "", chance))
    return rows


def _range(expected: Estimate) -> str:
    return f"[{expected.low:.0f}, {expected.high:.0f}]"


def notes(measurement: Measurement, pairs: Pairs, sprites: Sprites, facts: Bundles) -> list[str]:
    """Say what a measurement and its page leave out."""
    needed = str(how_many_pairs(measurement))
    sentences = [
        *filter(None, [measurement.stopping()]),
        "By the rule interval a label is earned: the interval of a score counts images. "
        f"{needed[0].upper()}{needed[1:]}.",
    ]
    if measurement.skipped:
        number, reason = measurement.skipped[0]
        reason = without_folders(reason, folders_of(pairs, measurement))
        sentences.append(
            f"{several(len(measurement.skipped), 'pair')} left out: no image could be read; "
            f"the first is number {number}: {reason}."
        )
    if sprites.left_out:
        sentences.append(
            f"{sprites.left_out} pictures did not fit into the page: features of little activation "
            "show captions in their place."
        )
    if facts.left_out:
        sentences.append(
            f"Heat maps of {several(len(facts.left_out), 'feature')} did not fit into the page: "
            "those of the most active ones are there."
        )
    if sprites.unreadable:
        sentences.append(
            f"{sprites.unreadable} pictures could not be opened; captions stand for them."
        )
    return sentences


def _provenance(measurement: Measurement, pairs: Pairs) -> dict[str, Any]:
    return {
        "data": pairs.name,
        "site": measurement.site,
        "zeros": measurement.dominance.zeros,
        **measurement.provenance,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the leaves of nested mappings, each with its path.

    Example:
        >>> _flat({"host": {"class": "CLIPModel"}, "seeds": [0, 1]})
        [('host: class', 'CLIPModel'), ('seeds', '0, 1')]
    """
    rows = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}: ")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", _listed(value)))
        else:
            rows.append((f"{prefix}{name}", without_folders(str(value))))
    return rows


def _listed(values: Sequence[Any]) -> str:
    more = f", and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    return ", ".join(without_folders(str(value)) for value in values[:_LISTED]) + more


def _decimal(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
