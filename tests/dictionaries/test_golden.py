"""Checkpoints that other libraries wrote give those libraries' codes and reconstructions.

Each zip in ``golden`` was written by the script of its name there, in that library's environment.
"""

import pytest
from golden.read import FOLDER, cases, check


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_what_the_library_computes_comes_out(case, tmp_path):
    check(case, tmp_path)


def test_all_golden_files_together_stay_small():
    sizes = [file.stat().st_size for file in FOLDER.glob("*.zip")]
    assert max(sizes, default=0) < 200_000
    assert sum(sizes) < 1_000_000
