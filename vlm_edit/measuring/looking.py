"""Looks at the intervals of all parts together, which stop them all at the same prefixes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.ground.files import locked, write_text
from vlm_edit.measuring import until
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.state import Head, State
from vlm_edit.measuring.until import Look, Until


class Looking:
    """Look at all parts of a measurement, when each has read its share of 512, 1,024, ... pairs.

    A part that has read its share keeps what it has by then in a file, and reads on. Who finds the
    files of all parts merges them and writes down what was seen. So where reading stops does not
    hang on which part is how fast, and what is read beyond it is left out.

    Args:
        register: The file in which looks are written down, among what else it holds.
        files: The checkpoints of all parts.
        part: (i, n): the i-th of n parts, counted from 0.
        until: What ends the reading.
        batch_size: Pairs per forward; a part's share of the first look is at least so many.
        judge: As in ``measure``.
    """

    def __init__(
        self,
        register: Path,
        files: Sequence[Path],
        part: tuple[int, int],
        until: Until,
        batch_size: int,
        judge: Judge | None,
    ) -> None:
        self.register, self.until = register, until
        self._files, self._part, self._judge = files, part, judge
        self._first = _first(part[1], batch_size)
        self._looks: list[tuple[Look, ...]] = []
        self._seen: tuple[int, int] | None = None
        self._passed = 0  # looks of which this part has read its share

    @property
    def looks(self) -> list[tuple[Look, ...]]:
        """Return the looks so far, each of all that is measured together."""
        self._read()
        return self._looks

    @property
    def stopped(self) -> bool:
        """Return whether the last look has ended the reading."""
        looks = self.looks
        return bool(looks) and all(look.settled for look in looks[-1])

    def begin(self, state: State) -> None:
        """Begin with a part, or go on with it.

        Args:
            state: Of the part; it has kept its share of the looks it has come to.
        """
        self._passed = self._shares(state)

    def after(self, state: State) -> bool:
        """Look where it is time, after a part has read a batch; return whether reading ends.

        Args:
            state: Of the part.
        """
        shares = range(self._passed, self._shares(state))
        self._passed = shares.stop
        for number in shares:
            if len(self.looks) <= number:
                state.save(self.kept(self._part[0], number))
        if shares:
            self.settle()
        # Who has made the run of all parts takes the register away.
        return self.stopped or not self.register.exists()

    def settle(self) -> None:
        """Make those looks for which all parts have what they need."""
        while not self.stopped and (files := self._due()) is not None:
            number = len(self._looks)
            try:
                look = self._look(files)
            except (VlmEditError, OSError):
                if len(self.looks) > number or not self.register.exists():
                    continue  # another process has looked, and deleted what it looked at
                raise
            self._write(number, look)

    def chosen(self) -> list[Path]:
        """Return the file of each part at the look that has ended the reading."""
        number = len(self.looks) - 1
        files = [self.kept(i, number) for i in range(self._part[1])]
        return [a if a.is_file() else b for a, b in zip(files, self._files, strict=True)]

    def kept(self, part: int, number: int) -> Path:
        """Return where a part keeps what it has at a look.

        Args:
            part: Its number, from 0.
            number: The look's.
        """
        file = self._files[part]
        return file.with_name(f"{file.stem}.look-{self._first << number}{file.suffix}")

    def _shares(self, state: State) -> int:
        """Return of how many looks a part has read its share."""
        pairs, n = state.runs[0].accumulator.dominance.n_pairs * self._part[1], 0
        while pairs >= self._first << n:
            n += 1
        return n

    def _due(self) -> list[Path] | None:
        """Return the files of the next look, if all are there and not all parts are read whole."""
        number, files, whole = len(self.looks), [], 0
        for i, file in enumerate(self._files):
            kept = self.kept(i, number)
            if kept.is_file():
                files.append(kept)
            elif file.is_file() and Head.read(file).finished:
                files.append(file)
                whole += 1
            else:
                return None
        return files if whole < len(files) else None

    def _look(self, files: Sequence[Path]) -> tuple[Look, ...]:
        merged = State.load(files[0], self._judge)
        for file in files[1:]:
            merged.merge(State.load(file, self._judge))  # none but these two are held
        return tuple(self.until.look(run.accumulator.dominance.compute()) for run in merged.runs)

    def _write(self, number: int, look: tuple[Look, ...]) -> None:
        """Write a look down, unless another process has, and delete what only it needs."""
        with locked(self.register.parent):
            if len(self.looks) > number or not self.register.exists():
                return
            told = _load(self.register)
            told["looks"] = [*told.get("looks", []), [list(one) for one in look]]
            write_text(self.register, json.dumps(told) + "\n", "list of parts")
            for one in look:
                self.until.log(one)
            if not self.stopped:
                for i in range(self._part[1]):
                    self.kept(i, number).unlink(missing_ok=True)

    def _read(self) -> None:
        """Read the looks, where the register has changed."""
        try:
            stat = self.register.stat()
        except OSError:
            return
        if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
            try:
                looks = _load(self.register).get("looks", [])
                self._looks = [tuple(Look(*one) for one in look) for look in looks]
            except FileNotFoundError:
                return
            except (TypeError, ValueError, AttributeError) as error:
                raise DamagedFile(
                    f"{self.register} is damaged ({type(error).__name__}: {error}): delete it, "
                    "and give the same command again"
                ) from error
            self._seen = seen


def _first(parts: int, batch_size: int) -> int:
    """Return the pairs of the first look, of which a part's share is a batch at least."""
    first = until.FIRST
    while first < parts * batch_size:
        first *= 2
    return first


def _load(register: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(register.read_text("utf-8"))
    return told
