"""What ``load_dictionary`` makes of fresh checkpoints that the real libraries write.

    .ci/peers --no-run      # makes the environment, once
    .venv-peers/bin/python tests/benchmarks/read_by_us.py --old .venv-peers/old [--reasons]

``foreign_checkpoints`` says what each library writes, in a temporary folder. A case is equal where
codes and output differ from the library's own by 2e-5 of their largest value at most; wrong where
it loads and does not; foreign where anything but a ``VlmEditError`` comes out. Of each that loads,
the lazy reading must give the same bits, and what ``save_saelens`` writes of it must load to the
same bits, or be refused. Each library runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import foreign_checkpoints as foreign
from foreign_checkpoints import Case

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import save_saelens
from vlm_edit.report import Table

NEAR = 2e-5
OLD = ("5.11.0", "4.4.5", "3.23.4")
WRITERS: dict[str, Any] = {
    "sae-lens": foreign.sae_lens_6,
    "eai-sparsify": foreign.sparsify,
    "dictionary-learning": foreign.dictionary_learning,
    "overcomplete": foreign.overcomplete,
    "saev": foreign.saev,
    "visaebench": foreign.visaebench,
}
COLUMNS = ("cases", "equal", "refused", "wrong", "foreign", "lazy differs", "saved again",
           "not saved", "saved differs")  # fmt: skip


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def read(case: Case, folder: Path, counts: Counter[str], worst: list[float]) -> str:
    """Load a case, compare, count; return why it was refused or how it went wrong."""
    counts["cases"] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = load_dictionary(case.path, **case.options)
            lazy = load_dictionary(case.path, lazy=True, **case.options)
    except VlmEditError as error:
        counts["refused"] += 1
        return f"refused: {error}"
    except Exception as error:
        counts["foreign"] += 1
        return f"foreign: {type(error).__name__}: {error}"
    predicts = getattr(whole, "predict", None) or whole.reconstruct  # a transcoder predicts
    codes, output = whole.encode(case.x), predicts(case.x)
    off = max(difference(codes, case.codes), difference(output, case.output))
    counts["lazy differs"] += not torch.equal(lazy.encode(case.x), codes)
    _save(whole, folder, counts)
    if not off <= NEAR:
        counts["wrong"] += 1
        return f"wrong by {off:.1e}"
    counts["equal"] += 1
    worst.append(off)
    return ""


def _save(dictionary: Any, folder: Path, counts: Counter[str]) -> None:
    """Save a dictionary for SAELens and load it again."""
    try:
        save_saelens(dictionary, folder)
    except VlmEditError:
        counts["not saved"] += 1
        return
    counts["saved again"] += 1
    counts["saved differs"] += load_dictionary(folder).digest() != dictionary.digest()


@torch.no_grad()
def count(cases: Iterator[Case], root: Path, reasons: bool) -> dict[str, Any]:
    """Read all cases of a library."""
    counts: Counter[str] = Counter()
    worst, why = [0.0], Counter[str]()
    for case in cases:
        said = read(case, root / "again" / case.name, counts, worst)
        if said:
            why[re.sub(r"\d+(\.\d+)?", "N", said.replace(str(case.path), "…"))[:250]] += 1
            if not said.startswith("refused"):
                print(f"{case.name}: {said}", file=sys.stderr)
    return {**counts, "worst": max(worst), "why": why if reasons else {}}


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, help="folder of unpacked wheels of sae-lens")
    parser.add_argument("--reasons", action="store_true", help="say what was refused, and why")
    parser.add_argument("--libraries", nargs="+", help="these alone")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.libraries or [*WRITERS, *(f"sae-lens {v}" for v in OLD if options.old)]
    if options.only:
        writer = WRITERS.get(options.only)
        if writer is None:
            of = options.only.split()[1]
            writer = partial(foreign.sae_lens_old, folder=options.old / of, version=of)
        torch.manual_seed(options.seed)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "cases")
            root.mkdir()
            print("\n" + json.dumps(count(writer(root), Path(folder), options.reasons)))
        return
    rows, why = [], {}
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        label = name if " " in name else f"{name} {version(name)}"
        rows.append([label, *(str(found.get(c, 0)) for c in COLUMNS), f"{found['worst']:.1e}"])
        why[label] = found["why"]
        print(rows[-1], file=sys.stderr, flush=True)
    print(Table("Checkpoints of other libraries", ("written by", *COLUMNS, "worst"), rows, ""))
    for label, reasons in why.items() if options.reasons else ():
        for reason, times in sorted(reasons.items(), key=lambda item: -item[1]):
            print(f"{label}: {times} x {reason}")


if __name__ == "__main__":
    main()
