"""``vlm-edit measure`` and ``vlm-edit report``: from pairs to a run, and from a run to a page."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Measure, Report
from vlm_edit.cli.host import ZOO
from vlm_edit.cli.subject import Subject, load_pairs
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import BadArgument, CannotKnow, DamagedFile, VlmEditError
from vlm_edit.ground.files import locked, make_folder
from vlm_edit.measuring import (
    Judge,
    Measurement,
    Pairs,
    RepeatedPairs,
    centred,
    expect_centrable,
    image_encoder,
    is_finished,
    load_measurement,
    merge_parts,
    save_runs,
    size_of,
    text_encoder,
    texts_digest,
)
from vlm_edit.report import class_table, feature_table, write_page

CENTRED, RUN = "centred", "measurement.safetensors"


def measure(options: Measure) -> int:
    """Write a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepeatedPairs)  # told in a line of its own
        return _measure(options)


def _measure(options: Measure) -> int:
    out = Path(options.out)
    part, parts = _part(options.part)
    if parts > 1 and options.centred:
        raise BadArgument("--centred measures twice and cannot be cut into parts: leave one out")
    judge = _judge(options)
    subject = Subject.load(options)
    if options.centred:
        expect_centrable(subject.expect_dictionary())
    make_folder(out)
    wanted: dict[str, Any] = {"zeros": options.zeros, "keep": options.keep, "judge": judge}
    files = [out / f"part-{i + 1}-of-{parts}.checkpoint" for i in range(parts)]
    if _held(subject, options, files, wanted) and parts == 1:
        _tell(load_measurement(out), subject)
        _tell_held(out, options.centred)
        return 0
    if parts > 1:
        return _measure_part(subject, options, part, files, wanted)
    runs = {out: subject.measure(**wanted, checkpoint=files[0], every=options.every)}
    _tell(runs[out], subject)
    if options.centred:
        moved = centred(subject.expect_dictionary(), runs[out].means)
        runs[out / CENTRED] = again = subject.measure(**wanted, dictionary=moved)
        print("\nCodes with each stream centred apart (the gap is that of the activations):\n")
        telling.table(class_table(again))
        print()
    with locked(out):
        _change(runs, files)
    return 0


def _held(
    subject: Subject, options: Measure, files: Sequence[Path], wanted: Mapping[str, Any]
) -> bool:
    """Tell whether the folder holds what would be measured; refuse to replace another run."""
    out = Path(options.out)
    if options.overwrite or not (out / RUN).exists():
        return False
    if subject.was_measured(out, **wanted):
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


def _tell_held(out: Path, again: bool) -> None:
    print(f"{out} holds this measurement, whole; to measure anew add --overwrite\n")
    _tell_where([out, *([out / CENTRED] if again else [])])


def _measure_part(
    subject: Subject, options: Measure, part: int, files: Sequence[Path], wanted: Mapping[str, Any]
) -> int:
    """Measure a part; the process that finds all of them finished makes the run."""
    out = Path(options.out)
    if options.overwrite or not subject.was_measured(out, **wanted):
        subject.measure_part((part, len(files)), files[part], every=options.every, **wanted)
    with locked(out):
        missing = sum(not is_finished(file) for file in files)
        if missing and subject.was_measured(out, **wanted):
            for file in files:
                file.unlink(missing_ok=True)
            _tell_held(out, False)
        elif missing:
            print(f"part {part + 1} of {len(files)} is done; {missing} to go, in {out}")
        else:
            run = merge_parts(files, subject.pairs, wanted["judge"])
            _tell(run, subject)
            _change({out: run}, files)
    return 0


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


def report(options: Report) -> int:
    """Write a run's page."""
    folder = Path(options.run)
    page = Path(options.page or folder / "index.html")
    if options.page:  # the run's own is made of the run alone, and made anew as it grows
        expect_free([page], options.overwrite, "name another page with --page")
    run = load_measurement(folder)
    pairs = _pairs_of(run, options)
    checksum = run.checksum()
    gone = sum(isinstance(image, Path) and size_of(image) is None for image in pairs.images)
    if gone:
        telling.warn(
            f"{gone} of {len(pairs)} images are gone or out of reach: the page shows their texts "
            "alone; name pairs that have moved with --pairs"
        )
    tables, examples = kept.edits(folder, checksum)
    pictures = kept.pictures(folder, checksum)
    title = options.title or f"Features at {run.site}"
    census = kept.census(folder, checksum)
    write_page(page, run, pairs, title, tables, examples, pictures, census, seed=options.seed)
    for file in kept.others(folder, checksum):
        telling.warn(f"left out, since it is of a run that was here before: {file}")
    telling.wrote("page", page)
    return 0


def _pairs_of(run: Measurement, options: Report) -> Pairs:
    """Load the pairs that a run measured, from where they were or where they are now."""
    listed = run.provenance.get("pairs", {})
    listed = listed if isinstance(listed, dict) else {}
    # Without their digest a stranger's run may name any file of the reader's.
    own = "texts" in listed or listed.get("name") == f"{ZOO}pairs"
    source = options.pairs or (listed.get("name") if own else None)
    if not isinstance(source, str):
        raise CannotKnow("the run does not say which pairs it measured: name them with --pairs")
    try:
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


def _tell(run: Measurement, subject: Subject) -> None:
    for table in (class_table(run), feature_table(run, subject.pairs)):
        telling.table(table)
        print()
    telling.left_out(run.skipped, run.truncated)
    telling.figures("summary", run.summary())


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


def _part(text: str) -> tuple[int, int]:
    """Return the part counted from 0, and how many there are; typed from 1."""
    try:
        i, n = (int(number) for number in text.split("/"))
    except ValueError as error:
        raise BadArgument(f"--part takes I/N, such as 2/4, got {text!r}") from error
    if not 1 <= i <= n:
        raise BadArgument(f"--part {text}: I must lie between 1 and N")
    return i - 1, n
