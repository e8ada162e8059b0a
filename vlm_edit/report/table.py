"""A table that prints itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_edit.ground.errors import printable


@dataclass(frozen=True)
class Table:
    """A titled table of text.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells, as many per row as there are headings.
        note: What a reader must know to read it; may be empty.

    Example:
        >>> print(Table("Classes", ("class", "features"), (("vision", "70"), ("cross", "358"))))
        Classes
        class   features
        ------  --------
        vision  70
        cross   358
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """Align columns for a terminal, which the text of a cell can tell nothing."""
        lines = [[printable(cell) for cell in cells] for cells in (self.columns, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["-" * width for width in widths])
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        parts = [
            printable(self.title),
            *(line.rstrip() for line in text),
            *filter(None, [self.note]),
        ]
        return "\n".join(parts)
