"""Tables of a measurement."""

from __future__ import annotations

from vlm_edit.measures.dominance import Cut, how_many_pairs
from vlm_edit.measures.nulls import Census, Halves
from vlm_edit.measures.stability import HalvesStability, SeedsStability
from vlm_edit.measuring import Measurement, Pairs
from vlm_edit.report.table import Table

CLASS_NAMES = {
    "vision": "vision-dominant",
    "language": "language-dominant",
    "cross": "cross-modal",
    "undecided": "undecided",
    "dead": "dead",
}
RULE_NAMES: dict[Cut, str] = {
    "interval": "interval",
    "significant": "significant",
    "fixed": "fixed",
    "sd": "mean -+ sd",
}

_DRAWS = 100


def class_table(measurement: Measurement) -> Table:
    """Show the sizes of the classes by each rule, with what chance would give."""
    rows = []
    for rule, name in RULE_NAMES.items():
        low, high = measurement.dominance.cuts(rule)
        chance = measurement.dominance.expected_classes(rule, draws=_DRAWS)
        sizes = [
            f"{len(features)} ({chance[kind].value:.0f})"
            for kind, features in measurement.dominance.classes(rule).items()
        ]
        rows.append((name, f"{low:.2f}, {high:.2f}", *sizes))
    names = [CLASS_NAMES[name] for name in measurement.dominance.classes("sd")]
    note = (
        f"MDS over live features: mean {measurement.dominance.mean:.3f}, "
        f"sd {measurement.dominance.sd:.3f}. Modality gap {measurement.gap:.3f}.\n"
        "In brackets: expected where modality has no effect, by swapping image and text at random "
        "inside pairs.\ninterval: the 90 % interval of the score lies wholly beyond a cut, or "
        "between both; else undecided.\nsignificant: the score lies beyond, and differs from .5; "
        "what lies between is cross-modal unasked.\nmean -+ sd, the paper's: calls about a third "
        "dominant on any data.\nFiring together on matched pairs more than by chance: "
        f"{int(measurement.dominance.paired().sum())} features.\n{_needed(measurement)}\n"
        f"{measurement.dominance.sample()}"
    )
    if stopping := measurement.stopping():
        note += f"\n{stopping}"
    for warning in measurement.warnings():
        note += f"\nWARNING: {warning}"
    return Table(
        "Modality Dominance Score: classes of features", ("rule", "cuts", *names), rows, note
    )


def _needed(measurement: Measurement) -> str:
    needed = str(how_many_pairs(measurement)).replace("; ", ";\n")
    return f"By interval, {needed}." if needed[0].isdigit() else f"{needed[0].upper()}{needed[1:]}."


def census_table(census: Census) -> Table:
    """Show how many features of each class the data have, and how many their nulls."""
    return Table(
        "Census: features by class, of the data and of nulls",
        census.columns,
        census.cells(),
        census.note(),
    )


def halves_table(halves: Halves) -> Table:
    """Show how well scores and classes come again in halves of the pairs, as a census keeps it."""
    return Table("Stability: halves of the pairs", halves.columns, halves.cells, halves.told)


def stability_table(stability: HalvesStability | SeedsStability) -> Table:
    """Show how well scores and classes come again."""
    halves = isinstance(stability, HalvesStability)
    return Table(
        f"Stability: {'halves of the pairs' if halves else 'dictionaries trained anew'}",
        stability.columns,
        stability.cells(),
        stability.note(),
    )


def feature_table(
    measurement: Measurement, pairs: Pairs, shown: int = 4, rule: Cut = "interval"
) -> Table:
    """Show the strongest features of each class with their best captions."""
    strength, rows = measurement.strength(), []
    for name, members in measurement.dominance.classes(rule).items():
        if name == "dead":
            continue
        for k in sorted(members, key=lambda k: -strength[k])[:shown]:
            texts = measurement.examples["text"].of(k) or measurement.examples["image"].of(k)
            captions = list(dict.fromkeys(pairs.texts[number] for number, _ in texts))[:3]
            score = f"{float(measurement.dominance.scores[k]):.2f}"
            active = str(int(measurement.dominance.active[k]))
            rows.append((CLASS_NAMES[name], str(k), score, active, " | ".join(captions)[:78]))
    return Table(
        "The strongest features of each class",
        ("class", "feature", "MDS", "pairs", "captions that activate it most"),
        rows,
        "Where no caption activates a feature, those of the images that do. The page has pictures.",
    )
