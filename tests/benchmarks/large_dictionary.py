"""What a dictionary of 131,072 features of width 4,096 takes of memory and time when it is used.

    OMP_NUM_THREADS=1 python tests/benchmarks/large_dictionary.py --folder build/large

writes random dictionaries of that size to `build/large` (2.1 GB each, float16): a JumpReLU in
SAELens' format and a TopK in sparsify's, and uses each in a process of its own. Memory is what the
process holds itself (RssAnon, sampled every millisecond); pages of the mapped file, which the
system drops when it needs room, are not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

M, D, K = 131_072, 4_096, 256
FORMATS = ("saelens", "sparsify")


def held() -> float:
    """MiB that this process holds itself."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measured(what: str, act: Callable[[], object]) -> None:
    """Print time and peak of memory above what is held already."""
    before, peak, done = held(), [held()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        kept = act()
    finally:
        seconds = time.perf_counter() - start
        after = held()
        done.set()
        watcher.join()
    del kept
    print(
        f"{what}: {seconds:.2f} s, peak {max(peak[0], after) - before:.0f} MiB, "
        f"kept {after - before:.0f} MiB",
        flush=True,
    )


def write(folder: Path) -> None:
    """Random dictionaries in both formats."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(M // 32, D, generator=generator).half().repeat(32, 1)
    rows *= torch.linspace(0.5, 1.5, M)[:, None].half()
    small = {"b_enc": torch.zeros(M), "b_dec": torch.zeros(D)}
    path = folder / "saelens"
    path.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "threshold": torch.full((M,), 210.0)}
    save_file({**tensors, **small}, path / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": M, "dtype": "float32"}
    config |= {"normalize_activations": "none", "apply_b_dec_to_input": False}
    told = {"metadata": {"sae_lens_version": "6.0.0"}, "reshape_activations": "none"}
    (path / "cfg.json").write_text(json.dumps(config | told))
    path = folder / "sparsify"
    path.mkdir(parents=True, exist_ok=True)
    named = {"encoder.weight": rows, "encoder.bias": small["b_enc"], "b_dec": small["b_dec"]}
    save_file({**named, "W_dec": rows.clone()}, path / "sae.safetensors")
    (path / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": M, "k": K}))


def use(path: Path, lazy: bool) -> None:
    """Load one, patch with it, encode with it."""
    from vlm_edit import Ablate, Patch, load_dictionary

    kept = {}

    def load() -> None:
        kept["dictionary"] = load_dictionary(path, lazy=True) if lazy else load_dictionary(path)

    measured("  load", load)
    dictionary = kept["dictionary"]
    edit = Ablate(list(range(0, M, M // 10))[:10])
    measured("  a patch of 10 features", lambda: Patch("language.24", dictionary, edit))
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    measured("  codes of 64 tokens", lambda: dictionary.encode_sparse(x))
    codes = dictionary.encode_sparse(x)
    measured(f"  decode them (L0 {len(codes.values) / 64:.0f})", lambda: dictionary.decode(codes))


def main() -> None:
    """Write, then use in new processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--use", help=argparse.SUPPRESS)
    parser.add_argument("--lazy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.use:
        return use(options.folder / options.use, options.lazy)
    if not all((options.folder / name / "cfg.json").exists() for name in FORMATS):
        write(options.folder)
    for name in FORMATS:
        for lazy in (True, False):
            print(f"{name}, {'left on disk' if lazy else 'loaded'}:", flush=True)
            command = [sys.executable, __file__, "--folder", str(options.folder), "--use", name]
            subprocess.run(command + ["--lazy"] * lazy, check=True)
    return None


if __name__ == "__main__":
    main()
