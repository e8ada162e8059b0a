"""A table that prints itself, and writes itself for papers and spreadsheets."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_edit.ground.errors import printable
from vlm_edit.ground.files import write_text

# What TeX reads as more than itself; <, > and | are other characters in its oldest fonts.
_TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)
_NUMBER = re.compile(r"[-+]?\.?\d")


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

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        r"""Return headings and rows as CSV, for spreadsheets and pandas; title and note stay out.

        Args:
            path: A file to write it to as well, whole or not at all; what is there is replaced.

        Raises:
            VlmEditError: The file cannot be written.

        Example:
            >>> Table("Classes", ("class", "features"), (("vision, sure", "70"),)).to_csv()
            'class,features\n"vision, sure",70\n'
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return _written(text.getvalue(), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None) -> str:
        r"""Return a LaTeX table, which needs ``\usepackage{booktabs}``.

        The title is its caption, the note stands below, and cells are as they are shown: columns
        of numbers stand on the right.

        Args:
            path: A file to write it to as well, whole or not at all; what is there is replaced.

        Raises:
            VlmEditError: The file cannot be written.

        Example:
            >>> print(Table("Read & lost", ("class", "share"), (("vision", "70%"),)).to_latex())
            \begin{table}
            \centering
            \caption{Read \& lost}
            \begin{tabular}{lr}
            \toprule
            class & share \\
            \midrule
            vision & 70\% \\
            \bottomrule
            \end{tabular}
            \end{table}
            <BLANKLINE>
        """
        head, *rows = (_tex_row(cells) for cells in (self.columns, *self.rows))
        sides = "".join(map(_side, zip(*self.rows, strict=True))) or "l" * len(self.columns)
        note = " ".join(_tex(line) for line in self.note.split("\n"))
        lines = [
            *(r"\begin{table}", r"\centering", rf"\caption{{{_tex(self.title)}}}"),
            *(rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *rows),
            *(r"\bottomrule", r"\end{tabular}"),
            *([r"\par\smallskip", rf"{{\footnotesize {note}\par}}"] if note else []),
            r"\end{table}",
        ]
        return _written("\n".join(lines) + "\n", path)


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_text(path, text, "table")
    return text


def _tex(text: object) -> str:
    return printable(text).translate(_TEX)


def _tex_row(cells: Sequence[str]) -> str:
    # Behind the end of a row a star or a bracket would be an argument of it.
    row = " & ".join(map(_tex, cells))
    return f"{'{}' if row.startswith(('*', '[')) else ''}{row} \\\\"


def _side(column: Sequence[str]) -> str:
    cells = [cell for cell in map(str, column) if cell]
    return "r" if cells and all(map(_NUMBER.match, cells)) else "l"
