"""Load damaged checkpoints of every format, others on every day, and count what comes of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/damaged_files.py [--files 500] [--seed N]

Files are those of ``tests/dictionaries/golden`` and those that ``test_fuzz_formats`` builds,
damaged as there; the seed is the day's number, so that other days damage others. Loaded is what
loads and encodes (a byte of a weight may change without being noticed), refused what ends in a
``VlmEditError``, foreign any other error, slow what took more than a second of CPU.
"""

from __future__ import annotations

import argparse
import datetime
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "dictionaries" / "formats"))
from test_fuzz_formats import GOLDEN, OWN, damage, told_of

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import PairedDictionary
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.report import Table

COLUMNS = ("files", "loaded", "refused", "foreign", "slow")


def outcome(case: Path, work: Path, rng: random.Random) -> tuple[str, str]:
    """Damage a copy of one of a case's files and load it; say what came of it, and why."""
    path, options = told_of(case)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(case / "files", work)
    file = rng.choice(sorted(file for file in work.rglob("*") if file.is_file()))
    file.write_bytes(damage(file.read_bytes(), rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_dictionary(work / path, lazy=bool(rng.getrandbits(1)), **options)
        paired = isinstance(found, PairedDictionary)
        for half in (found.of("image"), found.of("text")) if paired else (found,):
            inner = getattr(half, "inner", half)  # of a transcoder
            whole = inner.load() if isinstance(inner, StoredDictionary) else inner
            stream = next(iter(whole.encoder.centers), None)
            half.encode(torch.ones(1, half.width), stream)
    except VlmEditError:
        return "refused", ""
    except Exception as error:
        return "foreign", f"{case.name}: {type(error).__name__}: {error}"
    return "loaded", ""


def fuzz(name: str, cases: list[Path], options: argparse.Namespace, work: Path) -> Counter[str]:
    """Load as many damaged files of a library as was asked for."""
    counts: Counter[str] = Counter()
    for number in range(options.files):
        rng = random.Random(f"{name} {options.seed} {number}")
        start = time.process_time()
        kind, why = outcome(rng.choice(cases), work, rng)
        counts.update(files=1, slow=time.process_time() - start > 1, **{kind: 1})
        if why:
            print(f"{name} {options.seed} {number}: {why}", file=sys.stderr, flush=True)
    return counts


def main() -> None:
    """Damage, load, count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="of each library")
    parser.add_argument("--seed", type=int, default=datetime.date.today().toordinal())
    options = parser.parse_args()
    sources: dict[str, Any] = {archive.stem: archive for archive in GOLDEN}
    sources |= {write.__name__: write for write in OWN}
    rows, whole = [], Counter[str]()
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            cases = Path(folder, "cases")
            if isinstance(source, Path):
                with zipfile.ZipFile(source) as archive:
                    archive.extractall(cases)
            else:
                source(cases)
            counts = fuzz(name, sorted(cases.iterdir()), options, Path(folder, "work"))
        whole.update(counts)
        rows.append([name, *(str(counts[column]) for column in COLUMNS)])
    rows.append(["together", *(str(whole[column]) for column in COLUMNS)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    note = f"Seed {options.seed}; peak memory {peak} MiB"
    print(Table("Damaged checkpoints", ("of", *COLUMNS), rows, note))


if __name__ == "__main__":
    main()
