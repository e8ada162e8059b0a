"""What both demonstrations put on their pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_edit.measures.nulls import Census
from vlm_edit.measuring import Measurement, Pairs
from vlm_edit.report import Examples, Table, has_plotly, write_page
from vlm_edit.tasks.demo.factors import Check


def write_if_possible(
    page: Path,
    found: Measurement,
    pairs: Pairs,
    title: str,
    tables: Sequence[Table],
    examples: Sequence[Examples],
    census: Census | None = None,
) -> str:
    """Write the page, if plotly is there; say where it is, or why it is not."""
    if not has_plotly():
        return "not written: it needs plotly; pip install 'vlm-edit[report]'"
    write_page(page, found, pairs, title, tables, examples, census=census)
    return str(page)


def check_table(verdicts: Sequence[Check]) -> Table:
    """Make a table of claims with their evidence."""
    rows = [("holds" if c.holds else "not shown", c.claim, c.evidence) for c in verdicts]
    return Table("Checked against the known factors", ("", "claim", "evidence"), rows)
