"""A run's state on disk, and its log."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from vlm_edit.dictionaries.training.distributed import world
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.files import append_text, read_tensors, write_tensors, write_text

logger = logging.getLogger(__name__)

_WHAT = "state of a dictionary's training"


class Checkpoint:
    """The file a run goes on from.

    Args:
        path: The file; written whole or not at all.
        every: Seconds between writes.
        trainer: The run.
    """

    def __init__(self, path: str | os.PathLike[str], every: float, trainer: Trainer) -> None:
        self.path, self.every, self.trainer = Path(path), every, trainer
        config = json.dumps(asdict(trainer.config), sort_keys=True)
        self.digests = {
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "data": trainer.data.digest(),
            "processes": str(trainer.processes),
            "start": trainer.start,
        }
        self.written = time.monotonic()

    def resume(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            VlmEditError: The file is of another run, or is damaged.
        """
        if not self.path.exists():
            return
        header, tensors = read_tensors(self.path, _WHAT)
        for name, digest in self.digests.items():
            if header.get(name) != digest:
                raise BadArgument(
                    f"{self.path} is the {_WHAT} with another {name}: give back what it began "
                    "with, or another file"
                )
        expected = {name: t.shape for name, t in self.trainer.state()[0].items()}
        for name, weight in self.trainer.objective.named_parameters():
            expected |= dict.fromkeys((f"exp_avg.{name}", f"exp_avg_sq.{name}"), weight.shape)
        try:
            if any(tensors[name].shape != shape for name, shape in expected.items()):
                raise ValueError("a tensor has another shape")
            self.trainer.restore(tensors, header)
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            raise DamagedFile(f"{self.path} is not a whole {_WHAT}: {error}") from error
        logger.info("going on from %s at step %d", self.path, self.trainer.done)

    def keep(self, last: bool = False) -> None:
        """Write the file if it is time, or the run's end."""
        now = time.monotonic()
        if world()[0] or not (last or now - self.written >= self.every):
            return
        tensors, numbers = self.trainer.state()
        write_tensors(self.path, tensors, {**numbers, **self.digests}, _WHAT)
        self.written = time.monotonic()
        logger.info("wrote %s at step %d", self.path, self.trainer.done)


class Log:
    """Figures of a run, for who asks Python's logging and as lines of CSV.

    Args:
        path: The file; None to keep none.
        done: Steps a resumed run has done: what the file says of later ones is dropped.
        figures: Names of the columns, beside the step.
        steps: Of the whole run.

    Raises:
        VlmEditError: A resumed run's file has other columns.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, done: int, figures: Sequence[str], steps: int
    ) -> None:
        self.fields, self.steps = ("step", *figures), steps
        self.path = Path(path) if path is not None and world()[0] == 0 else None
        if self.path is None:
            return
        rows = self._kept(self.path, done) if done and self.path.exists() else []
        write_text(self.path, "".join(map(_line, [self.fields, *rows])), "log")

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line for a step."""
        listed = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        logger.info("step %d of %d: %s", step, self.steps, listed)
        if self.path is not None:
            append_text(self.path, _line([step, *(figures[name] for name in self.fields[1:])]))

    def _kept(self, path: Path, done: int) -> list[list[str]]:
        """Return lines of steps that are done; one that a killed process has cut is not."""
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            whole = [line for line in file if line.endswith("\n")]
        columns, *rows = csv.reader(whole or [_line(self.fields)])
        if tuple(columns) != self.fields:
            raise BadArgument(
                f"{path} has columns {columns}, and this run's log "
                f"{list(self.fields)}: it is of another kind of run; name another file"
            )
        return [row for row in rows if self._holds(row) and int(row[0]) <= done]

    def _holds(self, row: Sequence[str]) -> bool:
        """Say whether nothing of a line is missing: former versions went on behind a cut one."""
        return len(row) == len(self.fields) and all(row) and row[0].isdecimal()


def _line(values: Sequence[object]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue()
