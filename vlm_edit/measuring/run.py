"""Measure: one pass over the pairs, that can be stopped, shared and gone on with."""

from __future__ import annotations

import logging
import os
import time
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError, WrongHost
from vlm_edit.ground.files import make_folder, read_tensors, write_tensors
from vlm_edit.host import Host, Model
from vlm_edit.measures.dominance import Zeros
from vlm_edit.measuring.accumulator import MeasurementAccumulator
from vlm_edit.measuring.details import details, summed
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import EXAMPLES, SEED
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import pairs_listing, provenance, texts_digest
from vlm_edit.measuring.reader import STREAMS, Reader
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


def measure(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    dictionary: Encodes,
    site: str = "joint",
    *,
    zeros: Zeros = "skip",
    keep: int = max(EXAMPLES),
    batch_size: int = 64,
    judge: Judge | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    progress: bool = True,
) -> Measurement:
    """Measure how much each feature of a dictionary belongs to image or text, and what it is of.

    One pass over the pairs. What is summed up does not grow with their number; a batch's images,
    texts and activations are held at once, so memory goes by ``batch_size`` and their sizes.

    Args:
        host: In eval mode, wherever its weights are, with its processor.
        pairs: Image-text pairs, or what ``Pairs.of`` takes: a list of (image, text), a table.
        dictionary: Of the site's width.
        site: A site with both streams, e.g. ``joint``, or a LLaVA's ``language.16``, where codes
            are averaged over a pair's image tokens and over its text tokens.
        zeros: As in ``modality_dominance``.
        keep: Top examples per feature; scores of the m top examples need m of them.
        batch_size: Pairs per forward.
        judge: Independent encoders, for scores of interpretability; by default none are made.
        checkpoint: A file that keeps the state. If the process dies, the same call goes on from
            there, to the bit as if it had not died; a call that had finished returns at once.
        every: Seconds between two states.
        progress: Whether to show a bar.

    Returns:
        The measurement; pairs whose image could not be read are listed in ``skipped``. Where
        many pairs are of one image or one text, which tests do not know of, it warns
        (``RepeatedPairs``).

    Raises:
        VlmEditError: A site with one stream only, another width than the dictionary's, not
            one image that can be read, or a checkpoint of another measurement: of a host or a
            processor that has changed since, or of images that were others when they were read.

    Example:
        >>> from vlm_edit import Host, measure, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> pairs = zoo.load_pairs().select(range(64))
        >>> dictionary = zoo.load_dictionary("joint")
        >>> measurement = measure(host, pairs, dictionary, progress=False)
        >>> measurement.n_pairs
        64
    """
    pairs = Pairs.of(pairs)
    state, reader = _begin(
        *(host, pairs, dictionary, site, (0, 1)),
        zeros=zeros,
        keep=keep,
        batch_size=batch_size,
        judge=judge,
        progress=progress,
    )
    state.run(reader, pairs, None if checkpoint is None else Path(checkpoint), every)
    return state.finish(pairs)


def measure_part(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    dictionary: Encodes,
    site: str = "joint",
    *,
    part: tuple[int, int],
    checkpoint: str | os.PathLike[str],
    every: float = 60.0,
    **options: Any,
) -> None:
    """Measure one part of the pairs, as one of several processes; ``merge_parts`` does the rest.

    Args:
        host: As in ``measure``, like the next three.
        pairs: All of them.
        dictionary: Of the site's width.
        site: Where.
        part: (i, n): the i-th of n parts, counted from 0.
        checkpoint: The part's own file; a call that was killed goes on from it.
        every: Seconds between two states.
        options: As in ``measure``: zeros, keep, batch_size, judge, progress.

    Raises:
        VlmEditError: As in ``measure``, or a part that is not one of n.
    """
    pairs = Pairs.of(pairs)
    state, reader = _begin(host, pairs, dictionary, site, part, **options)
    state.run(reader, pairs, Path(checkpoint), every)


