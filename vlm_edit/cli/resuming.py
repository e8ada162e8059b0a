"""A training that was broken off, and the command that goes on with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlm_edit.cli.arguments import Collect, Measure, Train
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import make_folder, write_text

_PREFIX = "training."
_COMMAND, _STATE = f"{_PREFIX}json", f"{_PREFIX}checkpoint"
_ACTIVATIONS = f"{_PREFIX}activations"
# What another run of the same training may say otherwise.
_FREE = ("out", "overwrite", "every", "json", "quiet", "tables", "loss")


class Begun:
    """Know the training that was begun in a folder, and keep its state there until it is done.

    Args:
        options: The command.

    Raises:
        BadArgument: Another training was begun there, and it may not be replaced.
    """

    def __init__(self, options: Train) -> None:
        self.out, self.options = Path(options.out), options
        self.state, self.activations = self.out / _STATE, self.out / _ACTIVATIONS
        self.told = {
            each.name: getattr(options, each.name)
            for each in fields(options)
            if each.name not in _FREE
        }
        there = self._there()
        changed = [name for name, value in self.told.items() if there.get(name, value) != value]
        if there and changed and not options.overwrite:
            name = changed[0]
            was, now = ("none" if of[name] is None else of[name] for of in (there, self.told))
            raise BadArgument(
                f"{self.out} holds a training that was broken off, with {_typed(name)} "
                f"{was} and not {now}: give the same command to go on with it, "
                "another folder with --out, or --overwrite to begin anew"
            )
        self.anew = bool(changed) or not there
        # What lies there is this training's own, where it was begun in an empty place.
        self.own = not self.anew and not there["overwrite"]

    def begin(self) -> Path:
        """Write down the command, and return the file of its state."""
        make_folder(self.out)
        if self.anew:
            self.finish()
            told = {**self.told, "overwrite": self.options.overwrite}
            text = json.dumps(told, indent=1) + "\n"
            write_text(self.out / _COMMAND, text, "command")
            self.anew = False
        return self.state

    def finish(self) -> None:
        """Delete what is kept of a training, the command last."""
        for file in _states(self.out):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.activations, ignore_errors=True)
        (self.out / _COMMAND).unlink(missing_ok=True)

    def _there(self) -> dict[str, Any]:
        try:
            there = json.loads((self.out / _COMMAND).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return there if isinstance(there, dict) and "overwrite" in there else {}


def on_interrupt(options: object) -> str:
    """Tell how a verb that was interrupted is gone on with."""
    if not isinstance(options, Collect | Train | Measure):
        return "interrupted"
    out = Path(options.out)
    if isinstance(options, Collect):
        return f"interrupted: the same command goes on from the last whole part in {out}"
    if any(_states(out)) or any(out.glob("part-*.checkpoint")):
        return f"interrupted: the same command goes on from the checkpoint in {out}"
    there = f"takes the activations in {out} and " if any(out.glob(f"{_ACTIVATIONS}/*")) else ""
    return (
        f"interrupted before the first checkpoint: the same command {there}begins anew; one is "
        f"written every {options.every:g} s (--every)"
    )


def _states(out: Path) -> Iterable[Path]:
    return out.glob(f"{_STATE}*")


def _typed(name: str) -> str:
    return {"model": "MODEL", "pairs": "PAIRS"}.get(name, f"--{name.replace('_', '-')}")
