"""A measurement under way: what was gathered so far, what comes next, and its file."""

from __future__ import annotations

import logging
import time
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile, WrongHost
from vlm_edit.ground.files import make_folder, read_header, read_tensors, write_tensors
from vlm_edit.measuring.accumulator import MeasurementAccumulator, take
from vlm_edit.measuring.details import summed
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.plan import Plan, Verify
from vlm_edit.measuring.reader import Batch, Reader, not_one
from vlm_edit.measuring.repeats import RepeatedPairs
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.sources import key_of, to_array, to_tensor
from vlm_edit.measuring.until import Look, Until

if TYPE_CHECKING:
    from vlm_edit.measuring.looking import Looking

logger = logging.getLogger(__name__)

_WHAT = "checkpoint"
_VERSION = 4
_NOTES = "notes."
_MANY = {"batch": "batches", "shard": "shards"}
_OF_DETAILS = ("weights", "config", "processor")
# What must be the same, and what is said where it is not; the host first, whose dtype explains the
# weights'.
_COMPARED = {
    "host": "another host",
    "weights": "other weights of the host",
    "config": "another config of the host",
    "processor": "another processor",
    **{key: f"another {key}" for key in ("dictionary", "pairs", "settings", "versions")},
}
_PASSED_OVER = {"name", "sites", "revision"}
_ADDED = {"dtype", "quantization"}  # of the host; former versions kept neither


class Run(NamedTuple):
    """What is measured with one dictionary at one site.

    Attributes:
        accumulator: What was gathered so far.
        origin: What it is of, as in a measurement's provenance.
    """

    accumulator: MeasurementAccumulator
    origin: dict[str, Any]


