"""``vlm-edit maps``, and what ``measure`` keeps with its runs of where their features fire."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_edit import measuring
from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Maps, Measure
from vlm_edit.cli.numbers import numbers
from vlm_edit.cli.subject import Subject
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.ground.files import make_folder
from vlm_edit.ground.notebook import several
from vlm_edit.measuring import found_in, is_pooled, load_measurement, map_examples, map_site
from vlm_edit.report import write_maps


def maps(options: Maps) -> int:
    """Write a page of where features fire."""
    out = Path(options.out)
    page, file = out / "index.html", out / kept.MAPS
    expect_free([page, file], options.overwrite, "name another folder with --out")
    asked = None if options.features is None else numbers(options.features, "--features")
    subject = Subject.load(options, alone=True, sharded=True)
    found = map_site(
        subject.host,
        subject.source,
        subject.expect_dictionary(),
        subject.site,
        features=asked,
        per=options.per,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    make_folder(out)
    found.save(file)
    strongest = found.strongest() if asked is None else asked
    shown = strongest[: options.shown]
    kind = subject.host.kind.__name__
    note = (
        f"{several(len(shown), 'feature')} of {len(strongest):,}, the strongest first; each with "
        f"the {options.per} examples in which it is strongest, and as many drawn at random."
    )
    name = Path(str(options.dictionary)).name
    title = f"Where features of {name} fire at {subject.site} of {kind}"
    pairs = found_in(subject.source)
    write_maps(page, found, pairs, title, shown, notes=[note], side=options.side)
    _warn(found)
    telling.figures("maps", {"features": len(strongest), "pairs": len(found.pairs)})
    telling.wrote("maps", file)
    telling.wrote("page", page)
    return 0


def keep_maps(subject: Subject, folders: Sequence[Path], options: Measure) -> None:
    """Map the examples of runs whose sites have tokens, unless that was done.

    What cannot be mapped is told, and the run stays as it is.

    Args:
        subject: What was measured.
        folders: Of its runs.
        options: As typed.
    """
    for folder, (site, dictionary) in zip(folders, subject.readings(), strict=True):
        if options.maps < 1 or is_pooled(subject.host, site):
            continue
        run = load_measurement(folder)
        checksum = run.checksum()
        if _are_kept(folder, checksum):
            continue
        try:
            mapped = map_examples(
                subject.host,
                subject.source,
                dictionary,
                run,
                per=options.maps,
                batch_size=subject.batch_size,
                progress=not options.quiet,
            )
        except VlmEditError as error:
            telling.warn(f"no maps of where features fire: {error}")
            continue
        telling.wrote("maps", kept.save_maps(folder, mapped, checksum))
        _warn(mapped)


def _warn(maps: measuring.Maps) -> None:
    if maps.left_out:
        telling.warn(
            f"{several(maps.left_out, 'feature')} without maps: {several(len(maps.pairs), 'pair')} "
            "are looked at, the strongest features first"
        )
    if maps.why:
        telling.warn(f"nobody can tell where tokens lie in the picture: {maps.why}")


def _are_kept(folder: Path, checksum: str) -> bool:
    try:
        return kept.maps(folder, checksum) is not None
    except DamagedFile:
        return False
