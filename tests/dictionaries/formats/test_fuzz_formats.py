"""Damaged checkpoints of every library: nothing but a VlmEditError comes out, and at once.

    VLM_EDIT_FUZZ=10000 python -m pytest tests/dictionaries/formats/test_fuzz_formats.py

damages that many files of each library; without the variable some tens.
"""

import json
import os
import random
import resource
import shutil
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import Layout

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").glob("*.zip"))
FILES = int(os.environ.get("VLM_EDIT_FUZZ", "60"))
SLOWEST = 5.0  # seconds; a load takes some milliseconds


def damage(data: bytes, rng: random.Random) -> bytes:
    """What disks, downloads and enemies do: bytes changed, lost, added, moved, numbers grown."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) or 1)
        length = rng.randint(1, 24)
        kind = rng.randrange(6)
        if kind == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = bytes(rng.randrange(256) for _ in range(length))
        elif kind == 3:
            del found[at:]
        elif kind == 4:
            other = rng.randrange(len(found) or 1)
            found[at : at + length] = found[other : other + length]
        else:
            found[at : at + 8] = b"\xff" * 8
    return bytes(found)


@pytest.mark.parametrize("archive", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_damaged_files_are_refused_or_read_and_nothing_else(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "all")
    cases = sorted((tmp_path / "all").iterdir())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in range(FILES):
        rng = random.Random(f"{archive.stem} {seed}")
        case = rng.choice(cases)
        told = json.loads((case / "case.json").read_text("utf-8"))
        options = dict(told["options"])
        if "layout" in options:
            options["layout"] = Layout(**options["layout"])
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(case / "files", work)
        file = rng.choice(sorted(path for path in work.rglob("*") if path.is_file()))
        file.write_bytes(damage(file.read_bytes(), rng))
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_dictionary(work / told["path"], **options)
        except VlmEditError:
            refused += 1
        assert time.perf_counter() - start < SLOWEST, (archive.stem, seed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert refused > FILES / 3
    assert grown < 300_000, f"{grown} KiB more than before"
