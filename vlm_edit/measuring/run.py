"""Measure: one pass over the pairs, that can be stopped, shared and gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.host import Host, Model, Site
from vlm_edit.measures.dominance import Zeros
from vlm_edit.measuring.accumulator import MeasurementAccumulator
from vlm_edit.measuring.details import details, summed
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import EXAMPLES, SEED
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.plan import Plan, Verify, expect_plan, plan_of
from vlm_edit.measuring.provenance import provenance
from vlm_edit.measuring.reader import STREAMS, Reader
from vlm_edit.measuring.reading import Reading
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.shards import Shards
from vlm_edit.measuring.state import Head, Run, State, expect_same
from vlm_edit.measuring.until import Look, Until


def measure(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    dictionary: Encodes,
    site: str = "joint",
    *,
    zeros: Zeros = "skip",
    keep: int = max(EXAMPLES),
    batch_size: int = 64,
    judge: Judge | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    workers: int | None = None,
    verify: Verify = "sample",
    progress: bool = True,
    until_width: float | None = None,
    until_features: Iterable[int] | None = None,
    until_share: float | None = None,
) -> Measurement:
    """Measure how much each feature of a dictionary belongs to image or text, and what it is of.

    One pass over the pairs, all captions of an image together: images are the sample that
    intervals and tests speak of (``Dominance``). What is summed up does not grow with their number;
    a batch's images, texts and activations are held at once, so memory goes by ``batch_size`` and
    their sizes.

    Args:
        host: In eval mode, wherever its weights are, with its processor.
        pairs: Image-text pairs, or what ``Pairs.of`` takes: a list of (image, text), a table; or
            ``Shards``, which are read in turn and never held.
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
        workers: Processes that decode images and make the host's inputs ahead of it, which changes
            no bit; 0 for none, None for as many as suit: none beside a host on the CPU.
        verify: What a run that goes on looks at again of the images it has read: ``sample`` for
            the files' sizes and times and 32 images, ``all`` for all images.
        progress: Whether to show a bar.
        until_width: Stop once the 90 % intervals of the scores are at most so wide, looking when
            512 pairs are read, 1,024, 2,048 and so on; the pairs must be in random order, for what
            is read to be a sample. ``Measurement.stopping`` says how it went.
        until_features: Whose intervals; by default those of ``until_share``.
        until_share: Of pairs in which a feature fires at least for its interval to count, by
            default .01; rarer ones may never settle, and are counted.

    Returns:
        The measurement; pairs whose image could not be read are listed in ``skipped``. Where
        many pairs have the same text, or their images the same pixels in files that differ, which
        tests do not know of, it warns (``RepeatedPairs``).

    Raises:
        VlmEditError: A site with one stream only, another width than the dictionary's, not
            one image that can be read, or a checkpoint of another measurement: of a host or a
            processor that has changed since, or of images that were others when they were read;
            a width that is none, or features that are not there.

    Example:
        >>> from vlm_edit import Host, measure, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> pairs = zoo.load_pairs().select(range(64))
        >>> dictionary = zoo.load_dictionary("joint")
        >>> measurement = measure(host, pairs, dictionary, progress=False)
        >>> measurement.n_pairs
        64
    """
    readings = [(site, dictionary)]
    return measure_together(
        *(host, pairs, readings),
        zeros=zeros,
        keep=keep,
        batch_size=batch_size,
        judge=judge,
        checkpoint=checkpoint,
        every=every,
        workers=workers,
        verify=verify,
        progress=progress,
        until_width=until_width,
        until_features=until_features,
        until_share=until_share,
    )[0]


def measure_together(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    readings: Sequence[tuple[str, Encodes]],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    verify: Verify = "sample",
    **options: Any,
) -> list[Measurement]:
    """Measure several dictionaries, at one site or at several, in one pass of the host.

    Args:
        host: As in ``measure``, like the next.
        pairs: The pairs.
        readings: A site's name and a dictionary of its width, for each.
        checkpoint: As in ``measure``, like the rest; one file for all.
        every: Seconds between two states.
        verify: What a run that goes on looks at again.
        options: As in ``measure``: zeros, keep, batch_size, judge, workers, progress; and
            until_width and until_share, which wait for all of them.

    Returns:
        A measurement for each, as ``measure`` would give it.

    Raises:
        VlmEditError: As in ``measure``.

    Example:
        >>> from vlm_edit import Dictionary, Host, zoo
        >>> from vlm_edit.measuring import measure_together
        >>> host = Host.of(*zoo.load_host())
        >>> pairs = zoo.load_pairs().select(range(32))
        >>> both = [("joint", zoo.load_dictionary("joint")), ("joint", Dictionary.identity(192))]
        >>> [m.n_pairs for m in measure_together(host, pairs, both, progress=False)]
        [32, 32]
    """
    state, reader, plan = begin(host, pairs, readings, (0, 1), **options)
    state.run(reader, plan, None if checkpoint is None else Path(checkpoint), every, verify)
    return state.finish(plan)


def measure_part(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    dictionary: Encodes,
    site: str = "joint",
    *,
    part: tuple[int, int],
    checkpoint: str | os.PathLike[str],
    every: float = 60.0,
    verify: Verify = "sample",
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
        verify: As in ``measure``.
        options: As in ``measure``: zeros, keep, batch_size, judge, workers, progress.

    Raises:
        VlmEditError: As in ``measure``, a part that is not one of n, or until_width: who looks at
            all parts needs the folder of all (``Sharing``).
    """
    if part[1] > 1 and options.get("until_width") is not None:
        raise BadArgument(
            f"until_width looks at all parts, and part {part[0] + 1} of {part[1]} sees its own "
            "alone: measure parts in one folder (Sharing, or vlm-edit measure --part)"
        )
    state, reader, plan = begin(host, pairs, [(site, dictionary)], part, **options)
    state.run(reader, plan, Path(checkpoint), every, verify)


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
    pairs: Pairs | Shards | Iterable[Any],
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
        options: As in ``measure``: zeros, keep, batch_size, judge, and those of until.
    """
    state, _, _ = begin(host, pairs, [(site, dictionary)], (0, 1), **options)
    return is_of(measurement, state.origin)


def is_of(measurement: Measurement, origin: Mapping[str, Any]) -> bool:
    """Return whether a measurement is what one of an origin would be, once it is finished.

    Args:
        measurement: What was measured.
        origin: Of a state.
    """
    parts = origin["details"]  # of which a run keeps digests
    try:
        if measurement.provenance["digests"] != summed(parts):
            return False
        there = {k: v for k, v in measurement.provenance["pairs"].items() if k != "digest"}
        there["count"] = there.pop("of", there["count"])
        if "count" not in origin["pairs"]:  # of shards, which are counted as they are read
            del there["count"]
        expect_same({**measurement.provenance, "details": parts, "pairs": there}, origin, "it")
    except (VlmEditError, KeyError, TypeError, AttributeError):
        return False
    return True


def begin(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    readings: Sequence[tuple[str, Encodes]],
    part: tuple[int, int],
    *,
    zeros: Zeros = "skip",
    keep: int = max(EXAMPLES),
    batch_size: int = 64,
    judge: Judge | None = None,
    workers: int | None = None,
    progress: bool = True,
    until_width: float | None = None,
    until_features: Iterable[int] | None = None,
    until_share: float | None = None,
) -> tuple[State, Reader, Plan]:
    """Return measurements that have read nothing yet, and what they read with.

    Args:
        host: As in ``measure_together``, like the next two.
        pairs: The pairs.
        readings: Sites and dictionaries.
        part: (i, n): the i-th of n parts, counted from 0.
        zeros: As in ``measure``, like the rest.
        keep: Top examples per feature.
        batch_size: Pairs per forward.
        judge: Independent encoders.
        workers: Processes that read ahead.
        progress: Whether to show a bar.
        until_width: Of intervals at which it stops.
        until_features: Whose intervals.
        until_share: Of pairs in which those fire, otherwise.
    """
    host, plan = Host.of(host), plan_of(pairs, batch_size)
    if not readings:
        raise BadArgument("nothing to measure: name a site and a dictionary")
    sizes = [dictionary.n_features for _, dictionary in readings]
    until = Until.of(until_width, until_features, until_share, sizes)
    for site, _ in readings:
        _expect_both(host.site(site))
    (site, dictionary), *others = readings
    beside = [Reading(host, other, at, sizes=True) for at, other in others]
    reader = Reader(
        *(host, dictionary, site, batch_size, progress, True, beside, workers),
        images=judge is not None,
    )
    settings = {
        "zeros": zeros,
        "keep": keep,
        "batch_size": batch_size,
        "prompt": host.asks(),
        "judge": None if judge is None else [judge.name, *judge.streams, judge.shared],
        "seed": SEED,
        "side": reader.least,
        **({} if until is None else {"until": until.as_json()}),
    }
    facts, parts = plan.facts(), details(host)
    runs = []
    for at, one in readings:
        origin = provenance(host, host.site(at), one, {"site": at, **settings})
        origin |= {"details": parts, "pairs": dict(facts)}
        runs.append(Run(MeasurementAccumulator(one.n_features, zeros, keep, judge), origin))
    return State(runs, plan.total, part), reader, plan


def _expect_both(place: Site) -> None:
    if place.streams != STREAMS:
        raise BadArgument(
            f"site {place.name!r} has the {place.streams[0]} stream only; dominance compares image "
            "and text: choose a site that both pass, such as 'joint'"
        )


def merge_parts(
    checkpoints: Sequence[str | os.PathLike[str]],
    pairs: Pairs | Shards | Iterable[Any],
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
    return merge_together(checkpoints, pairs, judge)[0]


def merge_together(
    checkpoints: Sequence[str | os.PathLike[str]],
    pairs: Pairs | Shards | Iterable[Any],
    judge: Judge | None = None,
    looks: Sequence[tuple[Look, ...]] = (),
) -> list[Measurement]:
    """Merge the checkpoints of parts that measured several dictionaries together.

    Args:
        checkpoints: As in ``merge_parts``, like the next two; two of them are held at a time.
        pairs: The same pairs.
        judge: The same judge.
        looks: At all parts; where the last has ended the reading, parts need not be finished.
    """
    heads = sorted(
        ((Head.read(path), path) for path in map(Path, checkpoints)), key=lambda each: each[0].part
    )
    if not heads:
        raise BadArgument("no parts to merge: name the checkpoint of each")
    first = heads[0][0]
    plan = plan_of(pairs, int(first.origin["settings"]["batch_size"]))
    ended = bool(looks) and all(look.settled for look in looks[-1])
    _expect_whole(heads, plan, ended)
    merged = _load(heads[0][1], judge, plan)
    merged.looks = list(looks) or merged.looks
    for _, path in heads[1:]:
        merged.merge(_load(path, judge, plan))  # none but these two are held
    return merged.finish(plan)


def _expect_whole(heads: Sequence[tuple[Head, Path]], plan: Plan, ended: bool) -> None:
    """Refuse parts that do not make a whole, or are of other pairs."""
    first = heads[0][0]
    if [head.part for head, _ in heads] != [(i, first.part[1]) for i in range(first.part[1])]:
        have = ", ".join(f"{i + 1} of {n}" for i, n in (head.part for head, _ in heads))
        raise BadArgument(f"the parts do not make a whole: they are {have}")
    expect_plan(first.origin["pairs"], plan)
    for head, path in heads:
        for one, other in zip(first.origins, head.origins, strict=True):
            expect_same(one, other, f"another part, {str(path)!r},")
        if not (head.finished or ended):
            raise BadArgument(
                f"part {head.part[0] + 1} of {head.part[1]} is not finished: run it again, it "
                "goes on where it stopped"
            )


def _load(path: Path, judge: Judge | None, plan: Plan) -> State:
    """Load a finished part, if what it read is still what it was."""
    state = State.load(path, judge)
    plan.expect(state, f"part {state.part[0] + 1}", "sample")
    return state
