"""A measurement under way: what was gathered so far, what comes next, and its file."""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import BadArgument, DamagedFile, WrongHost
from vlm_edit.ground.files import make_folder, read_tensors, write_tensors
from vlm_edit.measuring.accumulator import MeasurementAccumulator
from vlm_edit.measuring.details import summed
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.order import Order
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.reader import Reader
from vlm_edit.measuring.repeats import RepeatedPairs
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.sources import expect_images, stamp, to_array, to_tensor

logger = logging.getLogger(__name__)

_WHAT = "checkpoint"
_VERSION = 2
_STAMPS = "stamps"
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


@dataclass(eq=False)
class State:
    """Hold a measurement under way.

    Attributes:
        accumulator: What was gathered so far.
        origin: What it is of, as in a measurement's provenance.
        total: Batches of all parts.
        part: Which part this is, and of how many.
        next_batch: The number of the batch that comes next.
        skipped: Pairs left out, with the reason.
        truncated: Texts that were cut.
        stamps: Of each image that was read or skipped.
    """

    accumulator: MeasurementAccumulator
    origin: dict[str, Any]
    total: int
    part: tuple[int, int] = (0, 1)
    next_batch: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    stamps: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        i, n = self.part
        if not 0 <= i < n:
            raise BadArgument(f"part {self.part} is not (i, n) with 0 <= i < n")
        self.next_batch = self.next_batch or self.batches.start

    @property
    def batches(self) -> range:
        """Return the numbers of the part's batches."""
        i, n = self.part
        return range(self.total * i // n, self.total * (i + 1) // n)

    @property
    def finished(self) -> bool:
        """Return whether all of them were read."""
        return self.next_batch >= self.batches.stop

    def run(
        self, reader: Reader, pairs: Pairs, order: Order, checkpoint: Path | None, every: float
    ) -> None:
        """Read the pairs that are still to be read."""
        if checkpoint is not None and checkpoint.is_file():
            self._go_on(checkpoint, pairs, order)
        reader.skipped[:], reader.truncated = self.skipped, self.truncated
        last = time.monotonic()
        numbers = self.batches
        # Of files as they were before reading.
        before = self._stamps(pairs, order, self.next_batch)
        logger.info(
            "%s: %d of %d batches of %s to read",
            *(reader.site, numbers.stop - self.next_batch, len(numbers), pairs.name),
        )
        rest = range(self.next_batch, numbers.stop)
        for number, read in reader.read_numbered(pairs, rest, order):
            self.accumulator.update(*read)
            self._tell(reader)
            self.stamps.extend(before)
            before = self._stamps(pairs, order, number + 1)
            self.next_batch = number + 1
            self.skipped, self.truncated = list(reader.skipped), reader.truncated
            if checkpoint is not None and time.monotonic() - last >= every:
                self.save(checkpoint)
                last = time.monotonic()
        if checkpoint is not None:
            self.save(checkpoint)
        count = self.accumulator.dominance.n_pairs
        logger.info("%s: %d pairs read, %d left out", reader.site, count, len(self.skipped))

    def _tell(self, reader: Reader) -> None:
        """Keep, and log, what the host was asked first."""
        if reader.first_prompt is not None and "first prompt" not in self.origin:
            self.origin["first prompt"] = reader.first_prompt
            logger.info("%s: the host is asked %r", reader.site, reader.first_prompt)

    def _stamps(self, pairs: Pairs, order: Order, number: int) -> list[int]:
        some = order.batches[number] if number < len(order.batches) else ()
        return [stamp(pairs.images[i]) for i in some]

    def expect_images(self, pairs: Pairs, order: Order, what: str) -> None:
        """Refuse pairs whose images are not those that were read."""
        numbers = itertools.chain.from_iterable(order.batches[i] for i in self.batches)
        skipped = {number for number, _ in self.skipped}
        expect_images(
            *(pairs, numbers, self.stamps, self.accumulator.digest.images, skipped, what),
        )

    def _go_on(self, checkpoint: Path, pairs: Pairs, order: Order) -> None:
        there = State.load(checkpoint, self.accumulator.judge)
        expect_same(there.origin, self.origin, f"the checkpoint {str(checkpoint)!r}")
        if there.part != self.part:
            raise BadArgument(
                f"the checkpoint {str(checkpoint)!r} is of part {there.part}, not {self.part}: "
                "give each part a file of its own"
            )
        self.accumulator, self.next_batch = there.accumulator, there.next_batch
        self.skipped, self.truncated = there.skipped, there.truncated
        self.stamps = there.stamps
        if "first prompt" in there.origin:
            self.origin["first prompt"] = there.origin["first prompt"]
        self.expect_images(pairs, order, f"the checkpoint {str(checkpoint)!r}")
        logger.info("going on from %s at batch %d", checkpoint, self.next_batch)

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        header = {
            "version": _VERSION,
            "kind": _WHAT,
            "told": self.origin,
            "part": list(self.part),
            "batches": self.total,
            "next_batch": self.next_batch,
            "skipped": self.skipped,
            "truncated": self.truncated,
        }
        make_folder(path.parent)
        tensors = {**self.accumulator.state_dict(), _STAMPS: to_tensor(self.stamps)}
        write_tensors(path, tensors, header, _WHAT)
        logger.info("wrote %s at batch %d", path, self.next_batch)

    @classmethod
    def load(cls, path: Path, judge: Judge | None) -> State:
        """Read what ``save`` wrote."""
        header, tensors = read_tensors(path, _WHAT)
        if header.get("kind") != _WHAT or header.get("version") != _VERSION:
            raise DamagedFile(f"{path} is not a checkpoint of a measurement: name another file")
        try:
            origin = header["told"]
            settings = origin["settings"]
            accumulator = MeasurementAccumulator(
                origin["dictionary"]["features"], settings["zeros"], settings["keep"], judge
            )
            stamps = to_array(tensors.pop(_STAMPS))
            accumulator.load_state_dict(tensors)
            skipped = [(int(n), str(why)) for n, why in header["skipped"]]
            i, n = header["part"]
            # A former version cut pairs in their own order, and did not say how many batches.
            cut = -(-int(origin["pairs"]["count"]) // int(settings["batch_size"]))
            return cls(
                *(accumulator, origin, header.get("batches", cut), (i, n), header["next_batch"]),
                *(skipped, header["truncated"], stamps),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFile(
                f"{path} is damaged ({type(error).__name__}: {error}): delete it to begin anew"
            ) from error

    def merge(self, other: State) -> None:
        """Add what another part has gathered."""
        self.accumulator.merge(other.accumulator)
        self.skipped += other.skipped
        self.truncated += other.truncated

    def finish(self, pairs: Pairs) -> Measurement:
        """Return the measurement, once everything is read."""
        digest = str(self.accumulator.digest)
        origin = {**self.origin, "pairs": {**self.origin["pairs"], "digest": digest}}
        origin["digests"] = summed(origin.pop("details"))
        site = origin["settings"]["site"]
        measurement = self.accumulator.compute(site, self.skipped, self.truncated, pairs, origin)
        for text in measurement.doubts():
            warnings.warn(text, RepeatedPairs, stacklevel=3)  # the line of measure
        return measurement


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
