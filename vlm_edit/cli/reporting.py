"""``vlm-edit report``: from runs to pages."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Report
from vlm_edit.cli.detailed import details_of
from vlm_edit.cli.host import ZOO
from vlm_edit.cli.named import Name
from vlm_edit.cli.served import App
from vlm_edit.cli.subject import load_pairs, load_shards
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.measuring import (
    Measurement,
    Pairs,
    found_in,
    host_words,
    is_sharded,
    load_measurement,
    size_of,
    texts_digest,
    title_of,
)
from vlm_edit.report import Run, write_neuronpedia, write_page

_COMPARED = "compare.html"


@dataclass(frozen=True, eq=False)
class _Reported:
    folder: Path
    run: Measurement
    pairs: Pairs
    page: Path


def report(options: Report) -> int:
    """Write a run's page, or those of several, each leading to the others."""
    folders = [Path(run) for run in options.run]
    several = len(folders) > 1
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BadArgument("a run is named twice: name each once")
    pages = _pages(folders, options)
    if options.neuronpedia:
        mend = "name another folder with --neuronpedia"
        expect_free([Path(options.neuronpedia)], options.overwrite, mend)
    if options.page or several:  # a run's own is made of the run alone, and anew as it grows
        expect_free(pages, options.overwrite, "name another page with --page")
    reported = []
    for folder, page in zip(folders, pages, strict=True):
        run = load_measurement(folder)
        reported.append(_Reported(folder, run, pairs_of(run, options), page))
    names = _names(folders)
    runs = [Run(name, one.page.name, one.run) for name, one in zip(names, reported, strict=True)]
    for name, one in zip(names, reported, strict=True):
        title = options.title or title_of(one.run.site, one.run.provenance)
        title += f": {name}" if several else ""
        _write(one, title, runs if several else [], options.seed)
        if options.neuronpedia:
            telling.wrote("neuronpedia", _export(one, Path(options.neuronpedia)))
    return 0


def _export(one: _Reported, folder: Path) -> Path:
    model = host_words(one.run.provenance) or "host"
    dictionary = one.run.provenance.get("dictionary", {}).get("checksum", one.run.checksum())
    source = f"{one.run.site}-{str(dictionary)[:8]}"
    model, source = (re.sub(r"[^A-Za-z0-9_.-]+", "-", name) for name in (model, source))
    details = details_of(one.folder, one.run.checksum())
    return write_neuronpedia(folder, one.run, one.pairs, model, source, details)


def _pages(folders: list[Path], options: Report) -> list[Path]:
    first = folders[0] / (_COMPARED if len(folders) > 1 else "index.html")
    first = Path(options.page) if options.page else first
    rest = range(2, len(folders) + 1)
    return [first, *(first.with_name(f"{first.stem}-{i}{first.suffix}") for i in rest)]


def _names(folders: list[Path]) -> list[str]:
    """Name runs by their folders, with those above where the names are the same."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if max(Counter(names).values()) == 1:
            break
    return names


def _write(one: _Reported, title: str, runs: list[Run], seed: int) -> None:
    folder, run, pairs = one.folder, one.run, one.pairs
    checksum = run.checksum()
    images = [] if is_sharded(pairs.name) else pairs.images
    gone = sum(isinstance(image, Path) and size_of(image) is None for image in images)
    if gone:
        telling.warn(
            f"{gone} of {len(pairs)} images are gone or out of reach: the page shows their texts "
            "alone; name pairs that have moved with --pairs"
        )
    tables, examples = kept.edits(folder, checksum)
    write_page(
        one.page,
        run,
        pairs,
        title,
        tables,
        examples,
        kept.pictures(folder, checksum),
        kept.census(folder, checksum),
        seed=seed,
        details=details_of(folder, checksum),
        runs=runs,
        progress=True,
    )
    for file in kept.others(folder, checksum):
        telling.warn(f"left out, since it is of a run that was here before: {file}")
    telling.wrote("page", one.page)


def pairs_of(run: Measurement, options: Report | Name | App, whole: bool = False) -> Pairs:
    """Load the pairs that a run measured, from where they were or where they are now.

    Args:
        run: The run.
        options: The arguments, which may say where they are.
        whole: Whether all of them are read from shards, and not the run's examples alone.
    """
    listed = run.provenance.get("pairs", {})
    listed = listed if isinstance(listed, dict) else {}
    # Without their digest a stranger's run may name any file of the reader's.
    own = "texts" in listed or "shards" in listed or listed.get("name") == f"{ZOO}pairs"
    source = options.pairs or (listed.get("name") if own else None)
    if not isinstance(source, str):
        raise CannotKnow("the run does not say which pairs it measured: name them with --pairs")
    try:
        if is_sharded(source) and not whole:
            return found_in(load_shards(source, options.columns()), run)
        pairs = load_pairs(source, options.columns())
    except VlmEditError as error:
        raise VlmEditError(f"{error}; name the pairs of the run with --pairs") from error
    if listed.get("texts", texts_digest(pairs)) != texts_digest(pairs):
        count = listed.get("count", run.n_pairs)
        raise VlmEditError(
            f"{source} ({len(pairs)} pairs) does not hold the texts of the {count} pairs "
            "that the run measured: name the run's own with --pairs"
        )
    return pairs
