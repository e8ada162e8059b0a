"""``vlm-edit measure`` and ``vlm-edit report``: from pairs to a run, and from a run to a page."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Measure
from vlm_edit.cli.host import ZOO
from vlm_edit.cli.mapped import keep_maps
from vlm_edit.cli.numbers import numbers
from vlm_edit.cli.sharing import Place, place_of
from vlm_edit.cli.subject import Subject
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.files import locked, make_folder
from vlm_edit.measuring import (
    Judge,
    Measurement,
    RepeatedPairs,
    Sharing,
    centred,
    expect_centrable,
    expect_cut,
    found_in,
    image_encoder,
    load_measurement,
    save_runs,
    text_encoder,
)
from vlm_edit.report import class_table, feature_table

CENTRED, RUN = "centred", "measurement.safetensors"


def measure(options: Measure) -> int:
    """Write a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepeatedPairs)  # told in a line of its own
        return _measure(options)


def _measure(options: Measure) -> int:
    place = place_of(options)
    options, out = place.options, Path(options.out)
    until = _until(options)
    _expect_once(options, place.part[1], bool(until))
    judge = _judge(options)
    subject = Subject.load(options, also=options.also, sharded=True)
    if options.centred:
        expect_centrable(subject.expect_dictionary())
    make_folder(out)
    folders = _folders(options)
    wanted: dict[str, Any] = {"zeros": options.zeros, "keep": options.keep, "judge": judge}
    wanted |= until
    reading: dict[str, Any] = {"workers": options.workers}
    if place.part[1] > 1:
        return _measure_part(subject, place, {**wanted, **reading})
    file = out / "part-1-of-1.checkpoint"
    with locked(out):
        held = _held(options, lambda: subject.was_measured(folders, **wanted), [file])
    if held:
        _tell(load_measurement(out), subject)
        _tell_held([*folders, *([out / CENTRED] if options.centred else [])])
        keep_maps(subject, folders, options)
        return 0
    expect_cut(out, 1)
    kept_at = {"checkpoint": file, "every": options.every, "verify": options.verify}
    measured = subject.measure(**wanted, **reading, **kept_at)
    runs = dict(zip(folders, measured, strict=True))
    _tell_all(runs, subject)
    if options.centred:
        moved = centred(subject.expect_dictionary(), runs[out].means)
        runs[out / CENTRED] = again = subject.measure(**wanted, **reading, dictionary=moved)[0]
        print("\nCodes with each stream centred apart (the gap is that of the activations):\n")
        telling.table(class_table(again))
        print()
    with locked(out):
        _change(runs, [file])
    keep_maps(subject, folders, options)
    return 0


def _expect_once(options: Measure, parts: int, until: bool) -> None:
    """Refuse what cannot go with measuring twice, where that is asked for."""
    if options.centred and parts > 1:
        raise BadArgument(
            f"--centred measures twice and cannot be cut into {parts} parts: leave one out"
        )
    if options.centred and until:
        raise BadArgument(
            "--centred measures twice, and --until-width would stop each at pairs of its own: "
            "leave one out"
        )


def _held(options: Measure, was_measured: Callable[[], bool], files: Sequence[Path]) -> bool:
    """Tell whether the folder holds what would be measured; refuse to replace another run."""
    out = Path(options.out)
    if options.overwrite or not (out / RUN).exists():
        return False
    if was_measured():
        return not options.centred or (out / CENTRED / RUN).is_file()
    try:
        load_measurement(out)
    except DamagedFile:
        if any(file.exists() for file in files):  # killed while it was written
            return False
    raise BadArgument(
        f"{out} holds another measurement, and nothing has changed: measure into another folder "
        "with --out, or replace it with --overwrite"
    )


def _folders(options: Measure) -> list[Path]:
    """Return the folder of each run: that of the first, and of what else is measured one in it."""
    out = Path(options.out)
    folders = [out]
    for text in options.also:
        site, _, name = text.partition("=")
        folder = out / f"{site}-{Path(name.removeprefix(ZOO)).name}"
        if folder in folders:
            raise BadArgument(f"--also {text}: two dictionaries of one name at one site")
        folders.append(folder)
    return folders


