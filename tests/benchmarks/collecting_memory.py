"""How much memory writing activations takes, and training on them, against their number.

    python tests/benchmarks/collecting_memory.py

Each row is a process of its own: rows of width 512 are drawn and written in batches of 64 pairs of
16 tokens, in parts of 8 MiB; another then trains 20 steps of 1,024 on them. Peaks are those of the
process beyond what it took before, resident memory by the kernel's count; pages of mapped files,
which the system takes back where it needs them, are in that of training.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from vlm_edit.dictionaries import (
    ActivationsWriter,
    Index,
    TrainConfig,
    load_activations,
    train_dictionary,
    write_part,
)
from vlm_edit.report import Table

WIDTH, TOKENS, BATCH, PART = 512, 16, 64, 8 << 20
PAIRS = (1_000, 10_000)


def peak() -> int:
    """Bytes this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(folder: Path, pairs: int) -> None:
    """Write activations that are drawn."""
    batches = -(-pairs // BATCH)
    index = Index("0123456789abcdef", "site", ("image",), WIDTH, "float32", batches, BATCH, {})
    images = write_part(
        folder / f"{index.name}-pairs.safetensors", {"images": [torch.arange(pairs)]}
    )
    writer = ActivationsWriter(folder, replace(index, pairs=images), PART)
    before = peak()
    for batch in range(batches):
        numbers = torch.arange(batch * BATCH, min(pairs, (batch + 1) * BATCH))
        whose = numbers.repeat_interleave(TOKENS)
        writer.add(batch, {"image": (torch.randn(len(whose), WIDTH), whose)}, {})
    store = writer.finish()
    print(store["image"].numel() * 4, len(store.index.parts), peak() - before)


def train(folder: Path) -> None:
    """Train on them, a few steps."""
    config = TrainConfig(n_features=256, k=8, steps=20, batch_size=1024)
    train_dictionary({"image": torch.randn(2000, WIDTH)}, config, progress=False)
    before = peak()
    train_dictionary(load_activations(folder), config, progress=False)
    print(peak() - before)


def told(*words: object) -> list[int]:
    """Numbers that a process of this script prints."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def main() -> None:
    """Measure and print."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for pairs in PAIRS:
            folder = Path(place, str(pairs))
            folder.mkdir()
            size, parts, writing = told("write", folder, pairs)
            (training,) = told("train", folder)
            sizes = [f"{value / 2**20:.0f} MiB" for value in (size, writing, training)]
            rows.append([f"{pairs:,}", f"{pairs * TOKENS:,}", sizes[0], str(parts), *sizes[1:]])
    columns = ("pairs", "rows", "on the disk", "parts", "peak, writing", "peak, training")
    print(Table("Memory", columns, rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        write(Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1] == "write" else train(
            Path(sys.argv[2])
        )
    else:
        main()
