"""A run on the disk: files that change together, and how figures are written."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edit.ground.errors import DamagedFile
from vlm_edit.ground.files import CHECKSUM, locked, make_folder, pack_tensors, write_together

if TYPE_CHECKING:
    from vlm_edit.measuring.result import Measurement

FILE = "measurement.safetensors"
SUMMARY = "summary.json"


def save_runs(runs: Mapping[Path, Measurement]) -> None:
    """Write several runs as one change, such as a run and the one inside it.

    No file takes its name before all are on the disk. The first run's summary does so first and
    its measurement last: in between, ``load_measurement`` refuses it.

    Args:
        runs: By folder, made if need be.

    Raises:
        VlmEditError: They cannot be written; runs that were there before still are.
    """
    files: dict[Path, bytes] = {}
    last: dict[Path, bytes] = {}
    for folder, run in runs.items():
        target = make_folder(folder)
        header, tensors = run.taken_apart()
        files[target / SUMMARY] = json_of(run.summary())
        files[target / "features.csv"] = csv_of(run.table())
        (files if last else last)[target / FILE] = pack_tensors(tensors, header)
    with locked(next(iter(runs))):
        write_together({**files, **last}, "run")


def expect_whole(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuse a run whose change was broken off: its summary, which changes first, is of another."""
    file = folder / SUMMARY
    if not file.is_file():
        return
    try:
        digest = json.loads(file.read_text(encoding="utf-8")).get(CHECKSUM)
    except (OSError, ValueError, AttributeError, RecursionError):
        digest = "unreadable"
    if digest != header.get(CHECKSUM):
        raise DamagedFile(
            f"{folder} holds an unfinished change: {SUMMARY} is not of the run in {FILE}. Wait, if "
            "a process is writing it; measure again, which takes up what was measured, if one was "
            f"killed; for the run in {FILE}, delete {SUMMARY} and features.csv"
        )


def csv_of(columns: Mapping[str, list[Any]]) -> bytes:
    """Write a table as CSV, with its header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8")


def json_of(value: Any) -> bytes:
    """Write JSON that people can read."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def known(value: Any) -> Any:
    """Return a value, or None for what JSON does not know: NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
