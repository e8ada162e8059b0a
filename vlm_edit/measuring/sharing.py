"""A measurement that several processes share, in one folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.files import make_folder, write_new
from vlm_edit.host import Host, Model
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.looking import Looking
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.plan import Verify
from vlm_edit.measuring.result import Measurement, load_measurement
from vlm_edit.measuring.run import begin, is_finished, is_of, merge_together
from vlm_edit.measuring.shards import Shards
from vlm_edit.measuring.state import Head, expect_same

PARTS = "parts.json"
_NAME = re.compile(r"part-\d+-of-(\d+)(?:\.look-\d+)?\.checkpoint")


class Sharing:
    """Measure one of n parts, in a folder where other processes measure the others.

    A part is a checkpoint of its own there. While the parts are measured, ``parts.json`` says into
    how many the pairs are cut and what is measured, and what looks at all parts have shown where
    intervals end the reading (``until_width``); it goes, and then the checkpoints, when the run has
    been written. What changes the folder, ``claim`` and ``merge``, is for who holds its lock; where
    the file system has none, two processes that merge at once write the same bytes.

    Args:
        folder: Where all processes write, made if need be.
        host: As in ``measure_together``, like the next two.
        pairs: All of them, not only the part's.
        readings: A site's name and a dictionary of its width, for each.
        part: (i, n): the i-th of n parts, counted from 0.
        options: As in ``measure``: zeros, keep, batch_size, judge, workers, progress, and those
            of until.

    Attributes:
        files: The checkpoints of all parts, whether they are there or not.

    Raises:
        VlmEditError: As in ``measure``, or a part that is not one of n.

    Example:
        >>> import tempfile
        >>> from vlm_edit import Host, zoo
        >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(8))
        >>> what = host, pairs, [("joint", zoo.load_dictionary("joint"))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(2):
        ...         some = Sharing(folder, *what, part=(i, 2))
        ...         some.claim()
        ...         some.run()
        ...         print(len(some.missing()))
        ...     some.merge()[0].n_pairs
        1
        0
        8
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        host: Host | Model,
        pairs: Pairs | Shards | Iterable[Any],
        readings: Sequence[tuple[str, Encodes]],
        *,
        part: tuple[int, int],
        **options: Any,
    ) -> None:
        self.folder, self.part = Path(folder), part
        self._pairs = pairs
        self._judge: Judge | None = options.get("judge")
        self._state, self._reader, self._plan = begin(host, pairs, readings, part, **options)
        self.files = [self.folder / f"part-{i + 1}-of-{part[1]}.checkpoint" for i in range(part[1])]
        self._looking, self._has_claimed = self._looks_at(part), False

    def _looks_at(self, part: tuple[int, int]) -> Looking | None:
        until, settings = self._state.until, self._state.origin["settings"]
        if until is None or part[1] == 1:
            return None
        register, batch_size = self.folder / PARTS, settings["batch_size"]
        return Looking(register, self.files, part, until, batch_size, self._judge)

    @property
    def claimed(self) -> bool:
        """Return whether a measurement of parts is under way in the folder."""
        return (self.folder / PARTS).exists()

    def is_measured(self) -> bool:
        """Return whether the folder holds the run that the parts would make."""
        try:
            return is_of(load_measurement(self.folder), self._state.origin)
        except VlmEditError:
            return False

    def claim(self) -> None:
        """Write down what is measured in how many parts, or hold it against who did so before.

        Raises:
            VlmEditError: The folder holds parts of another number, or of another measurement.
        """
        make_folder(self.folder)
        expect_cut(self.folder, self.part[1])
        self._has_claimed = True
        if not self.claimed:
            for file in filter(Path.is_file, [*self.files, *self._kept()]):
                self._expect_same(Head.read(file).origins, f"the checkpoint {str(file)!r}")
            origins = [run.origin for run in self._state.runs]
            data = json.dumps({"parts": self.part[1], "told": origins}) + "\n"
            write_new(self.folder / PARTS, data.encode(), "list of parts")
            expect_cut(self.folder, self.part[1])  # another process may have been quicker
        what = f"what other parts measure, by {str(self.folder / PARTS)!r},"
        try:
            self._expect_same(_read(self.folder)["told"], what)
        except (KeyError, TypeError) as error:
            raise _damaged(self.folder, error) from error

    def _expect_same(self, there: Sequence[Mapping[str, Any]], what: str) -> None:
        if len(there) != len(self._state.runs):
            raise BadArgument(
                f"{what} is of {len(there)} sites or dictionaries, here {len(self._state.runs)}: "
                "measure into another folder"
            )
        for theirs, ours in zip(there, self._state.runs, strict=True):
            expect_same(theirs, ours.origin, what)

    def run(self, every: float = 60.0, verify: Verify = "sample") -> None:
        """Measure the part, or go on with it.

        Args:
            every: Seconds between two states.
            verify: As in ``measure``.
        """
        looking = self._looking
        if looking is not None:
            if not self._has_claimed:
                self.claim()
            looking.settle()
            if looking.stopped:
                return
        file = self.files[self.part[0]]
        self._state.run(self._reader, self._plan, file, every, verify, looking)
        if looking is not None:
            looking.settle()  # a part at its end may be the last that was waited for

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not finished, from 0; none if reading ended."""
        if self._looking is not None and self._looking.stopped:
            return []
        return [i for i, file in enumerate(self.files) if not is_finished(file)]

    def merge(self) -> list[Measurement]:
        """Merge all parts, one after the other; two states are held at once."""
        looking = self._looking
        if looking is None:
            return merge_together(self.files, self._pairs, self._judge)
        looking.settle()  # where two came to their ends at once
        files = looking.chosen() if looking.stopped else self.files
        return merge_together(files, self._pairs, self._judge, looking.looks)

    def leftovers(self) -> list[Path]:
        """Return what is to be deleted once the run is written, in this order."""
        return [self.folder / PARTS, *self._kept(), *self.files]

    def _kept(self) -> list[Path]:
        """Return what parts have kept for looks."""
        return sorted(self.folder.glob(f"part-*-of-{self.part[1]}.look-*.checkpoint"))


def expect_cut(folder: Path, parts: int) -> None:
    """Refuse a folder where a measurement is under way that is cut into another number of parts.

    Args:
        folder: Where the parts are.
        parts: How many this measurement has.

    Raises:
        BadArgument: It holds others; nothing has changed.
        DamagedFile: ``parts.json`` is damaged.
    """
    matches = [m for file in folder.glob("part-*.checkpoint") if (m := _NAME.fullmatch(file.name))]
    there = {match[0]: int(match[1]) for match in sorted(matches, key=lambda match: match[0])}
    if (folder / PARTS).exists():
        try:
            there[PARTS] = int(_read(folder)["parts"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, error) from error
    other = next((name for name, n in there.items() if n != parts), None)
    if other is not None:
        n = there[other]
        raise BadArgument(
            f"{folder} holds {other}, of a measurement in {n} {'parts' if n > 1 else 'part'}, and "
            f"here it would be {parts}: go on with {n}, measure into another folder, or delete "
            f"{PARTS} and part-*.checkpoint there to begin anew"
        )


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        told: Mapping[str, Any] = json.loads((folder / PARTS).read_text("utf-8"))
        return told
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> DamagedFile:
    return DamagedFile(
        f"{folder / PARTS} is damaged or gone ({type(error).__name__}: {error}): delete it, and "
        "give the same command again"
    )
