"""Compare training with sae-lens' own trainer: explained variance at equal L0, time per step.

    OMP_NUM_THREADS=1 python docs/benchmarks/dictionary_training.py --sae-lens VENV/bin/python

VENV is an environment with ``sae-lens==6.54.12``. Both train BatchTopK dictionaries on the same
joint embeddings of emoji-clip, of both streams, normed and centred, with the same batch, steps,
size, k and schedule of Adam. Explained variance is of embeddings that neither has seen, with the
k * n largest codes of all n kept, so that L0 is equal to the last code. Times are taken in turn,
one thread each; the figure is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BATCH, SIZE, K, LR = 1024, 512, 16, 1e-3


def explained(x: torch.Tensor, hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor) -> Any:
    """Share of variance with the K * n largest codes."""
    cut = hidden.flatten().topk(K * len(x)).values[-1]
    left = x - torch.where(hidden >= cut, hidden, 0.0) @ rows - bias
    return float(1 - left.square().sum() / (x - x.mean(0)).square().sum())


def other(path: str) -> None:
    """Answer lines of steps and seed, in the other environment."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    data = load_file(path)
    x, held = data["train"], data["held"]
    for line in sys.stdin:
        steps, seed = map(int, line.split())
        torch.manual_seed(seed)
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=SIZE, k=K))
        config = SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=LR,
            lr_end=0.0,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 5,
            dead_feature_window=200,
        )

        def batches() -> Any:
            while True:
                yield x[torch.randint(len(x), (BATCH,))]

        start = time.perf_counter()
        SAETrainer(config, sae, batches()).fit()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            sizes = sae.W_dec.norm(dim=1)
            hidden = torch.relu((held - sae.b_dec) @ sae.W_enc + sae.b_enc) * sizes
            rows = sae.W_dec / sizes[:, None]
            value = explained(held, hidden, rows, sae.b_dec)
        print(json.dumps([value, seconds / steps]), flush=True)


def ours(data: dict[str, torch.Tensor], steps: int, seed: int) -> tuple[float, float]:
    """Explained variance and seconds per step."""
    from vlm_edit.dictionaries import TrainConfig, train_dictionary

    config = TrainConfig(SIZE, K, steps, BATCH, LR, center=False, seed=seed)
    start = time.perf_counter()
    found = train_dictionary({"image": data["train"]}, config, progress=False)
    seconds = time.perf_counter() - start
    encoder, held = found.encoder, data["held"]
    hidden = torch.relu((held - found.decoder_bias) @ encoder.weight + encoder.bias)
    return explained(held, hidden, found.decoder, found.decoder_bias), seconds / steps


def embeddings() -> dict[str, torch.Tensor]:
    """Both streams' joint embeddings, an eighth of the pairs held out."""
    from vlm_edit import collect, zoo

    host, processor = zoo.load_host()
    found = collect(host, processor, zoo.load_pairs(), "joint", progress=False)
    parts: dict[str, list[torch.Tensor]] = {"train": [], "held": []}
    for x in found.values():
        x = x.float() * x.shape[1] ** 0.5 / x.float().norm(dim=1, keepdim=True)
        held = torch.arange(len(x)) % 8 == 0
        center = x[~held].mean(0)
        parts["train"].append(x[~held] - center)
        parts["held"].append(x[held] - center)
    data = {name: torch.cat(x) for name, x in parts.items()}
    scale = (data["train"].square().sum(1).mean() / data["train"].shape[1]).sqrt()
    return {name: x / scale for name, x in data.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sae-lens", help="python of an environment with sae-lens")
    parser.add_argument("--other", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-steps", type=int, default=100)
    options = parser.parse_args()
    if options.other:
        return other(options.other)
    torch.set_num_threads(1)
    data = embeddings()
    print({name: tuple(x.shape) for name, x in data.items()}, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.safetensors")
        save_file(data, path)
        command = [options.sae_lens, __file__, "--other", str(path)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server:
            assert server.stdin and server.stdout

            def theirs(steps: int, seed: int) -> Any:
                print(steps, seed, file=server.stdin, flush=True)
                return json.loads(server.stdout.readline())

            theirs(20, 0), ours(data, 20, 0)
            pairs = [
                (ours(data, options.round_steps, i)[1], theirs(options.round_steps, i)[1])
                for i in range(options.rounds)
            ]
            ratios = sorted(b / a for a, b in pairs)
            a, b = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"time per step: {a:.2f} ms, sae-lens {b:.2f} ms")
            print(
                f"ratio: median {statistics.median(ratios):.2f}, {ratios[0]:.2f}-{ratios[-1]:.2f}"
            )
            for seed in range(options.seeds):
                a, b = ours(data, options.steps, seed)[0], theirs(options.steps, seed)[0]
                print(f"seed {seed}: explained {a:.4f}, sae-lens {b:.4f}", flush=True)
            server.stdin.close()
    return None


if __name__ == "__main__":
    main()
