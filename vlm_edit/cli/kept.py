"""What commands leave with a run for its page: edits, and grids of drawings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image, PngImagePlugin

from vlm_edit.errors import VlmEditError
from vlm_edit.report import Examples, Picture, Table

EDITS, DRAWINGS = "edits", "drawings"
_TITLE, _TOLD, _NOTE = "Title", "Description", "Comment"  # keywords of the PNG standard


def clear(run: Path) -> None:
    """Delete what is kept, such as that of a run that was here before."""
    for folder in (EDITS, DRAWINGS):
        shutil.rmtree(run / folder, ignore_errors=True)


def save_edit(run: Path, table: Table, examples: Examples) -> None:
    """Keep what an edit did."""
    told = {
        "table": [table.title, list(table.columns), [list(row) for row in table.rows], table.note],
        "examples": [
            examples.title,
            [[number, list(lines)] for number, lines in examples.items],
            examples.note,
        ],
    }
    text = json.dumps(told, ensure_ascii=False, indent=1)
    _next(run / EDITS, ".json").write_text(text + "\n", encoding="utf-8")


def save_picture(run: Path, picture: Picture) -> None:
    """Keep a grid of drawings; its words stand in the file itself."""
    words = PngImagePlugin.PngInfo()
    for key, text in ((_TITLE, picture.title), (_TOLD, picture.told), (_NOTE, picture.note)):
        # Arguments may hold halves of characters that UTF-8 cannot write.
        words.add_itxt(key, text.encode("utf-8", "replace").decode("utf-8"))
    picture.image.save(_next(run / DRAWINGS, ".png"), pnginfo=words)


def edits(run: Path) -> tuple[list[Table], list[Examples]]:
    """What was kept of edits, in their order.

    Raises:
        VlmEditError: A file is damaged.
    """
    tables, examples = [], []
    for file in sorted((run / EDITS).glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            tables.append(Table(*told["table"]))
            title, items, note = told["examples"]
            examples.append(Examples(title, [(int(n), lines) for n, lines in items], note))
        except (ValueError, KeyError, TypeError) as error:
            raise VlmEditError(f"{file} is damaged: delete it, or edit again") from error
    return tables, examples


def pictures(run: Path) -> list[Picture]:
    """What was kept of drawings, in their order.

    Raises:
        VlmEditError: A file is damaged.
    """
    found = []
    for file in sorted((run / DRAWINGS).glob("*.png")):
        try:
            with Image.open(file) as image:
                image.load()
                words = {key: str(image.info[key]) for key in (_TITLE, _TOLD, _NOTE)}
                found.append(Picture(words[_TITLE], image.copy(), words[_TOLD], words[_NOTE]))
        except (OSError, SyntaxError, ValueError, KeyError) as error:
            raise VlmEditError(f"{file} is damaged: delete it, or draw again") from error
    return found


def _next(folder: Path, ending: str) -> Path:
    """A file behind those that are there."""
    folder.mkdir(exist_ok=True)
    taken = [int(f.stem) for f in folder.glob(f"*{ending}") if f.stem.isdecimal()]
    return folder / f"{max(taken, default=0) + 1:03}{ending}"
