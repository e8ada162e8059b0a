"""Keep with runs where their features fire, for their pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Measure
from vlm_edit.cli.subject import Subject
from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.ground.notebook import several
from vlm_edit.measuring import is_pooled, load_measurement, map_examples


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
            maps = map_examples(
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
        telling.wrote("maps", kept.save_maps(folder, maps, checksum))
        if maps.left_out:
            telling.warn(
                f"{several(maps.left_out, 'feature')} without maps: "
                f"{several(len(maps.pairs), 'pair')} are looked at, the strongest features first"
            )
        if maps.why:
            telling.warn(
                f"maps tell which tokens, and not where they lie in the picture: {maps.why}"
            )


def _are_kept(folder: Path, checksum: str) -> bool:
    try:
        return kept.maps(folder, checksum) is not None
    except DamagedFile:
        return False