@dataclass(eq=False)
class State:
    """Hold a measurement under way.

    Attributes:
        runs: What is measured of the same forwards.
        total: Units of all parts.
        part: Which part this is, and of how many.
        unit: The number of the unit that comes next, or is under way.
        after: How many cuts of it were read.
        skipped: Pairs left out, with the reason.
        truncated: Texts that were cut.
        notes: Whole numbers by name, which the plan keeps to know again what was read.
        looks: At the intervals so far, a look of each of the runs, where that was asked.
        beyond: Units that merged parts have not read.
    """

    runs: Sequence[Run]
    total: int
    part: tuple[int, int] = (0, 1)
    unit: int = 0
    after: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    notes: dict[str, array[int]] = field(default_factory=dict)
    looks: list[tuple[Look, ...]] = field(default_factory=list)
    beyond: list[range] = field(default_factory=list)

    def __post_init__(self) -> None:
        i, n = self.part
        if not 0 <= i < n:
            raise BadArgument(f"part {self.part} is not (i, n) with 0 <= i < n")
        self.unit = self.unit or self.units.start

    @property
    def origin(self) -> dict[str, Any]:
        """Return what the first of the runs is of: pairs, host and versions are those of all."""
        return self.runs[0].origin

    @property
    def units(self) -> range:
        """Return the numbers of the part's units."""
        i, n = self.part
        return range(self.total * i // n, self.total * (i + 1) // n)

    @property
    def unread(self) -> list[range]:
        """Return the units that were not read, not even in part."""
        return [range(self.unit + (self.after > 0), self.units.stop), *self.beyond]

    @property
    def finished(self) -> bool:
        """Return whether all of them were read, or as many as were asked for."""
        return self.stopped or self.unit >= self.units.stop

    @property
    def until(self) -> Until | None:
        """Return at which width of intervals it stops, where that was asked."""
        return Until.of_settings(self.origin["settings"])

    @property
    def stopped(self) -> bool:
        """Return whether intervals were narrow enough at the last look."""
        return bool(self.looks) and all(look.settled for look in self.looks[-1])

    def noted(self, name: str) -> array[int]:
        """Return the numbers of a note, empty at first."""
        return self.notes.setdefault(name, array("q"))

    def run(
        self,
        reader: Reader,
        plan: Plan,
        checkpoint: Path | None,
        every: float,
        verify: Verify = "sample",
        looking: Looking | None = None,
    ) -> None:
        """Read the pairs that are still to be read, unless all parts together have enough."""
        if checkpoint is not None and checkpoint.is_file():
            self._go_on(checkpoint, plan, verify)
        if looking is not None:
            looking.begin(self)
        reader.skipped[:], reader.truncated = self.skipped, self.truncated
        last = time.monotonic()
        rest = range(self.unit, self.unit if self.stopped else self.units.stop)
        logger.info(
            *("%s: %d of %s of %s to read", reader.site),
            *(len(rest), f"{len(self.units)} {_MANY[plan.kind]}", plan.name),
        )
        for cut, read in reader.run(plan.cuts(rest, self.after), plan.count(rest)):
            for run, batches in zip(self.runs, read, strict=True):
                run.accumulator.update(*batches)
            self._tell(reader)
            plan.note(self, cut, _keys(read[0]))
            self.unit, self.after = cut.place[0], cut.place[1] + 1
            self.skipped, self.truncated = list(reader.skipped), reader.truncated
            self._look()
            if looking is not None and looking.after(self):
                return
            if self.stopped:
                break
            if checkpoint is not None and time.monotonic() - last >= every:
                self._keep(checkpoint, plan.kind)
                last = time.monotonic()
        if not self.stopped:
            self.unit, self.after = self.units.stop, 0
        if checkpoint is not None:
            self._keep(checkpoint, plan.kind)
        count = self.runs[0].accumulator.dominance.n_pairs
        logger.info("%s: %d pairs read, %d left out", reader.site, count, len(self.skipped))

    def _look(self) -> None:
        """Look at the intervals, where it is time."""
        until, accumulators = self.until, [run.accumulator.dominance for run in self.runs]
        if until is None or self.part[1] > 1:  # of parts, all are looked at together
            return
        if not until.due(accumulators[0].n_pairs, self.looks):
            return
        self.looks.append(tuple(until.look(one.compute()) for one in accumulators))
        for look in self.looks[-1]:
            until.log(look)

    def _tell(self, reader: Reader) -> None:
        """Keep, and log, what the host was asked first."""
        if reader.first_prompt is None or "first prompt" in self.origin:
            return
        for run in self.runs:
            run.origin["first prompt"] = reader.first_prompt
        logger.info("%s: the host is asked %r", reader.site, reader.first_prompt)

    def _go_on(self, checkpoint: Path, plan: Plan, verify: Verify) -> None:
        what = f"the checkpoint {str(checkpoint)!r}"
        there = State.load(checkpoint, self.runs[0].accumulator.judge)
        if len(there.runs) != len(self.runs):
            raise BadArgument(
                f"{what} is of {len(there.runs)} sites or dictionaries, not {len(self.runs)}: "
                "measure into another folder or file, or delete it to begin anew"
            )
        for theirs, ours in zip(there.runs, self.runs, strict=True):
            expect_same(theirs.origin, ours.origin, what)
        if there.part != self.part:
            raise BadArgument(
                f"{what} is of part {there.part}, not {self.part}: give each part a file of its own"
            )
        plan.expect(there, what, verify)
        for theirs, ours in zip(there.runs, self.runs, strict=True):
            if "first prompt" in theirs.origin:
                ours.origin["first prompt"] = theirs.origin["first prompt"]
        self.runs = [
            Run(a.accumulator, b.origin) for a, b in zip(there.runs, self.runs, strict=True)
        ]
        self.unit, self.after, self.notes = there.unit, there.after, there.notes
        self.skipped, self.truncated = there.skipped, there.truncated
        self.looks = there.looks
        logger.info("going on from %s at %s", checkpoint, self._place(plan.kind))

    def _keep(self, checkpoint: Path, kind: str) -> None:
        self.save(checkpoint)
        logger.info("wrote %s at %s", checkpoint, self._place(kind))

    def _place(self, kind: str) -> str:
        if kind == "batch":
            return f"batch {self.unit + self.after}"
        return f"{kind} {self.unit}, batch {self.after}"

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        header = {
            "version": _VERSION,
            "kind": _WHAT,
            "told": [run.origin for run in self.runs],
            "part": list(self.part),
            "units": self.total,
            "unit": self.unit,
            "after": self.after,
            "finished": self.finished,
            "skipped": self.skipped,
            "truncated": self.truncated,
            "looks": [[list(look) for look in looks] for looks in self.looks],
        }
        make_folder(path.parent)
        tensors = {f"{_NOTES}{name}": to_tensor(values) for name, values in self.notes.items()}
        for i, run in enumerate(self.runs):
            tensors |= {f"{i}.{name}": t for name, t in run.accumulator.state_dict().items()}
        write_tensors(path, tensors, header, _WHAT)

    @classmethod
    def load(cls, path: Path, judge: Judge | None) -> State:
        """Read what ``save`` wrote."""
        header, tensors = read_tensors(path, _WHAT)
        _expect_checkpoint(path, header)
        try:
            notes = {n: to_array(t) for n, t in take(tensors, _NOTES).items()}
            runs = [
                Run(_accumulated(origin, take(tensors, f"{i}."), judge), origin)
                for i, origin in enumerate(header["told"])
            ]
            skipped = [(int(n), str(why)) for n, why in header["skipped"]]
            i, n = header["part"]
            return cls(
                *(runs, header["units"], (i, n), header["unit"], header["after"]),
                *(skipped, header["truncated"], notes),
                [tuple(Look(*look) for look in looks) for looks in header.get("looks", [])],
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFile(
                f"{path} is damaged ({type(error).__name__}: {error}): delete it to begin anew"
            ) from error

    def merge(self, other: State) -> None:
        """Add what another part has gathered."""
        for ours, theirs in zip(self.runs, other.runs, strict=True):
            ours.accumulator.merge(theirs.accumulator)
            if "first prompt" in theirs.origin:  # a part of no batches has asked nothing
                ours.origin.setdefault("first prompt", theirs.origin["first prompt"])
        self.beyond += other.unread
        self.skipped += other.skipped
        self.truncated += other.truncated
        for name, values in other.notes.items():
            self.noted(name).extend(values)

    def finish(self, plan: Plan) -> list[Measurement]:
        """Return the measurements, once everything is read."""
        if self.skipped and not self.runs[0].accumulator.dominance.n_pairs:
            raise not_one(plan.name, self.skipped)
        pairs = plan.found(self)
        unread = plan.unread(self)
        return [self._finished(i, pairs, unread) for i in range(len(self.runs))]

    def _finished(self, i: int, pairs: Pairs, unread: Sequence[int]) -> Measurement:
        accumulator, origin = self.runs[i].accumulator, dict(self.runs[i].origin)
        read = len(pairs) - len(unread)
        known = {"count": read, "digest": str(accumulator.digest)}
        total = origin["pairs"].get("count")
        if unread:
            known["of"] = total
        origin["pairs"] = {**origin["pairs"], **known}
        origin["digests"] = summed(origin.pop("details"))
        if self.until is not None:
            looks, dominance = [some[i] for some in self.looks], accumulator.dominance.compute()
            rest = (looks, self.stopped, dominance, read, total)
            origin["until"] = self.until.outcome(*rest)
        site = origin["settings"]["site"]
        measurement = accumulator.compute(
            site, self.skipped, self.truncated, pairs, origin, unread=unread
        )
        for text in measurement.doubts():
            warnings.warn(text, RepeatedPairs, stacklevel=5)  # the line of measure
        return measurement


@dataclass(frozen=True)
class Head:
    """Hold what a checkpoint says of itself, of which there may be hundreds.

    Attributes:
        part: Which part it is, and of how many.
        origins: What it is of, as in a measurement's provenance, for each of its runs.
        finished: Whether all of the part was read.
    """

    part: tuple[int, int]
    origins: Sequence[Mapping[str, Any]]
    finished: bool

    @property
    def origin(self) -> Mapping[str, Any]:
        """Return what the first of its runs is of."""
        return self.origins[0]

    @classmethod
    def read(cls, path: Path) -> Head:
        """Read it without the tensors, whose checksum only ``State.load`` looks at."""
        header = read_header(path) or {}
        _expect_checkpoint(path, header)
        try:
            i, n = header["part"]
            origins = [dict(origin) for origin in header["told"]]
            return cls((int(i), int(n)), origins, bool(header["finished"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"{path} is damaged ({type(error).__name__}: {error}): delete it to begin anew"
            ) from error


def _expect_checkpoint(path: Path, header: Mapping[str, Any]) -> None:
    if header.get("kind") != _WHAT:
        raise DamagedFile(f"{path} is not a checkpoint of a measurement: name another file")
    if header.get("version") != _VERSION:
        raise DamagedFile(
            f"{path} is a checkpoint of another version of vlm-edit: delete it to begin anew"
        )


def _keys(batches: Sequence[Batch]) -> dict[int, int]:
    return {
        number: key_of(digest)
        for batch in batches
        for number, digest in zip(batch.numbers, batch.digests, strict=True)
    }


def _accumulated(
    origin: Mapping[str, Any], tensors: Mapping[str, Tensor], judge: Judge | None
) -> MeasurementAccumulator:
    settings = origin["settings"]
    accumulator = MeasurementAccumulator(
        origin["dictionary"]["features"], settings["zeros"], settings["keep"], judge
    )
    accumulator.load_state_dict(tensors)
    return accumulator


def expect_same(
    there: Mapping[str, Any], here: Mapping[str, Any], what: str, verb: str = "measure"
) -> None:
    """Refuse to go on with, or to merge, what was measured otherwise; or collected, as the verb."""
    done = f"{verb.removesuffix('e')}ed"
    sides = [{**x["details"], **x} for x in (there, here)]
    for key, name in _COMPARED.items():
        a, b = (x[key] for x in sides)
        # A path may have moved; the weights at the site have been compared to the bit.
        names = sorted({*a, *b} - (set() if key in _OF_DETAILS else _PASSED_OVER))
        names = [n for n in names if n not in _ADDED or (n in a and n in b)]
        changes = [n for n in names if a.get(n) != b.get(n)]
        if changes:
            first, more = changes[0], len(changes) - 1
            raise WrongHost(
                f"{what} was {done} with {name} ({first}: {str(a.get(first))[:60]}, here "
                f"{str(b.get(first))[:60]}{f'; and {more} more' if more else ''}): {verb} "
                "into another folder or file, or delete it to begin anew"
            )
