"""The ```python blocks of a page, for tests that run them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
NO_RUN = re.compile(r"^\s*<!--\s*no-run\b\s*:?\s*(?P<reason>.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    line: int  # of its first line of code, counted from 1
    code: str
    no_run: str | None  # the reason it is not run, None for one that is


def python_blocks(text: str) -> list[Block]:
    """The ```python blocks of a page, in order."""
    blocks = []
    lines = text.splitlines()
    opening: re.Match[str] | None = None
    start = 0
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if opening is None:
            if fence:
                opening, start = fence, number + 1
        elif line.strip().startswith(opening["ticks"]) and not line.strip().strip(line.strip()[0]):
            if opening["language"] in ("python", "py"):
                before = [text for text in lines[: start - 1] if text.strip()][-1:]
                comment = NO_RUN.match(before[0]) if before else None
                code = textwrap.dedent("\n".join(lines[start:number]))
                blocks.append(Block(start + 1, code, comment["reason"] if comment else None))
            opening = None
    if opening is not None:
        raise AssertionError(f"the code block opened on line {start} is never closed")
    return blocks


def blocks_of(page: Path) -> list[Block]:
    try:
        return python_blocks(page.read_text("utf-8"))
    except AssertionError as error:
        raise AssertionError(f"{page}: {error}") from None


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&'


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
