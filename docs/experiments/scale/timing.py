"""Measure what reading costs: pairs a second, and memory in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from scale import early_stop, photographs
from scale.tables import CPU
from vlm_edit import Dictionary, Host, measure
from vlm_edit.measuring import measure_part, merge_parts, shards_of

BATCH = 64
LAYERS = 16
PEAKS = ("peak MiB", "MiB before", "seconds")  # what ``child`` prints


class Row(NamedTuple):
    """A figure of several runs.

    Attributes:
        section: The table it is of.
        case: What was measured.
        figure: Which figure.
        value: Their median.
        low: The least of them.
        high: The greatest.
        runs: How many.
    """

    section: str
    case: str
    figure: str
    value: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, section: str, case: str, figure: str, values: list[float]) -> Row:
        """Return the median of several runs, with the least and the greatest."""
        short = (float(f"{v:.6g}") for v in (statistics.median(values), min(values), max(values)))
        return cls(section, case, figure, *short, len(values))


class Rate(NamedTuple):
    """Pairs a second.

    Attributes:
        wall: Of the clock on the wall.
        cpu: Of the CPU that this process and those it started took, whatever else ran.
    """

    wall: float
    cpu: float

    @classmethod
    def of(cls, count: int, work: Callable[[], Any]) -> Rate:
        """Return how fast some pairs are read."""
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        work()
        return cls(count / (time.perf_counter() - wall), count / (sum(os.times()[:4]) - cpu))


T = TypeVar("T")


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each way gave in each round; one more, before all, warms up."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if turn:
                found[name].append(value)
    return found


def read(host: Host, dictionary: Dictionary, path: str, workers: int) -> None:
    """Measure pairs in small batches, of which workers have several each."""
    measure(host, path, dictionary, batch_size=8, workers=workers, progress=False)


def workers(folder: Path) -> Iterator[Row]:
    """Pairs a second against processes that read ahead, one thread in each."""
    made = {"emoji-clip": photographs.emoji_clip(), "random CLIP": photographs.random_clip()}
    kinds = (("emoji-clip", "2 megapixels", 32), ("random CLIP", "2 megapixels", 32),
             ("random CLIP", ".2 megapixels", 64))  # fmt: skip
    ways: dict[str, Callable[[], Rate]] = {}
    for number, (name, size, count) in enumerate(kinds):
        files = photographs.photographs(size, count)
        path = photographs.as_folder(files, folder / f"{number}")
        yield Row.of("workers", f"{name}, {size}", "bytes of a file", list(map(len, files)))
        for each in (0, 1, 2):
            ways[f"{name}, {size}/{each} workers"] = partial(
                Rate.of, count, partial(read, *made[name], path, each)
            )
    for name, values in in_turn(ways, 3).items():
        case, figure = name.split("/")
        yield Row.of("workers", case, figure, [value.wall for value in values])
        yield Row.of("workers", case, f"{figure}, {CPU}", [value.cpu for value in values])


def sources(folder: Path) -> Iterator[Row]:
    """Pairs a second by where the images lie."""
    host, dictionary = photographs.emoji_clip()
    files = photographs.photographs(".2 megapixels", 256)
    makers = {
        "files and a CSV file": photographs.as_folder,
        "tar": photographs.as_tar,
        "parquet": photographs.as_parquet,
    }
    ways = {}
    for number, (name, make) in enumerate(makers.items()):
        path = make(files, folder / f"source-{number}")
        ways[name] = lambda p=path: Rate.of(
            len(files), lambda: measure(host, p, dictionary, workers=0, progress=False)
        )
    for name, values in in_turn(ways, 5).items():
        yield Row.of("sources", name, CPU, [value.cpu for value in values])


def processes(folder: Path) -> Iterator[Row]:
    """Pairs a second of parts that run at once, until they are merged."""
    host, dictionary = photographs.emoji_clip()
    files = photographs.photographs("2 megapixels", 48)
    path = photographs.as_folder(files, folder / "shared")
    fork = multiprocessing.get_context("fork")

    def shared(parts: int) -> None:
        checkpoints = [folder / f"{i}-of-{parts}" for i in range(parts)]
        for checkpoint in checkpoints:
            checkpoint.unlink(missing_ok=True)
        options = [{"part": (i, parts), "checkpoint": c, "workers": 0, "progress": False,
                    "batch_size": 8} for i, c in enumerate(checkpoints)]  # fmt: skip
        running = [
            fork.Process(target=measure_part, args=(host, path, dictionary), kwargs=some)
            for some in options
        ]
        for process in running:
            process.start()
        for process in running:
            process.join()
        if merge_parts(checkpoints, path).n_pairs != len(files):
            raise RuntimeError(f"{parts} processes did not read all {len(files)} pairs")

    ways = {f"{n}": (lambda n=n: Rate.of(len(files), lambda: shared(n))) for n in (1, 2, 3)}
    for name, values in in_turn(ways, 3).items():
        yield Row.of("processes", name, "pairs a second", [value.wall for value in values])
        yield Row.of("processes", name, CPU, [value.cpu for value in values])


def early(_: Path) -> Iterator[Row]:
    """Seconds of a forward that ends behind the layer that is read, by the script beside."""
    host, site = early_stop.make_host(LAYERS, 32064), f"language.{LAYERS // 2}"
    every = early_stop.ways(host, site, early_stop.make_inputs(host, 16, 24))
    ways = {
        name: (lambda way=way: early_stop.seconds(host, site, way)) for name, way in every.items()
    }
    for name, values in in_turn(ways, 7).items():
        yield Row.of("early", name, "seconds", values)


def spread(_: Path) -> Iterator[Row]:
    """Standard deviations of the ratio that an MDS is the mean of, over features of the zoo."""
    from vlm_edit import zoo

    host, dictionary = photographs.emoji_clip()
    dominance = measure(host, zoo.load_pairs(), dictionary, progress=False).dominance
    low, high = dominance.intervals(0.9)
    often = dominance.active >= 30
    sds = ((high - low) * dominance.active.double().sqrt() / 2 / 1.6449)[often]
    low, middle, high = sds.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    quarters = (round(value, 4) for value in (middle, low, high))
    yield Row("spread", "emoji-clip", "standard deviation", *quarters, len(sds))


def memory(_: Path) -> Iterator[Row]:
    """Peaks of memory against pairs that are drawn, a process each."""
    cases = [("measure", 10**3, 1), ("measure", 10**4, 1), ("measure", 10**5, 1),
             ("cuts", 10**3, 1), ("cuts", 10**6, 1)]  # fmt: skip
    for kind, pairs, runs in cases:
        peaks = [alone(kind, pairs) for _ in range(runs)]
        for i, figure in enumerate(PEAKS):
            yield Row.of("memory", f"{kind} {pairs}", figure, [values[i] for values in peaks])


def large(folder: Path) -> Iterator[Row]:
    """Peaks of memory of one batch of photographs of 24 megapixels, a process each."""
    files = photographs.photographs("24 megapixels", BATCH)
    path = photographs.as_folder(files, folder / "large")
    yield Row.of("large", "files", "bytes of a file", list(map(len, files)))
    del files
    for side, runs in ((224, 1), (336, 1)):
        peaks = [alone("large", side, path) for _ in range(runs)]
        for i, figure in enumerate(PEAKS):
            yield Row.of("large", str(side), figure, [values[i] for values in peaks])


SECTIONS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "workers": workers,
    "sources": sources,
    "processes": processes,
    "early": early,
    "memory": memory,
    "large": large,
    "spread": spread,
}


def alone(kind: str, number: int, path: str = "") -> list[float]:
    """Return what ``child`` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1]), "scale.page", "--child", kind,
         str(number), path],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [float(word) for word in done.stdout.split()]


