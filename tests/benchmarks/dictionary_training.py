"""Compare training with sae-lens' own trainer: explained variance at equal L0, time per step.

    PYTHONPATH=docs/experiments OMP_NUM_THREADS=1 python \
        tests/benchmarks/dictionary_training.py --pairs build/emoji --sae-lens VENV/bin/python

VENV is an environment with ``sae-lens==6.54.12``, build/emoji is what the zoo's pairs recipe
rendered. Both train BatchTopK dictionaries on the same joint embeddings of emoji-clip, of both
streams, normed and centred, with the same batch, steps, size, k and peak learning rate of Adam,
warmed up over a twentieth and decayed over the last fifth, and no clipping. Explained variance is
of the shipped pairs, which neither has seen, with the k * n largest codes of all n kept, so that L0
is equal to the last code. Times are taken in turn, one thread each; the figure is the median of the
ratios of neighbours.
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

from vlm_edit import Host

BATCH, SIZE, K = 1024, 512, 16


def explained(x: torch.Tensor, hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor) -> Any:
    """Share of variance with the K * n largest codes."""
    cut = hidden.flatten().topk(K * len(x)).values[-1]
    left = x - torch.where(hidden >= cut, hidden, 0.0) @ rows - bias
    return float(1 - left.square().sum() / (x - x.mean(0)).square().sum())


def other(path: str) -> None:
    """Answer lines of steps, seed and learning rate, in the other environment."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    data = load_file(path)
    x, held = data["train"], data["held"]
    for line in sys.stdin:
        steps, seed = map(int, line.split()[:2])
        torch.manual_seed(seed)
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=SIZE, k=K))
        config = SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=float(line.split()[2]),
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


def ours(data: dict[str, torch.Tensor], steps: int, seed: int, lr: float) -> tuple[float, float]:
    """Explained variance and seconds per step."""
    from vlm_edit.dictionaries import TrainConfig, train_dictionary

    config = TrainConfig(
        SIZE, K, steps, BATCH, lr, center=False, seed=seed, clip=None, dead_after=200
    )
    start = time.perf_counter()
    found = train_dictionary({"image": data["train"]}, config, progress=False)
    seconds = time.perf_counter() - start
    encoder, held = found.encoder, data["held"]
    hidden = torch.relu((held - found.decoder_bias) @ encoder.weight + encoder.bias)
    return explained(held, hidden, found.decoder, found.decoder_bias), seconds / steps


def embeddings(pairs: Path, batches: int = 120) -> dict[str, torch.Tensor]:
    """Joint embeddings of both streams, of training drawings and of the shipped pairs."""
    from transformers import CLIPProcessor

    from recipes.batches import TrainingPairs
    from recipes.dictionaries import collect as collect_batches
    from recipes.dictionaries import plain
    from vlm_edit import zoo
    from vlm_edit.measuring import collect

    host, processor = zoo.load_host()
    assert isinstance(processor, CLIPProcessor)
    drawn = TrainingPairs(pairs, processor.tokenizer, plain(), seed=1)
    trained = collect_batches(host, drawn, batches)["joint"]
    shipped = collect(Host.of(host, processor), zoo.load_pairs(), "joint", progress=False)
    parts: dict[str, list[torch.Tensor]] = {"train": [], "held": []}
    for stream, x in trained.items():
        normed = [y * y.shape[1] ** 0.5 / y.norm(dim=1, keepdim=True) for y in (x, shipped[stream])]
        for name, y in zip(parts, normed, strict=True):
            parts[name].append(y - normed[0].mean(0))
    data = {name: torch.cat(x) for name, x in parts.items()}
    scale = (data["train"].square().sum(1).mean() / data["train"].shape[1]).sqrt()
    return {name: x / scale for name, x in data.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sae-lens", help="python of an environment with sae-lens")
    parser.add_argument("--pairs", type=Path, help="what the pairs recipe rendered")
    parser.add_argument("--other", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-steps", type=int, default=100)
    options = parser.parse_args()
    if options.other:
        return other(options.other)
    torch.set_num_threads(1)
    data = embeddings(options.pairs)
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

            def theirs(steps: int, seed: int, lr: float) -> Any:
                print(steps, seed, lr, file=server.stdin, flush=True)
                return json.loads(server.stdout.readline())

            theirs(20, 0, 1e-3), ours(data, 20, 0, 1e-3)
            steps = options.round_steps
            pairs = [
                (ours(data, steps, i, 1e-3)[1], theirs(steps, i, 1e-3)[1])
                for i in range(options.rounds)
            ]
            ratios = sorted(b / a for a, b in pairs)
            a, b = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"time per step: {a:.2f} ms, sae-lens {b:.2f} ms")
            print(
                f"ratio: median {statistics.median(ratios):.2f}, {ratios[0]:.2f}-{ratios[-1]:.2f}"
            )
            for lr in options.lr:
                for seed in range(options.seeds):
                    a = ours(data, options.steps, seed, lr)[0]
                    b = theirs(options.steps, seed, lr)[0]
                    print(f"lr {lr} seed {seed}: explained {a:.4f}, sae-lens {b:.4f}", flush=True)
            server.stdin.close()
    return None


if __name__ == "__main__":
    main()
