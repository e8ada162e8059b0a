"""What compiling does to the time of a training's step, on the CPU, plain and compiled in turn.

    OMP_NUM_THREADS=1 python tests/benchmarks/compiled_steps.py

Milliseconds a step of 1,024 activations of width 256, 2,048 features, k 32, one thread: medians of
7 rounds, each the mean of 10 steps of either run; their ratio is the median of the rounds' ratios.
The first compiled steps take seconds more, which are not in it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from vlm_edit.dictionaries import TrainConfig
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.report import Table

KINDS = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
ROUNDS, STEPS = 7, 10


def run(config: TrainConfig, x: torch.Tensor) -> Trainer:
    """A run whose first steps are behind it."""
    trainer = Trainer(Data.of({"image": x}, config), config, torch.device("cpu"))
    for _ in range(5):
        trainer.step()
    return trainer


def taken(trainer: Trainer) -> float:
    """Milliseconds a step."""
    begun = time.perf_counter()
    for _ in range(STEPS):
        trainer.step()
    return (time.perf_counter() - begun) * 1000 / STEPS


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    x, rows = torch.randn(20_000, 256, generator=torch.Generator().manual_seed(0)), []
    for kind in KINDS:
        config = TrainConfig(2048, 32, 1000, 1024, kind=kind)  # type: ignore[arg-type]
        runs = [run(replace(config, compile=fast), x) for fast in (False, True)]
        rounds = [[taken(each) for each in runs] for _ in range(ROUNDS)]
        plain, fast = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        rows.append([kind, f"{plain:.1f}", f"{fast:.1f}", f"{ratio:.2f}"])
        print(rows[-1], flush=True)
    print(Table("Milliseconds a step", ("kind", "plain", "compiled", "ratio"), rows, ""))


if __name__ == "__main__":
    main()
