"""Measure: one pass over the pairs, that can be stopped, shared and gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.host import Host, Model
from vlm_edit.measures.dominance import Zeros
from vlm_edit.measuring.accumulator import MeasurementAccumulator
from vlm_edit.measuring.details import details, summed
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import EXAMPLES, SEED
from vlm_edit.measuring.order import Order
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import pairs_listing, provenance, texts_digest
from vlm_edit.measuring.reader import STREAMS, Reader
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.state import Head, State, expect_same


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

    One pass over the pairs, all captions of an image together: images are the sample that
    intervals and tests speak of (``Dominance``). What is summed up does not grow with their number;
    a batch's images, texts and activations are held at once, so memory goes by ``batch_size`` and
    their sizes.

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
        many pairs have the same text, or their images the same pixels in files that differ, which
        tests do not know of, it warns (``RepeatedPairs``).

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
    state, reader, order = _begin(
        *(host, pairs, dictionary, site, (0, 1)),
        zeros=zeros,
        keep=keep,
        batch_size=batch_size,
        judge=judge,
        progress=progress,
    )
    state.run(reader, pairs, order, None if checkpoint is None else Path(checkpoint), every)
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
    state, reader, order = _begin(host, pairs, dictionary, site, part, **options)
    state.run(reader, pairs, order, Path(checkpoint), every)


def is_finished(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether a part has read all its pairs.

    Args:
        checkpoint: Its file; it need not be there yet.
    """
    path = Path(checkpoint)
    return path.is_file() and Head.read(path).finished


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
    state, _, _ = _begin(host, Pairs.of(pairs), dictionary, site, (0, 1), **options)
    return is_of(measurement, state)


def is_of(measurement: Measurement, state: State) -> bool:
    """Return whether a measurement is what a state would give, once it is finished.

    Args:
        measurement: What was measured.
        state: One that need not have read anything yet.
    """
    parts = state.origin["details"]  # of which a run keeps digests
    try:
        if measurement.provenance["digests"] != summed(parts):
            return False
        there = {k: v for k, v in measurement.provenance["pairs"].items() if k != "digest"}
        expect_same(
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
) -> tuple[State, Reader, Order]:
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
    order = Order.of(pairs, batch_size)
    origin["pairs"] = {
        "name": pairs.name,
        "count": len(pairs),
        "listing": pairs_listing(pairs),
        "texts": texts_digest(pairs),
    }
    if order.repeated:
        origin["pairs"]["images"] = order.digest
    accumulator = MeasurementAccumulator(dictionary.n_features, zeros, keep, judge)
    return State(accumulator, origin, len(order.batches), part), reader, order


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
    heads = sorted(
        ((Head.read(path), path) for path in map(Path, checkpoints)), key=lambda each: each[0].part
    )
    order = _expect_whole([head for head, _ in heads], pairs)
    first = heads[0][0]
    for head, path in heads:
        expect_same(first.origin, head.origin, f"another part, {str(path)!r},")
        if not head.finished:
            raise BadArgument(
                f"part {head.part[0] + 1} of {head.part[1]} is not finished: run it again, it "
                "goes on where it stopped"
            )
    merged = _load(heads[0][1], judge, pairs, order)
    for _, path in heads[1:]:
        merged.merge(_load(path, judge, pairs, order))  # none but these two are held
    return merged.finish(pairs)


def _expect_whole(heads: Sequence[Head], pairs: Pairs) -> Order:
    """Refuse parts that do not make a whole, or are of other pairs; return the order of these."""
    if not heads:
        raise BadArgument("no parts to merge: name the checkpoint of each")
    first = heads[0]
    if [head.part for head in heads] != [(i, first.part[1]) for i in range(first.part[1])]:
        have = ", ".join(f"{i + 1} of {n}" for i, n in (head.part for head in heads))
        raise BadArgument(f"the parts do not make a whole: they are {have}")
    if first.origin["pairs"]["listing"] != pairs_listing(pairs):
        raise BadArgument(f"{pairs.name}: these are not the pairs that the parts measured")
    order = Order.of(pairs, int(first.origin["settings"]["batch_size"]))
    if first.origin["pairs"].get("images") != order.digest:
        raise BadArgument(f"{pairs.name}: the parts were measured when other images were the same")
    return order


def _load(path: Path, judge: Judge | None, pairs: Pairs, order: Order) -> State:
    """Load a finished part, if its images are still those that it read."""
    state = State.load(path, judge)
    state.expect_images(pairs, order, f"part {state.part[0] + 1}")
    return state
