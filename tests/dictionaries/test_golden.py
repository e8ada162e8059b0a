"""Checkpoints that other libraries wrote give those libraries' codes and reconstructions.

Each zip in ``golden`` was written by the script of its name there, in that library's environment.
"""

import pytest
from golden.read import FOLDER, cases, check

from vlm_edit.dictionaries import Layout
from vlm_edit.testing import check_format

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_what_the_library_computes_comes_out(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_every_format_passes_the_suite_that_those_of_others_are_given(case, tmp_path):
    files, said, _ = case.unpack(tmp_path)
    if "refused" in said:
        return
    options = dict(said["options"])
    if "layout" in options:
        options["layout"] = Layout(**options["layout"])
    check_format(files / said["path"], **options)


def test_all_golden_files_together_stay_small():
    sizes = [file.stat().st_size for file in FOLDER.glob("*.zip")]
    assert max(sizes, default=0) < 200_000
    assert sum(sizes) < 1_200_000