def is_finished(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether a part has read all its pairs.

    Args:
        checkpoint: Its file; it need not be there yet.
    """
    path = Path(checkpoint)
    if not path.is_file():
        return False
    state = _State.load(path, None)
    return state.next_batch >= state.batches(state.origin["pairs"]["count"]).stop


def was_measured(
    measurement: Measurement,
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    dictionary: Encodes,
    site: str = "joint",
    **options: Any,
) -> bool:
    """Return whether ``measure`` with these arguments would measure the same again.

    Args:
        measurement: What was measured.
        host: As in ``measure``, like the next three.
        pairs: The pairs.
        dictionary: Of the site's width.
        site: Where.
        options: As in ``measure``: zeros, keep, batch_size, judge.
    """
    state, _ = _begin(host, Pairs.of(pairs), dictionary, site, (0, 1), **options)
    parts = state.origin["details"]  # of which a run keeps digests
    try:
        if measurement.provenance["digests"] != summed(parts):
            return False
        there = {k: v for k, v in measurement.provenance["pairs"].items() if k != "digest"}
        _expect_same(
            {**measurement.provenance, "details": parts, "pairs": there}, state.origin, "it"
        )
    except (VlmEditError, KeyError, TypeError, AttributeError):
        return False
    return True


def _begin(
    host: Host | Model,
    pairs: Pairs,
    dictionary: Encodes,
    site: str,
    part: tuple[int, int],
    *,
    zeros: Zeros = "skip",
    keep: int = max(EXAMPLES),
    batch_size: int = 64,
    judge: Judge | None = None,
    progress: bool = True,
) -> tuple[_State, Reader]:
    """Return a measurement that has read nothing yet, and what it reads with."""
    host = Host.of(host)
    place = host.site(site)
    if place.streams != STREAMS:
        raise BadArgument(
            f"site {site!r} has the {place.streams[0]} stream only; dominance compares image and "
            "text: choose a site that both pass, such as 'joint'"
        )
    if pairs.only is not None:
        raise BadArgument(
            f"{pairs.name} holds {pairs.only}s alone; dominance compares image and text: give pairs"
        )
    if batch_size < 1:
        raise BadArgument(f"batch size is {batch_size}; it must be at least 1")
    reader = Reader(host, dictionary, site, batch_size, progress, sizes=True)
    settings = {
        "site": site,
        "zeros": zeros,
        "keep": keep,
        "batch_size": batch_size,
        "prompt": host.asks(),
        "judge": None if judge is None else [judge.name, *judge.streams, judge.shared],
        "seed": SEED,
    }
    origin = provenance(host, place, dictionary, settings)
    origin["details"] = details(host)
    origin["pairs"] = {
        "name": pairs.name,
        "count": len(pairs),
        "listing": pairs_listing(pairs),
        "texts": texts_digest(pairs),
    }
    accumulator = MeasurementAccumulator(dictionary.n_features, zeros, keep, judge)
    return _State(accumulator, origin, part), reader


def merge_parts(
    checkpoints: Sequence[str | os.PathLike[str]],
    pairs: Pairs | Iterable[Any],
    judge: Judge | None = None,
) -> Measurement:
    """Merge the checkpoints that all parts of a measurement left into one measurement.

    Args:
        checkpoints: The files, one per part, in any order.
        pairs: The same pairs; the judge looks at the top examples among them.
        judge: The same judge.

    Returns:
        What one process would have measured.

    Raises:
        VlmEditError: A part is missing, twice there or unfinished, or they do not belong together.
    """
    pairs = Pairs.of(pairs)
    states = sorted(
        (_State.load(Path(path), judge) for path in checkpoints), key=lambda state: state.part
    )
    if not states:
        raise BadArgument("no parts to merge: name the checkpoint of each")
    first = states[0]
    parts = [(i, first.part[1]) for i in range(first.part[1])]
    if [state.part for state in states] != parts:
        have = ", ".join(f"{i + 1} of {n}" for i, n in (state.part for state in states))
        raise BadArgument(f"the parts do not make a whole: they are {have}")
    if first.origin["pairs"]["listing"] != pairs_listing(pairs):
        raise BadArgument(f"{pairs.name}: these are not the pairs that the parts measured")
    for state in states:
        _expect_same(first.origin, state.origin, "another part")
        if state.next_batch < state.batches(len(pairs)).stop:
            raise BadArgument(
                f"part {state.part[0] + 1} of {state.part[1]} is not finished: run it again, it "
                "goes on where it stopped"
            )
        state.expect_images(pairs, f"part {state.part[0] + 1}")
    for state in states[1:]:
        first.merge(state)
    return first.finish(pairs)


@dataclass(eq=False)
class _State:
    """Hold a measurement under way: what was gathered so far, and what comes next."""

    accumulator: MeasurementAccumulator
    origin: dict[str, Any]
    part: tuple[int, int] = (0, 1)
    next_batch: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    stamps: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        i, n = self.part
        if not 0 <= i < n:
            raise BadArgument(f"part {self.part} is not (i, n) with 0 <= i < n")
        self.next_batch = self.next_batch or self.batches(self.origin["pairs"]["count"]).start

    def batches(self, n_pairs: int) -> range:
        """Return the numbers of the part's batches."""
        i, n = self.part
        total = -(-n_pairs // int(self.origin["settings"]["batch_size"]))
        return range(total * i // n, total * (i + 1) // n)

    def run(self, reader: Reader, pairs: Pairs, checkpoint: Path | None, every: float) -> None:
        """Read the pairs that are still to be read."""
        if checkpoint is not None and checkpoint.is_file():
            self._go_on(checkpoint, pairs)
        reader.skipped[:], reader.truncated = self.skipped, self.truncated
        last = time.monotonic()
        numbers = self.batches(len(pairs))
        ranges = list(pairs.batches(reader.batch_size))
        # Of files as they were before reading.
        before = self._stamps(pairs, ranges, self.next_batch)
        logger.info(
            "%s: %d of %d batches of %s to read",
            *(reader.site, numbers.stop - self.next_batch, len(numbers), pairs.name),
        )
        for number, batch in reader.read_numbered(pairs, range(self.next_batch, numbers.stop)):
            if batch is not None:
                self.accumulator.update(batch)
            self._tell(reader)
            self.stamps.extend(before)
            before = self._stamps(pairs, ranges, number + 1)
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

    def _stamps(self, pairs: Pairs, cut: Sequence[range], number: int) -> list[int]:
        return [stamp(pairs.images[i]) for i in cut[number]] if number < len(cut) else []

    def expect_images(self, pairs: Pairs, what: str) -> None:
        """Refuse pairs whose images are not those that were read."""
        first = self.batches(len(pairs)).start * int(self.origin["settings"]["batch_size"])
        skipped = {number for number, _ in self.skipped}
        expect_images(
            *(pairs, first, self.stamps, self.accumulator.digest.images, skipped, what),
        )

    def _go_on(self, checkpoint: Path, pairs: Pairs) -> None:
        there = _State.load(checkpoint, self.accumulator.judge)
        _expect_same(there.origin, self.origin, f"the checkpoint {str(checkpoint)!r}")
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
        self.expect_images(pairs, f"the checkpoint {str(checkpoint)!r}")
        logger.info("going on from %s at batch %d", checkpoint, self.next_batch)

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        header = {
            "version": _VERSION,
            "kind": _WHAT,
            "told": self.origin,
            "part": list(self.part),
            "next_batch": self.next_batch,
            "skipped": self.skipped,
            "truncated": self.truncated,
        }
        make_folder(path.parent)
        tensors = {**self.accumulator.state_dict(), _STAMPS: to_tensor(self.stamps)}
        write_tensors(path, tensors, header, _WHAT)
        logger.info("wrote %s at batch %d", path, self.next_batch)

    @classmethod
    def load(cls, path: Path, judge: Judge | None) -> _State:
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
            return cls(
                *(accumulator, origin, (i, n), header["next_batch"], skipped),
                *(header["truncated"], stamps),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFile(
                f"{path} is damaged ({type(error).__name__}: {error}): delete it to begin anew"
            ) from error

    def merge(self, other: _State) -> None:
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
        for stream, repeats in measurement.repeats.items():
            text = repeats.warning(measurement.n_pairs, stream)
            if text is not None:
                warnings.warn(text, RepeatedPairs, stacklevel=3)  # the line of measure
        return measurement


def _expect_same(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    """Refuse to go on with, or to merge, what was measured otherwise."""
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
                f"{what} was measured with {name} ({first}: {str(a.get(first))[:60]}, here "
                f"{str(b.get(first))[:60]}{f'; and {more} more' if more else ''}): measure into "
                "another folder or file, or delete it to begin anew"
            )
