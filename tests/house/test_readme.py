"""Every ```python block of README.md and docs/*.md runs, in order, each page in one namespace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Block, blocks_of, python_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SECONDS = 300


def script_of(blocks: list[Block]) -> str:
    """The blocks that run as one script in which each line keeps its number on the page."""
    lines: list[str] = []
    for block in blocks:
        if block.no_run is None:
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n"


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in a process of its own, in `folder`.

    Raises:
        AssertionError: A block fails; the message opens with the page and the line.
    """
    # A file rather than exec: tracebacks, inspect and nnsight all read the source of what runs.
    script = folder / f"{page.stem}_blocks.py"
    script.write_text(script_of(blocks_of(page)), "utf-8")
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=work,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        lines = re.findall(rf'File "{re.escape(str(script))}", line (\d+)', done.stderr)
        line = lines[-1] if lines else "?"
        error = done.stderr.replace(str(script), str(page))
        raise AssertionError(f"{page}:{line}: this code fails\n{done.stdout}\n{error}")


def describe(page: Path) -> str:
    blocks = blocks_of(page)
    skipped = sum(block.no_run is not None for block in blocks)
    return f"{page.relative_to(ROOT)}: {len(blocks) - skipped} run, {skipped} not run"


def pages_with_code() -> list[Path]:
    return [page for page in PAGES if blocks_of(page)]


@pytest.mark.parametrize("page", pages_with_code(), ids=describe)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


def test_readme_shows_code_that_runs() -> None:
    readme = blocks_of(ROOT / "README.md")
    assert any(block.no_run is None for block in readme), "README.md has no ```python block"


def test_a_block_that_is_not_run_says_why() -> None:
    silent = [
        f"{page.relative_to(ROOT)}:{block.line}"
        for page in PAGES
        for block in blocks_of(page)
        if block.no_run == ""
    ]
    assert not silent, f"write the reason in <!-- no-run: reason --> before {silent}"


def test_readme_holds_the_two_commands_each_on_one_line() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    marked = dict(re.findall(r"^<!-- ci: (\w+) -->\n```\w*\n(.*)\n```$", text, re.MULTILINE))
    assert set(marked) == {"demo", "tests"}
    assert marked["demo"].endswith("&& .venv/bin/vlm-edit demo")
    assert marked["tests"].endswith(
        "&& .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile"
    )


PAGE = """\
# A page

```bash
not python
```

```python
x = 1
```

1. In a list:

   ```python
   y = x + 1
   assert y == 2
   ```

<!-- no-run: needs a model of 14 GB -->

```python
raise RuntimeError
```

```python
assert y == 3, "wrong"
```
"""


def test_blocks_are_found_with_their_lines_and_reasons() -> None:
    found = [(block.line, block.no_run) for block in python_blocks(PAGE)]
    assert found == [(8, None), (14, None), (21, "needs a model of 14 GB"), (25, None)]


def test_a_failing_block_is_named_by_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, "utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:25: this code fails(?s:.*)wrong"):
        run_page(page, tmp_path)


def test_a_syntax_error_is_named_by_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\ny = = 2\n```\n", "utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:5: this code fails"):
        run_page(page, tmp_path)


@pytest.mark.parametrize("comment", ["<!-- no-run: -->", "<!-- no-run -->"])
def test_a_missing_reason_reads_as_empty(comment: str) -> None:
    (block,) = python_blocks(f"{comment}\n```python\nx\n```\n")
    assert block.no_run == ""


def test_an_unclosed_block_is_an_error() -> None:
    with pytest.raises(AssertionError, match="opened on line 3 is never closed"):
        python_blocks("a\n\n```python\nx = 1\n")
