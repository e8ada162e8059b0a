"""Measure what reading costs, and write docs/scale.md of it and of what it means for large sets.

    python docs/experiments scale.page                           # writes the page of what is stored
    python docs/experiments scale.page --measure                 # measures all anew, six minutes
    python docs/experiments scale.page --measure --only workers  # one table

Figures lie in docs/experiments/results/scale.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from scale import tables, timing

DOCS = Path(__file__).resolve().parents[2]
STORED, PAGE = DOCS / "experiments" / "results" / "scale.csv", DOCS / "scale.md"
RUN = ("machine", "load before", "seconds in all")
COLUMNS = ("section", "case", "figure", "value", "low", "high", "runs")


def load(path: Path = STORED) -> list[tables.Line]:
    """Return what is stored; nothing where nothing was measured yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [tables.Line(**row) for row in csv.DictReader(file)]


def save(lines: Sequence[tables.Line], path: Path = STORED) -> None:
    """Write lines, in the order of the sections."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(lines)


def machine() -> str:
    """Return what measures, in words."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if os.path.exists("/proc/cpuinfo") else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return (
        f"a virtual machine of {os.cpu_count()} cores, {names[0] if names else platform.machine()};"
        f" Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )


def measured(name: str) -> list[tables.Line]:
    """Measure a section."""
    torch.set_num_threads(1)
    busy, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(timing.SECTIONS[name](Path(folder)))
    about = (machine(), f"{busy:.1f}", f"{time.perf_counter() - start:.0f}")
    return [tables.Line(*map(str, row)) for row in rows] + [
        tables.Line(name, "run", what, value, "", "", "1")
        for what, value in zip(RUN, about, strict=True)
    ]


def merged(fresh: Sequence[tables.Line], before: Sequence[tables.Line]) -> list[tables.Line]:
    """Put the figures of a section in the place of its former ones, in the sections' order."""
    name = fresh[0].section
    every = [*(line for line in before if line.section != name), *fresh]
    return sorted(every, key=lambda line: list(timing.SECTIONS).index(line.section))


def main() -> None:
    """Measure if asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(timing.SECTIONS), default=None)
    parser.add_argument("--child", nargs=3, metavar=("KIND", "NUMBER", "PATH"), help="of a peak")
    options = parser.parse_args()
    if options.child:
        kind, number, path = options.child
        timing.child(kind, int(number), path)
        return
    if options.only and not options.measure:
        parser.error("--only says what to measure: give --measure too")
    if options.measure:
        for name in options.only or timing.SECTIONS:
            print(f"{name} ...", flush=True)
            save(merged(measured(name), load()))
    PAGE.write_text(tables.page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
