"""Several runs side by side: the page of each leads to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_edit.measures.dominance import CLASSES
from vlm_edit.measuring import Measurement
from vlm_edit.report.table import Table
from vlm_edit.report.tables import CLASS_NAMES, RULE_NAMES


@dataclass(frozen=True, eq=False)
class Run:
    """A run among others.

    Attributes:
        name: That tells it from the others.
        page: Where its page lies, as seen from the others', such as ``compare-2.html``.
        measurement: What was measured.
    """

    name: str
    page: str
    measurement: Measurement


def runs_table(runs: Sequence[Run]) -> Table:
    """Show the sizes of classes of several runs, by each rule, with what each run is."""
    rows = []
    for rule, title in RULE_NAMES.items():
        for run in runs:
            dominance = run.measurement.dominance
            sizes = dominance.classes(rule)
            live = len(dominance.scores) - len(sizes["dead"])
            rows.append(
                (
                    title,
                    run.name,
                    run.measurement.site,
                    f"{len(dominance.scores):,}",
                    f"{run.measurement.n_pairs:,}",
                    *(_share(len(sizes[name]), live, name) for name in CLASSES),
                )
            )
    columns = ("rule", "run", "site", "features", "pairs", *(CLASS_NAMES[c] for c in CLASSES))
    note = (
        "In brackets: the share of the live features. Runs of other pairs, other numbers of pairs "
        "or other dictionaries differ by that too: a size alone is no finding."
    )
    return Table("Classes of the runs side by side", columns, rows, note)


def _share(size: int, live: int, name: str) -> str:
    return f"{size:,}" if name == "dead" or not live else f"{size:,} ({size / live:.0%})"
