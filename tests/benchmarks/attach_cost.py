"""What attaching costs: at every request, or once; by name; in how many scopes.

    OMP_NUM_THREADS=1 python tests/benchmarks/attach_cost.py

The zoo's CLIP, one image and one text a forward, a feature of its joint dictionary ablated. The
ways are taken in turn within each round; a ratio is that of medians within one round, and its
brackets hold the middle half of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from vlm_edit import Ablate, Patch, zoo
from vlm_edit.patches import PatchSet, detach_all

Run = Callable[[], object]


def median(run: Run, times: int) -> float:
    """Seconds that a run takes, the median of several."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def spread(values: list[float]) -> str:
    """The median of rounds and their middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--times", type=int, default=15, help="runs of each way in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, processor = zoo.load_host()
    image, text = zoo.load_pairs().open(0), ["a cat"]
    inputs = processor(text=text, images=[image], return_tensors="pt", padding=True)
    dictionary = zoo.load_dictionary("joint")
    patch = Patch("joint", dictionary, Ablate([7]))

    def forward() -> None:
        with torch.no_grad():
            host(**inputs)

    def request(scope: str = "process") -> None:
        with patch.attach(host, scope=scope):  # type: ignore[arg-type]
            forward()

    forwards: dict[str, tuple[Run, Run]] = {}  # what is put on before, and what is timed
    forwards["kept on"] = (lambda: patch.attach(host), forward)
    forwards["kept on at strength 0"] = (lambda: patch.attach(host, strength=0.0), forward)
    nine = {str(i): Patch("joint", dictionary, Ablate([i])) for i in range(9)}
    forwards["9 patches at strength 0"] = (
        lambda: [each.attach(host, strength=0.0) for each in nine.values()],
        forward,
    )
    forwards["a PatchSet of 9, none active"] = (lambda: PatchSet(host, nine), forward)
    for scope in ("process", "thread", "context"):
        forwards[f"attached at every request, scope {scope}"] = (
            lambda: None,
            lambda scope=scope: request(scope),
        )
    ratios: dict[str, list[float]] = {name: [] for name in forwards}
    plain_times = []
    patches = PatchSet(host, nine)
    single = patch.attach(host)
    small: dict[str, Run] = {
        "attach and remove": lambda: patch.attach(host, strength=0.5).detach(),
        "set_strength": lambda: single.set_strength(0.5),
        "PatchSet.activate, 1 of 9": lambda: patches.activate("3", 0.5),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in small}
    warnings.simplefilter("ignore")  # the same patch twice is what is measured
    for _ in range(options.rounds):
        for name, run in small.items():
            milliseconds[name].append(1e3 * median(run, options.times))
    detach_all(host)
    forward()
    for _ in range(options.rounds):
        for name, (before, run) in forwards.items():
            plain = median(forward, options.times)
            plain_times.append(1e3 * plain)
            before()
            run()
            ratios[name].append(median(run, options.times) / plain)
            detach_all(host)
    print(f"plain forward: {spread(plain_times)} ms")
    for name, values in ratios.items():
        print(f"{name}: {spread(values)} of plain")
    for name, values in milliseconds.items():
        print(f"{name}: {spread(values)} ms")


if __name__ == "__main__":
    main()
