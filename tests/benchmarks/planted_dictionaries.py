"""How much of a planted truth dictionaries find, ours and those that other libraries train.

    .ci/peers --no-run      # makes the environment, once
    OMP_NUM_THREADS=1 .venv-peers/bin/python tests/benchmarks/planted_dictionaries.py FILE.jsonl

Activations are those of ``long_activations``: sums of about 6 of 256 known directions of width 64,
and the same where 1 in 200 is moved along one more direction, 40 times as far as the others are
long. Dictionaries of 256 features and an L0 of 6 are trained on the same 100,000 rows in 1,000
steps of 512 (``peer_trainers`` says how each library is asked) and looked at on 15,000 others, none
moved: explained variance, features active in none, and the mean over known directions of the
largest cosine with a decoder row. L0 is made equal for all alike: on 5,000 further rows one factor
of all thresholds (one number added, for gated ones and ReLUs) brings it to 6, TopK keeps its k.

Each library trains at its own default rate, and at the best of .001, .003, .01 and that default,
chosen by explained variance on seed 100, which is in no table. Every result is a line of the file:
what is there already is not run again, and ``--table`` only prints. ``--share 0/2`` and ``1/2``
divide the work, each with a file of its own; the tables read all files that are named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from long_activations import ACTIVE, DIRECTIONS, WIDTH, moved, sums
from peer_trainers import DEAD_AFTER, LACKS, TRAINERS, Task, l0

from vlm_edit.dictionaries import Dictionary
from vlm_edit.report import Table

KINDS = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
SETS = ("all alike", "1 in 200 far longer")
RATES = (None, 1e-3, 3e-3, 1e-2)  # None: the library's own
FIGURES = ("explained", "cosine", "dead", "l0")
BATCH, TUNING, CUT_ON = 512, 100, 5_000

Key = tuple[str, str, str, float | None, int]
Results = dict[Key, dict[str, float]]


def truth() -> Tensor:
    """The known directions, as ``sums`` draws them."""
    g = torch.Generator().manual_seed(20)
    return F.normalize(torch.randn(DIRECTIONS, WIDTH, generator=g), dim=1)


def at_l0(dictionary: Dictionary, kind: str, x: Tensor) -> Dictionary:
    """The dictionary whose one number is such that the wanted number of features is active."""
    encoder = dictionary.encoder
    if encoder.activation == "topk":
        return dictionary
    size = float(encoder(x, "image")[0].max())
    jumps = encoder.threshold is not None and kind != "gated"
    low, high = (0.0, 64.0) if jumps else (-size, size)

    def at(number: float) -> Dictionary:
        if encoder.threshold is None:
            return replace(dictionary, encoder=replace(encoder, bias=encoder.bias - number))
        moved_to = encoder.threshold * number if jumps else encoder.threshold + number
        return replace(dictionary, encoder=replace(encoder, threshold=moved_to.clamp_min(0)))

    for _ in range(40):
        middle = (low + high) / 2
        active = l0(at(middle).encode(x, "image"))
        low, high = (middle, high) if active > ACTIVE else (low, middle)
    return at((low + high) / 2)


def looked_at(dictionary: Dictionary, held: Tensor) -> dict[str, float]:
    """What a dictionary is like on activations that it has not seen."""
    codes = dictionary.encode(held, "image")
    left = (held - dictionary.reconstruct(held, "image")).square().sum()
    rows = F.normalize(dictionary.decoder, dim=1)
    return {
        "explained": float(1 - left / (held - held.mean(0)).square().sum()),
        "l0": l0(codes),
        "dead": float((codes == 0).all(0).sum()),
        "cosine": float((truth() @ rows.T).amax(1).mean()),
    }


def work(options: argparse.Namespace, results: Results) -> Iterator[Key]:
    """Yield what is to be trained, the most telling first: a run that is cut off has whole rows.

    Rates on the seed for tuning; then all seeds at the best of them, of ours and of the peer that
    did best in the row, then of the others; then all seeds at the libraries' own rates.
    """
    places = [(kind, which) for kind in options.kinds for which in options.sets]
    mine, of = map(int, options.share.split("/"))
    places = [place for i, place in enumerate(places) if i % of == mine]
    rows = [(name, *place) for place in places for name in options.libraries
            if (name, place[0]) not in LACKS]  # fmt: skip
    for row in rows:
        yield from ((*row, rate, TUNING) for rate in RATES)
    first = {("vlm_edit", *place) for place in places}
    first |= {(best_peer(options.libraries, results, *place), *place) for place in places}
    for row in sorted(rows, key=lambda row: row not in first):
        rate = tuned(results, *row)
        yield from ((*row, rate, seed) for seed in range(options.seeds))
    for row in rows:
        yield from ((*row, None, seed) for seed in range(options.seeds))


def best_peer(libraries: list[str], results: Results, kind: str, which: str) -> str:
    """The peer that explained most on the seed for tuning."""

    def explained(name: str) -> float:
        row = (name, kind, which)
        found = results.get((*row, tuned(results, *row), TUNING))
        return found["explained"] if found else float("-inf")

    return max((name for name in libraries if name != "vlm_edit"), key=explained, default="")


def tuned(results: Results, name: str, kind: str, which: str) -> float | None:
    """The rate that explained most on the seed for tuning."""
    tried = {rate: results.get((name, kind, which, rate, TUNING)) for rate in RATES}
    known = {rate: found["explained"] for rate, found in tried.items() if found}
    return max(known, key=lambda rate: known[rate]) if known else None


def read(files: list[Path]) -> Results:
    """What stands in files, by what was trained."""
    results = {}
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else ():
            entry = json.loads(line)
            results[tuple(entry["key"])] = entry["found"]
    return results  # type: ignore[return-value]


def run(options: argparse.Namespace) -> None:
    """Train what is not there yet, and write it down line by line."""
    results = read(options.files)
    data = sums(options.rows)
    sets = dict(zip(SETS, (data["train"], moved(data["train"])), strict=True))
    cut_on, held = data["held"][:CUT_ON], data["held"][CUT_ON:]
    for key in work(options, results):
        if key in results:
            continue
        name, kind, which, rate, seed = key
        task = Task(
            *(kind, sets[which], DIRECTIONS, ACTIVE, options.steps, BATCH, seed, rate),
            dead_after=options.dead_after,
            longest=options.longest,
        )
        start = time.process_time()
        dictionary = at_l0(TRAINERS[name](task), kind, cut_on)
        results[key] = looked_at(dictionary, held) | {"seconds": time.process_time() - start}
        with options.files[0].open("a") as file:
            file.write(json.dumps({"key": key, "found": results[key]}) + "\n")


def seeds_of(
    results: Results, count: int, row: tuple[str, str, str], default: bool
) -> list[dict[str, float]]:
    """What all seeds of a row gave; empty where one is missing."""
    rate = None if default else tuned(results, *row)
    found = [results.get((*row, rate, seed)) for seed in range(count)]
    return [entry for entry in found if entry] if all(found) else []


def tables(options: argparse.Namespace, results: Results) -> Iterator[Table]:
    """Yield a table for each figure, at the best rates, and of what is explained at the default."""
    libraries = options.libraries
    for figure, default in (*((f, False) for f in FIGURES), ("explained", True)):
        rows: list[list[str]] = []
        for kind in options.kinds:
            for which in SETS:
                found = {
                    name: [e[figure] for e in
                           seeds_of(results, options.seeds, (name, kind, which), default)]
                    for name in libraries
                }  # fmt: skip
                if any(found.values()):
                    cells = [cell(found[name], figure) for name in libraries]
                    rows.append([kind, which, *cells, beside_best(found, figure)])
        rate = "its own default rate" if default else "the best rate of a grid"
        yield Table(
            f"{figure}, each library at {rate}",
            ("kind", "trained on", *libraries, "vlm_edit less the best peer, seed by seed"),
            rows,
            f"Mean of {options.seeds} seeds, in brackets the least and the most.",
        )


def of_tuning(options: argparse.Namespace, results: Results) -> Table:
    """What is explained on the seed for tuning, at a library's own rate and at the best."""

    def told(row: tuple[str, str, str]) -> str:
        best = tuned(results, *row)
        own, at_best = (results.get((*row, rate, TUNING)) for rate in (None, best))
        if own is None or at_best is None:
            return ""
        rate = "own" if best is None else f"{best:g}".replace("0.", ".")
        texts = (f"{found['explained']:.3f}".replace("0.", ".") for found in (own, at_best))
        return f"{'; '.join(texts)} at {rate}"

    rows = [
        [kind, which, *(told((name, kind, which)) for name in options.libraries)]
        for kind in options.kinds
        for which in SETS
    ]
    return Table(
        "explained at the library's own rate; at the best",
        ("kind", "trained on", *options.libraries),
        rows,
        f"On seed {TUNING}, which chose the rates.",
    )


def cell(values: list[float], figure: str) -> str:
    """Mean, least and most."""
    if not values:
        return ""
    digits = 0 if figure == "dead" else 2 if figure == "l0" else 3
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})".replace("0.", ".")


def beside_best(found: dict[str, list[float]], figure: str) -> str:
    """The differences from the peer whose mean is best: largest, of dead features smallest."""
    ours = found.get("vlm_edit", [])
    peers = {name: values for name, values in found.items() if name != "vlm_edit" and values}
    if not ours or not peers or figure == "l0":
        return ""
    sign = -1 if figure == "dead" else 1
    best = max(peers, key=lambda name: sign * statistics.mean(peers[name]))
    differences = [a - b for a, b in zip(ours, peers[best], strict=True)]
    return f"{cell(differences, figure)}, {best}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="of results; the first is written to")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--longest", type=float, help="medians, of ours alone")
    parser.add_argument("--dead-after", type=int, default=DEAD_AFTER, help="steps, of all alike")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--libraries", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--share", default="0/1", help="which part of the work, of how many")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        run(options)
    results = read(options.files)
    for table in (*tables(options, results), of_tuning(options, results)):
        print(table, end="\n\n")


if __name__ == "__main__":
    main()