def resident(what: str) -> float:
    """Return MiB of this process by the kernel's count: ``VmHWM``, the peak, or ``VmRSS``."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError("no /proc/self/status: peaks are read on Linux")
    return int(found[1]) / 1024


def child(kind: str, number: int, path: str) -> None:
    """Print this process's peak of memory, what it had before and the seconds between."""
    warnings.simplefilter("ignore")  # texts of two dozen words come again
    torch.set_num_threads(1)
    if kind == "large":
        host, dictionary = photographs.random_clip(number)
        work = lambda: measure(host, path, dictionary, batch_size=BATCH, progress=False)  # noqa: E731
    elif kind == "cuts":
        from vlm_edit.measuring.plan import plan_of

        plan = plan_of(shards_of(lambda: drawn(number)), BATCH)
        work = lambda: sum(len(cut) for cut in plan.cuts(range(1)))  # noqa: E731
    else:
        host, dictionary = photographs.random_clip(16)
        host = type(host).of(host.root, host.processor, prompt=inputs)
        measure(host, shards_of(lambda: drawn(2 * BATCH)), dictionary, progress=False)
        pairs = shards_of(lambda: drawn(number))
        work = lambda: measure(host, pairs, dictionary, progress=False)  # noqa: E731
    before, start = resident("VmRSS"), time.perf_counter()
    work()
    print(resident("VmHWM"), before, time.perf_counter() - start)


def drawn(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Yield pairs that are made when they are asked for, all different."""
    for i in range(count):
        yield Image.new("RGB", (16, 16), (i & 255, i >> 8 & 255, i >> 16)), f"text {i}"


def inputs(_: Any, images: list[Image.Image], texts: list[str]) -> dict[str, torch.Tensor]:
    """Make inputs as fast as can be, so that many pairs are read in a minute."""
    colours = torch.tensor([image.getpixel((0, 0)) for image in images]) / 255
    numbers = torch.tensor([[int(text.split()[1]) % 97 + 5, 1] for text in texts])
    pixels = colours[:, :, None, None].expand(-1, -1, 16, 16)
    return {
        "input_ids": numbers,
        "attention_mask": torch.ones_like(numbers),
        "pixel_values": pixels,
    }
