"""Every relative link of a page leads to a file that is there, and to a heading of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("docs", "vlm_edit") for page in sorted((ROOT / folder).rglob("*.md"))),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ +(.*?) *$", FENCED.sub("", text), re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


def dead(page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for link in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            yield f"{page.name}: {link}: there is no such file"
        elif heading and heading not in anchors(target.read_text("utf-8")):
            yield f"{page.name}: {link}: there is no such heading"


def test_every_relative_link_leads_somewhere() -> None:
    assert sum(len(LINK.findall(page.read_text("utf-8"))) for page in PAGES) > 100
    assert not [told for page in PAGES for told in dead(page)]


@pytest.mark.parametrize("link", ["gone.md", "other.md#gone", "#gone", "../other.md"])
def test_a_link_that_leads_nowhere_is_found(link: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "other.md").write_text("# What `it` is\n", "utf-8")
    page = folder / "page.md"
    page.write_text(f"# A page\n[this]({link}), [that](other.md#what-it-is), [here](#a-page)\n")
    assert [told.split(": ")[1] for told in dead(page)] == [link]
