"""Long tables of the suite take turns, and every row has its day."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TESTS
from tables import ROWS, rows_of


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("length", [1, ROWS, ROWS + 1, 3 * ROWS, 1000])
def test_every_row_has_its_day_and_no_day_has_too_many(length: int, least: int) -> None:
    rows: list[Any] = [SimpleNamespace(nodeid=f"test_it[{i}]") for i in range(length)]
    parts = max(-(-length // ROWS), least)
    days = [[r.nodeid for r in rows_of(rows, 739_000 + day, least)] for day in range(parts)]
    assert max(map(len, days)) <= ROWS
    assert sorted(sum(days, [])) == sorted(row.nodeid for row in rows)
    assert rows_of(rows, 739_000, least) == rows_of(rows, 739_000 + parts, least)


CONFTEST = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from tables import *

def pytest_collection_modifyitems(config, items):
    keep_todays(config, items)
"""
TABLE = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize("row", range(9))
def test_a_slow_row(row):
    pass

@pytest.mark.parametrize("row", range(60))
def test_a_row(row):
    pass
"""


def test_a_run_of_all_takes_a_part_and_says_which_and_what_is_named_is_tried_whole(
    tmp_path: Path,
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_table.py").write_text(TABLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = test_table.py\nmarkers = slow\n")

    def passed(day: int, *words: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=tmp_path, env={**plain(), "VLM_EDIT_DAY": str(day)}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        told = f"of long tables {ROWS} rows and of slow tests one in 3, VLM_EDIT_DAY={day}; all of"
        assert (told in done.stdout) == (words in ((), ("-n", "2"))), done.stdout + done.stderr
        found = re.search(r"(\d+) passed", done.stdout)
        assert found is not None and "failed" not in done.stdout, done.stdout
        return int(found[1])

    days = [passed(739_000 + day) for day in range(3)]
    assert sum(days) == 3 * 60 // 4 + 9, "a quarter of the table each day, each slow row once"
    assert passed(739_000, "-n", "2") == days[0]
    for words in (("--all",), ("test_table.py",), ("-k", "row")):
        assert passed(739_000, *words) == 60 + 9


def test_workers_that_share_the_cores_take_a_thread_each() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("this run has no workers: pytest -n 2")
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def plain() -> dict[str, str]:
    """The environment without what this run of pytest has put there."""
    return {name: value for name, value in os.environ.items() if "PYTEST" not in name}
