"""Show answers beside each other, word by word where somebody looks on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from vlm_edit.ground.errors import line, printable
from vlm_edit.report import Table

NO_WORDS = "(no words)"
_NARROWEST = 34  # characters of a column that can still be read


class Screen:
    """Show answers to one question: columns on a wide terminal, else one below the other.

    Args:
        titles: Of the answers, in their order; with one alone its title is not shown.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._console = Console(highlight=False)
        self._titles = [line(title) for title in titles]
        self._texts = [""] * len(titles)
        wide = self._console.width >= len(titles) * _NARROWEST
        self.streams = self._console.is_terminal
        columns = self.streams and wide and len(titles) > 1
        self._live = Live(console=self._console, refresh_per_second=12) if columns else None

    def __enter__(self) -> Self:
        """Begin."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave on the screen what is there."""
        if self._live is not None:
            self._live.stop()

    def begin(self, number: int) -> None:
        """Go on to the answer of this number."""
        if self._live is None and len(self._titles) > 1:
            self._write(f"{'' if number == 0 else chr(10)}{self._titles[number]}:\n")

    def say(self, number: int, words: str) -> None:
        """Show more words of an answer."""
        words = words if self._texts[number] else words.lstrip()
        self._texts[number] += words
        if self._live is not None:
            self._live.update(self._columns())
        else:
            self._write(words)

    def finish(self, number: int, text: str) -> None:
        """Show an answer as it is, whole."""
        streamed, self._texts[number] = self._texts[number], text or NO_WORDS
        if self._live is not None:
            self._live.update(self._columns(), refresh=True)
        else:
            self._write(("" if streamed else self._texts[number]) + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _columns(self) -> RichTable:
        table = _table(self._titles)
        table.add_row(*map(Text, self._texts))
        return table


def print_table(table: Table) -> None:
    """Print a table of answers: wrapped to a terminal's width, else a line a row."""
    console = Console(highlight=False)
    if not console.is_terminal:
        rows = [[line(cell) for cell in row] for row in table.rows]
        print(Table(table.title, table.columns, rows, table.note))
        return
    wrapped = _table([printable(name) for name in table.columns])
    for row in table.rows:
        wrapped.add_row(*(Text(line(cell)) for cell in row))
    console.print(Text(printable(table.title)))
    console.print(wrapped)
    console.print(Text(table.note))


def _table(titles: Sequence[str]) -> RichTable:
    table = RichTable(box=None, padding=(0, 2, 0, 0), expand=False, pad_edge=False)
    for title in titles:
        ratio = {"ratio": 1, "overflow": "fold"}
        table.add_column(Text(title, style="bold"), **ratio)  # type: ignore[arg-type]
    table.expand = True
    return table
