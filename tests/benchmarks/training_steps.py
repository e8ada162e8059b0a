"""CPU time of a training step, ours and other libraries', in turn.

    .ci/peers --no-run      # makes the environment, once
    OMP_NUM_THREADS=1 .venv-peers/bin/python tests/benchmarks/training_steps.py [--rounds 7]

A time is what a long run takes more than a short one, divided by the steps between them, so that
what is done once (statistics, copies, a scale's estimate) does not count. Each round takes every
library in turn; the figures are medians of rounds, and ratios are of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from long_activations import sums
from peer_trainers import LACKS, TRAINERS, Task

from vlm_edit.report import Table

KINDS = ("topk", "batchtopk", "matryoshka", "gated")
FEATURES, K, BATCH = 256, 6, 512


def milliseconds(name: str, task: Task, steps: int) -> float:
    """CPU time of a step of a library."""
    times = []
    for count in (steps // 3, steps):
        start = time.process_time()
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            TRAINERS[name](replace(task, steps=count))
        times.append(time.process_time() - start)
    return 1000 * (times[1] - times[0]) / (steps - steps // 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = sums(20_000)["train"]
    rows = []
    for kind in options.kinds:
        names = [name for name in TRAINERS if (name, kind) not in LACKS]
        for name in names:  # what is imported and allocated at first
            milliseconds(name, Task(kind, x, FEATURES, K, 50, BATCH, 0, 1e-3), 50)
        rounds: list[dict[str, float]] = []
        for seed in range(options.rounds):
            task = Task(kind, x, FEATURES, K, options.steps, BATCH, seed, 1e-3)
            rounds.append({name: milliseconds(name, task, options.steps) for name in names})
        for name in names:
            ratios = sorted(times[name] / times["vlm_edit"] for times in rounds)
            middle = statistics.median(times[name] for times in rounds)
            told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows.append([kind, name, f"{middle:.2f}", told])
            print(rows[-1], file=sys.stderr, flush=True)
    title = f"A step of {BATCH} rows, width {x.shape[1]}, {FEATURES} features"
    columns = ("kind", "library", "ms of CPU", "times vlm_edit's")
    print(Table(title, columns, rows, f"Medians of {options.rounds} rounds; the least, the most."))


if __name__ == "__main__":
    main()
