"""What measuring costs: encoding, decoding, and the scores, against other ways to the same numbers.

Methods run in turn within one process and on one thread; each round begins with another, and
ratios are of CPU time within a round. Numbers that are compared are first seen to agree.

    python tests/benchmarks/measurement_cost.py --sae-for-vlm CHECKOUT

CHECKOUT is a clone of https://github.com/ExplainableML/sae-for-vlm. Libraries that are not
installed are left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Dictionary
from vlm_edit.dictionaries import Encoder
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.dominance import DominanceAccumulator
from vlm_edit.measures.interpretability import TopExamples
from vlm_edit.measures.interpretability.monosemanticity import (
    SimilarityAccumulator,
    monosemanticity_score,
    multimodal_monosemanticity,
)
from vlm_edit.report import Table

Work = Callable[[], Any]
Row = list[str]


def in_turn(methods: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU of each method in each round; each round begins with another method."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    order = list(methods)
    for number in range(-1, rounds):  # the first warms up
        at = number % len(order)
        for name in order[at:] + order[:at]:
            start = time.process_time()
            methods[name]()
            if number >= 0:
                found[name].append(time.process_time() - start)
    return found


def told(over: list[float], under: list[float]) -> str:
    """Median of the rounds' ratios, and their middle half."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def planted(args: argparse.Namespace, m: int, activation: str, n: int) -> tuple[Dictionary, Tensor]:
    """A dictionary, and activations in which about k of its features are active."""
    g = torch.Generator().manual_seed(0)
    decoder = F.normalize(torch.randn(m, args.width, generator=g), dim=1)
    k = args.k if activation == "topk" else None
    encoder = Encoder(decoder.T.contiguous(), torch.full((m,), -0.9), activation, k=k)  # type: ignore[arg-type]
    if activation == "topk":
        encoder = Encoder(encoder.weight, torch.zeros(m), "topk", k=k)
    names = torch.randint(m, (n, args.k), generator=g)
    shared = torch.rand(n // 2, args.k, generator=g) < 0.5  # the first half are images
    names[-(n // 2) :] = torch.where(shared, names[: n // 2], names[-(n // 2) :])
    strengths = 1 + torch.rand(n, args.k, generator=g)
    x = F.embedding_bag(names, decoder, per_sample_weights=strengths, mode="sum")
    return Dictionary(encoder, decoder, torch.zeros(args.width)), x


def decoding(args: argparse.Namespace) -> Iterator[Row]:
    """Row 6."""
    for m, target in zip(args.sizes, (">= 10", ">= 25", ">= 50"), strict=False):
        dictionary, x = planted(args, m, "topk", args.batch // 4)
        codes = dictionary.encode_sparse(x)
        dense = codes.dense()
        ours: Work = partial(dictionary.decode, codes)
        methods: dict[str, Work] = {"ours": ours, "dense": partial(dictionary.decode, dense)}
        torch.testing.assert_close(ours(), methods["dense"](), rtol=1e-4, atol=1e-4)
        if have("sparsify"):
            methods["sparsify"] = sparsify_decode(dictionary, dense, args.k)
            torch.testing.assert_close(ours(), methods["sparsify"](), rtol=1e-4, atol=1e-4)
        found = in_turn(methods, args.rounds)
        yield ["6", f"dense decode over ours, {m}", target, told(found["dense"], found["ours"])]
        if "sparsify" in found:
            yield ["6", f"sparsify over ours, {m}", "a tie", told(found["sparsify"], found["ours"])]


def sparsify_decode(dictionary: Dictionary, dense: Tensor, k: int) -> Work:
    """``SparseCoder.decode`` with the same weights."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=dictionary.n_features, k=k)
    coder = SparseCoder(dictionary.width, config)
    coder.W_dec.data = dictionary.decoder
    values, indices = dense.topk(k)
    return lambda: coder.decode(values, indices)


def encoding(args: argparse.Namespace) -> Iterator[Row]:
    """Row 7."""
    if not have("sae_lens"):
        return
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    for m in args.sizes[:2]:
        dictionary, x = planted(args, m, "topk", args.batch)
        sae = TopKSAE(TopKSAEConfig(d_in=args.width, d_sae=m, k=args.k))
        sae.W_enc.data, sae.W_dec.data = dictionary.encoder.weight, dictionary.decoder
        ours: Work = partial(dictionary.encode_sparse, x)
        peer: Work = partial(sae.encode, x)
        torch.testing.assert_close(ours().dense(), peer(), rtol=1e-4, atol=1e-4)
        found = in_turn({"ours": ours, "SAELens": peer}, args.rounds)
        ratio = told(found["SAELens"], found["ours"])
        yield ["7", f"SAELens' encode, TopK of {m}, over ours", ">= 1.2", ratio]


def whole(args: argparse.Namespace) -> Iterator[Row]:
    """Row 8, and the sum: MDS, MMS and top examples in one pass."""
    m = args.sizes[1]
    g = torch.Generator().manual_seed(1)
    for activation, most, sum_most in (
        ("relu", "<= 1.15", "<= 1.25"),
        ("topk", "<= 1.35", "<= 1.35"),
    ):
        dictionary, x = planted(args, m, activation, 2 * args.batch)
        images, texts = x.chunk(2)
        spaces = torch.randn(2, args.batch, args.embedding, generator=g)

        def encode(d: Dictionary = dictionary, i: Tensor = images, t: Tensor = texts) -> Any:
            return d.encode_sparse(i), d.encode_sparse(t)

        def bare(
            w: Tensor = dictionary.encoder.weight, i: Tensor = images, t: Tensor = texts
        ) -> Any:
            return i @ w, t @ w

        methods = {
            "bare": bare,
            "encode": encode,
            "mds": lambda e=encode: score(args, m, e(), None),
            "all": lambda e=encode, s=spaces: score(args, m, e(), s),
        }
        found = in_turn(methods, args.rounds)
        yield [
            "8",
            f"encode and MDS over products, {activation}",
            most,
            told(found["mds"], found["bare"]),
        ]
        yield ["", f"encode over products, {activation}", "", told(found["encode"], found["bare"])]
        name = f"encode, MDS, MMS, top examples over encode, {activation}"
        yield ["sum", name, sum_most, told(found["all"], found["encode"])]


def score(
    args: argparse.Namespace, m: int, codes: tuple[SparseCodes, SparseCodes], spaces: Tensor | None
) -> Any:
    """Dominance, and with embeddings everything else."""
    dominance = DominanceAccumulator(m)
    dominance.update(*codes)
    if spaces is None:
        return dominance.compute()
    similar = [SimilarityAccumulator(m, args.embedding) for _ in codes]
    top = [TopExamples(m, args.keep) for _ in codes]
    for part, embeddings, s, t in zip(codes, spaces, similar, top, strict=True):
        s.update(part, embeddings)
        t.update(part, range(len(part)))
    values = [t.values for t in top]
    return dominance.compute(), multimodal_monosemanticity(*similar), values


def random_codes(args: argparse.Namespace, m: int, n: int, seed: int) -> SparseCodes:
    """As many different features per row as k says; other seeds share a part of them."""
    base, g = (torch.Generator().manual_seed(number) for number in (100, seed))
    rows = (
        (torch.rand(part, m, generator=base) + torch.rand(part, m, generator=g))
        .topk(args.k)
        .indices.sort()
        .values
        for part in [256] * (n // 256) + [n % 256] * bool(n % 256)
    )
    return SparseCodes.of_top(torch.rand(n, args.k, generator=g) + 0.1, torch.cat(list(rows)), m)


def dense_mds(image: SparseCodes, text: SparseCodes, chunk: int = 256) -> Tensor:
    """The definition on dense codes, some rows at a time."""
    m = image.n_features
    total, count = torch.zeros(m, dtype=torch.float64), torch.zeros(m)
    for start in range(0, len(image), chunk):
        a, b = (dense_rows(codes, start, chunk).abs() for codes in (image, text))
        both = a + b
        ratio = torch.where(both > 0, a / both, 0.0)
        total += ratio.sum(0)
        count += (both > 0).sum(0)
    return total / count


def dense_rows(codes: SparseCodes, start: int, chunk: int) -> Tensor:
    """Some rows, dense."""
    size = min(chunk, len(codes) - start)
    a, b = torch.searchsorted(codes.rows, torch.tensor([start, start + size])).tolist()
    rows, features = codes.rows[a:b] - start, codes.features[a:b]
    return torch.zeros(size, codes.n_features).index_put((rows, features), codes.values[a:b])


def dominance(args: argparse.Namespace) -> Iterator[Row]:
    """Row 9."""
    m = args.sizes[1]
    pair = random_codes(args, m, args.pairs, 0), random_codes(args, m, args.pairs, 1)

    def ours() -> Tensor:
        accumulator = DominanceAccumulator(m)
        accumulator.update(*pair)
        return accumulator.compute().scores

    torch.testing.assert_close(ours(), dense_mds(*pair), rtol=1e-5, atol=1e-6, equal_nan=True)
    found = in_turn({"ours": ours, "dense": lambda: dense_mds(*pair)}, args.rounds)
    name = f"chunked dense MDS over ours, {args.pairs} pairs of {m}"
    yield ["9", name, ">= 30", told(found["dense"], found["ours"])]
    for pairs in (args.pairs, 4 * args.pairs, 16 * args.pairs):
        yield ["9", f"MiB beyond the codes, {pairs} pairs", "<= 32", f"{extra(args, pairs):.0f}"]


def extra(args: argparse.Namespace, pairs: int) -> float:
    """MiB by which MDS raises the peak of a process of its own, streaming batches of 1,024."""
    command = [sys.executable, __file__, "--memory", str(pairs), f"--k={args.k}"]
    command += ["--sizes", *map(str, args.sizes)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return float(done.stdout)


def memory(args: argparse.Namespace) -> None:
    """The child of ``extra``."""
    m = args.sizes[1]
    batch = random_codes(args, m, 1024, 0), random_codes(args, m, 1024, 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the codes left free would hide some of it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    before = peak()
    accumulator = DominanceAccumulator(m)
    for _ in range(max(1, args.memory // 1024)):
        accumulator.update(*batch)
    accumulator.compute()
    print(peak() - before)


def peak() -> float:
    """Most MiB that this process has held. Linux only."""
    line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert line is not None
    return int(line[1]) / 1024


def monosemanticity(args: argparse.Namespace) -> Iterator[Row]:
    """Row 10."""
    if args.sae_for_vlm is None:
        print("sae-for-vlm is left out: no checkout is given")
        return
    for n in args.samples:
        target = {1000: ">= 20", 5000: ">= 100", 10000: ">= 200"}.get(n, "")
        g = torch.Generator().manual_seed(n)
        embeddings = torch.randn(n, args.embedding, generator=g) + 0.5
        dense = (torch.randn(n, args.scored, generator=g) - 1).relu()
        few = dense * (torch.rand(n, args.scored, generator=g) < 0.1)
        start = time.process_time()
        theirs = peer_monosemanticity(args.sae_for_vlm, dense, embeddings)
        peer = time.process_time() - start  # minutes: once, against the median of ours
        off = (monosemanticity_score(dense, embeddings) - theirs).abs().nan_to_num().max()
        sparse = SparseCodes.of(few)
        methods: dict[str, Work] = {
            "dense": lambda d=dense, e=embeddings: monosemanticity_score(d, e),
            "sparse": lambda s=sparse, e=embeddings: monosemanticity_score(s, e),
        }
        found = in_turn(methods, args.rounds)
        for form, aim in (("dense", target), ("sparse", ">= 1000" if n >= 5000 else "")):
            name = f"metric.py over ours, {n} samples, {form} codes"
            yield ["10", name, aim, told([peer] * args.rounds, found[form])]
        yield ["10", f"largest difference, {n} samples", "<= 1e-6", f"{off:.1e}"]


def peer_monosemanticity(checkout: Path, codes: Tensor, embeddings: Tensor) -> Tensor:
    """``main`` of metric.py, with ``.cuda()`` left where it is."""
    spec = importlib.util.spec_from_file_location("sae_for_vlm_metric", checkout / "metric.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its folder is called datasets, as is a library that others have imported.
    others = {name: m for name, m in sys.modules.items() if name.split(".")[0] != "datasets"}
    others["datasets"] = types.ModuleType("datasets")
    others["datasets"].__path__ = [str(checkout / "datasets")]
    path = [str(checkout), *sys.path]
    with mock.patch.dict(sys.modules, others, clear=True), mock.patch.object(sys, "path", path):
        spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(embeddings, f"{folder}/all_embeddings.pt")
        torch.save(codes, f"{folder}/codes_part1.pt")
        given = SimpleNamespace(
            embeddings_path=f"{folder}/all_embeddings.pt",
            activations_dir=folder,
            output_subdir="scores",
            device="cpu",
        )
        silent = (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        )
        with silent[0], silent[1], mock.patch.object(Tensor, "cuda", lambda self: self):
            module.main(given)
        found: Tensor = torch.load(  # noqa: TID251  # what metric.py has just written
            f"{folder}/scores/all_neurons_scores.pth", weights_only=True
        )
    return found


def examples(args: argparse.Namespace) -> Iterator[Row]:
    """Row 11."""
    m, keep = args.sizes[0], args.keep
    for n in args.examples:
        codes = random_codes(args, m, n, 2)
        dense = codes.dense()
        methods: dict[str, Work] = {
            "ours": partial(top_sparse, codes, keep),
            "merge": partial(top_merged, dense, keep),
        }
        assert torch.equal(methods["ours"](), methods["merge"]())
        if n <= 10_000:  # more takes minutes, and a copy of the codes
            methods["dense"] = partial(dense.topk, keep, dim=0)
            assert torch.equal(methods["ours"](), methods["dense"]().values.T)
        found = in_turn(methods, args.rounds)
        name = f"over ours, top {keep}, {n} examples of {m}"
        if "dense" in found:
            yield ["11", f"dense top-m {name}", ">= 10", told(found["dense"], found["ours"])]
        aim = ">= 20" if n >= 100_000 else ""
        yield ["11", f"dense streaming merge {name}", aim, told(found["merge"], found["ours"])]


def top_sparse(codes: SparseCodes, keep: int) -> Tensor:
    """The highest activations of each feature, as ``TopExamples`` finds them."""
    top = TopExamples(codes.n_features, keep)
    top.update(codes, range(len(codes)))
    return top.values


def top_merged(dense: Tensor, keep: int, batch: int = 1024) -> Tensor:
    """The same, from the top of each dense batch and the top so far."""
    m = dense.shape[1]
    best = torch.zeros(m, keep)
    names = torch.full((m, keep), -1)
    for start in range(0, len(dense), batch):
        part = dense[start : start + batch].T
        found = part.topk(min(keep, part.shape[1]), dim=1)
        best, at = torch.cat([best, found.values], 1).topk(keep, dim=1)
        names = torch.cat([names, found.indices + start], 1).gather(1, at)
    return best


def have(package: str) -> bool:
    """Whether a library is installed; named if it is not."""
    if importlib.util.find_spec(package) is None:
        print(f"{package} is left out: it is not installed")
        return False
    return True


PARTS = {
    "decoding": decoding,
    "encoding": encoding,
    "whole": whole,
    "dominance": dominance,
    "monosemanticity": monosemanticity,
    "examples": examples,
}


def measure(args: argparse.Namespace) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for name in args.parts:
            rows += [
                row for row in PARTS[name](args) if print(*row, flush=True, file=sys.stderr) is None
            ]
    wanted = ("torch", "sae-lens", "eai-sparsify")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in wanted if p in installed)
    load = os.getloadavg()[0]
    print(f"{versions}; Python {platform.python_version()}, one thread, load {load:.1f}")
    print(f"width {args.width}, k {args.k}, batches of {args.batch}, {args.rounds} rounds\n")
    note = "Medians of the rounds' ratios of CPU time, and their middle halves."
    print(Table("What measuring costs", ["row", "what", "target", "measured"], rows, note))


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What measuring costs.")
    parser.add_argument("--sae-for-vlm", type=Path, help="a checkout of that repository")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--embedding", type=int, default=384, help="width of the embeddings")
    parser.add_argument("--sizes", type=int, nargs=3, default=[4096, 8192, 32768])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--examples", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--samples", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--scored", type=int, default=1024, help="features of row 10")
    parser.add_argument("--keep", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    asked = parse()
    if asked.memory:
        memory(asked)
    else:
        measure(asked)
