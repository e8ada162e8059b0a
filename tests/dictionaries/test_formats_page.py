"""The table of docs/dictionaries.md, held to the formats that are read and to the golden files."""

import re
import zipfile
from pathlib import Path

from vlm_edit.dictionaries.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs" / "dictionaries.md").read_text("utf-8").splitlines()
    if line.startswith("| `")
]


def test_every_format_that_is_read_has_a_row_and_no_other():
    named = [re.match(r"`(\w+)`", row[0])[1] for row in ROWS]
    assert sorted(named) == sorted(known.name for known in FORMATS)


def test_the_counts_are_those_of_the_golden_files():
    counts = (n for row in ROWS for n in re.findall(r"\((\d+)(?: files)?\)", row[-1]))
    stated = sorted(int(n) for n in counts)
    archives = (ROOT / "tests" / "dictionaries" / "golden").glob("*.zip")
    cases = (zipfile.ZipFile(path).namelist() for path in archives)
    assert stated == sorted(sum(n.endswith("case.json") for n in names) for names in cases)


def test_what_a_format_may_be_told_stands_in_its_row():
    for known in FORMATS:
        row = next(row for row in ROWS if row[0].startswith(f"`{known.name}`"))
        told = " ".join(row)
        missing = [name for name in known.takes if name not in told.lower()]
        assert not missing, (known.name, missing)