def _tell_held(folders: Sequence[Path]) -> None:
    out = folders[0]
    print(f"{out} holds this measurement, whole; to measure anew add --overwrite\n")
    _tell_where(folders)


def _measure_part(subject: Subject, place: Place, wanted: Mapping[str, Any]) -> int:
    """Measure a part; the process that finds all of them finished makes the run."""
    options, out = place.options, Path(place.options.out)
    shared = subject.share(out, place.part, progress=place.speaks, **wanted)
    held = False
    try:
        with locked(out):
            held = _held(options, shared.is_measured, shared.files)
            if not held:
                shared.claim()
        if not held:
            shared.run(options.every, options.verify)
        with locked(out):
            merged = _finish_part(shared, subject, place, held)
        if merged or (held and place.speaks):
            keep_maps(subject, _folders(options), options)
    except VlmEditError:
        if shared.claimed or not shared.is_measured():
            raise
        _tell_merged(shared, place)  # another merged what this one was about to read
    return 0


def _finish_part(shared: Sharing, subject: Subject, place: Place, held: bool) -> bool:
    """Merge the parts if all are there; return whether this process did."""
    i, n = place.part
    if held or (not shared.claimed and shared.is_measured()):
        _tell_merged(shared, place)
    elif missing := shared.missing():
        if place.speaks:
            print(f"part {i + 1} of {n} is done; {len(missing)} to go, in {shared.folder}")
    else:
        runs = dict(zip(_folders(place.options), shared.merge(), strict=True))
        _tell_all(runs, subject)
        _change(runs, shared.leftovers())
        return True
    return False


def _tell_merged(shared: Sharing, place: Place) -> None:
    """Tell that the run is whole, and delete what a killed process has left of its parts."""
    for file in shared.leftovers():
        file.unlink(missing_ok=True)
    if place.speaks:
        _tell_held(_folders(place.options))


def _change(runs: Mapping[Path, Measurement], files: Iterable[Path]) -> None:
    """Put runs in the place of former ones; only then delete what belonged to those."""
    out, run = next(iter(runs.items()))
    former = _checksum(out)
    save_runs(runs)
    if former != run.checksum():
        kept.clear(out)
    if out / CENTRED not in runs:
        shutil.rmtree(out / CENTRED, ignore_errors=True)
    for file in files:
        file.unlink(missing_ok=True)
    _tell_where(runs)


def _checksum(out: Path) -> str | None:
    try:
        return load_measurement(out).checksum()
    except VlmEditError:
        return None


def _tell_where(runs: Iterable[Path]) -> None:
    for run in runs:
        telling.wrote("run", run)
        telling.wrote("page", f"vlm-edit report {run}")


def _tell_all(runs: Mapping[Path, Measurement], subject: Subject) -> None:
    for folder, run in runs.items():
        if len(runs) > 1:
            print(f"{folder}: {run.site}\n")
        _tell(run, subject)


def _tell(run: Measurement, subject: Subject) -> None:
    for table in (class_table(run), feature_table(run, found_in(subject.source, run))):
        telling.table(table)
        print()
    telling.left_out(run.skipped, run.truncated)
    telling.figures("summary", run.summary())


def _until(options: Measure) -> dict[str, Any]:
    """Return what was said of when to stop, as ``measure`` takes it."""
    asked: dict[str, Any] = {
        "until_width": options.until_width,
        "until_features": None,
        "until_share": options.until_share,
    }
    if options.until_features is not None:
        asked["until_features"] = numbers(options.until_features, "--until-features")
    return {name: value for name, value in asked.items() if value is not None}


def _judge(options: Measure) -> Judge | None:
    image, text = options.image_encoder, options.text_encoder
    if image is None and text is None:
        if options.shared_space:
            raise VlmEditError("--shared-space goes with --image-encoder and --text-encoder")
        return None
    return Judge(
        None if image is None else image_encoder(image),
        None if text is None else text_encoder(text),
        options.shared_space,
        " and ".join(Path(name).name for name in (image, text) if name is not None),
    )
