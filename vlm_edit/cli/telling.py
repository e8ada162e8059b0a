"""What a verb tells: for people as it comes, with ``--json`` as one object at the end.

Results go to standard output; warnings, and what was left out, to standard error.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_edit.cli import flags
from vlm_edit.ground.errors import BadArgument, line, printable
from vlm_edit.ground.files import make_folder, write_together
from vlm_edit.report import Table

_WARNING = "WARNING: "  # begins a line of a table's note


@dataclass
class Result:
    """Collect what a verb tells.

    Attributes:
        tables: As they are printed, cell by cell.
        files: What was written: of what kind, and where.
        figures: Numbers behind the tables, by name.
        left_out: Pairs whose image could not be read.
        warnings: As on standard error.
        lines: What else was told.
        status: The exit code.
    """

    tables: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    status: int = 0


_result: ContextVar[Result | None] = ContextVar("result", default=None)
_kept: ContextVar[list[Table] | None] = ContextVar("kept", default=None)


@contextmanager
def as_json() -> Iterator[Result]:
    """Collect what is told within the block, and print it as one object where none fails."""
    result, printed = Result(), io.StringIO()
    token = _result.set(result)
    try:
        with redirect_stdout(printed):
            yield result
    finally:
        _result.reset(token)
    result.lines += [text for text in printed.getvalue().splitlines() if text.strip()]
    print(json.dumps(_known(vars(result)), allow_nan=False, default=str))


@contextmanager
def tables_into(folder: Path, overwrite: bool) -> Iterator[None]:
    """Write the tables told within the block as CSV and LaTeX, all of them, where none fails.

    Args:
        folder: Where; made if need be.
        overwrite: Whether it may hold something already.

    Raises:
        BadArgument: It does, or is a file; nothing has been done.
        VlmEditError: They cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise BadArgument(
            f"{folder} is there already, and nothing has changed: name another folder with --tables"
        )
    tables: list[Table] = []
    token = _kept.set(tables)
    try:
        yield
    finally:
        _kept.reset(token)
    if not tables:
        warn(f"nothing was written to {folder}, since this prints no table")
        return
    files = {}
    for number, one in enumerate(tables, 1):
        name = f"{number:02}-{_slug(one.title)}"
        files[folder / f"{name}.csv"] = one.to_csv().encode("utf-8", "replace")
        files[folder / f"{name}.tex"] = one.to_latex().encode("utf-8", "replace")
    make_folder(folder)
    write_together(files, "tables")
    wrote("tables", folder)


def keep(*tables: Table) -> None:
    """Keep tables that were told already, for the folder of ``--tables``."""
    kept = _kept.get()
    if kept is not None:
        kept += tables


def hush() -> None:
    """Draw no progress bars in this process."""
    os.environ["TQDM_DISABLE"] = "1"
    from transformers.utils import logging

    logging.disable_progress_bar()


def table(*tables: Table, show: Callable[[Table], None] = print) -> None:
    """Tell tables; what their notes warn of is told as warnings are."""
    result = _result.get()
    shown = []
    for one in tables:
        notes = one.note.split("\n")
        for text in notes:
            if text.startswith(_WARNING):
                warn(text.removeprefix(_WARNING))
        told = "\n".join(text for text in notes if not text.startswith(_WARNING))
        shown.append(replace(one, note=told))
    keep(*shown)
    if result is None:
        for number, one in enumerate(shown):
            if number:
                print()
            show(one)
    else:
        result.tables += [
            {"title": t.title, "columns": list(t.columns), "rows": list(map(list, t.rows)),
             "note": t.note}
            for t in shown
        ]  # fmt: skip


def wrote(what: str, place: object, note: str = "") -> None:
    """Tell where something was written."""
    result = _result.get()
    if result is None:
        print(f"{what + ':':7} {place}{f' ({note})' if note else ''}")
    else:
        result.files.append({"what": what, "path": str(place), **({"note": note} if note else {})})


def figures(name: str, value: Any) -> None:
    """Tell numbers, which people read in tables."""
    result = _result.get()
    if result is not None:
        result.figures[name] = value


def warn(text: str) -> None:
    """Tell a warning on standard error, in words of the command."""
    text = flags.in_words(text)
    result = _result.get()
    if result is not None:
        result.warnings.append(text)
    print(f"vlm-edit: warning: {printable(text)}", file=sys.stderr)


def left_out(skipped: Sequence[tuple[int, str]], truncated: int) -> None:
    """Tell which pairs were left out, and how many texts were cut."""
    result = _result.get()
    if result is not None:
        result.left_out += [{"pair": number, "why": line(why)} for number, why in skipped]
    if skipped:
        many = len(skipped) > 1
        whose = "pairs left out because their image" if many else "pair left out because its image"
        rows = [f"    number {number}: {line(why)}" for number, why in skipped[:5]]
        if len(skipped) > 5:
            rows.append(f"    and {len(skipped) - 5} more, which --json lists")
        warn(f"{len(skipped)} {whose} could not be read (numbers from 0):")
        print("\n".join(rows), file=sys.stderr)
    if truncated == 1:
        warn("1 text is longer than the model takes and was cut")
    elif truncated:
        warn(f"{truncated} texts are longer than the model takes and were cut")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:60].strip("-") or "table"


def _known(value: Any) -> Any:
    """Return a value with None for what JSON does not know: NaN and infinity."""
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
