"""What one decode step costs an edit: calls of this package, changes of file, microseconds.

    OMP_NUM_THREADS=1 python tests/benchmarks/step_cost.py

Calls are those of functions of ``vlm_edit`` in one step of the zoo's LLaVA, with a feature of its
own dictionary ablated at text tokens. Microseconds are what a vector adds to a step of a host that
does nothing but call its layers, in turn with a bare hook of torch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import steering_cost as cost
import torch

import vlm_edit
from vlm_edit import Ablate, Dictionary, Patch, Steer, zoo

PACKAGE = str(Path(vlm_edit.__file__).parent)
Calls = list[tuple[str, str]]


def calls_of(patch: Patch, steps: int = 3) -> Calls:
    """File and function of each call of the package in the last step of an answer."""
    host, processor = zoo.load_llava()
    text = f"{processor.image_token}\nWhat is this?"
    inputs = processor(text=[text], images=[zoo.load_pairs().open(0)], return_tensors="pt")
    length = steps + 1
    calls: Calls = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls.append((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    quiet = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
    with patch.attach(host), torch.no_grad():
        host.generate(**inputs, **quiet)  # the first run prepares what stays
        sys.setprofile(note)
        try:
            host.generate(**inputs, **quiet)
        finally:
            sys.setprofile(None)
    begins = [i for i, (_, name) in enumerate(calls) if name == "_Enter.__call__"]
    return calls[begins[-1] :]


def changes(calls: Calls) -> int:
    """How often one call is in another file than the one before."""
    return sum(a[0] != b[0] for a, b in zip(calls, calls[1:], strict=False))


def microseconds(rounds: int) -> dict[str, tuple[float, float, float]]:
    """What each method adds to a step: the median of the rounds and their middle half."""
    host = cost.make_llava(512, 8)
    adapter = cost.find_adapter(host)
    sites = tuple(rule for rule in adapter.sites if rule.name.startswith("language"))
    vector = torch.randn(512, generator=torch.Generator().manual_seed(2))
    own = replace(adapter, sites=sites)
    subject = cost.Subject(cost.IdleHost(host.config), 4, vector, adapter=own)
    steps, work = 300, cost.idle_steps(512, 300)
    methods = {name: cost.SAME[name][0] for name in ("plain", "bare torch hook", "vlm-edit")}
    with torch.no_grad():
        times = cost.in_turn(subject, work, methods, rounds)
    plain = times.pop("plain").cpu
    spreads = {}
    for name, timing in times.items():
        over = [(mine - base) / steps * 1e6 for mine, base in zip(timing.cpu, plain, strict=True)]
        low, middle, high = statistics.quantiles(over, n=4)
        spreads[name] = (middle, low, high)
    return spreads


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", action="store_true", help="name each call, and measure no time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dictionary = zoo.load_dictionary("language.0")
    raw = Dictionary.identity(dictionary.width)
    edits = {
        "an SAE's feature at text tokens": Patch(
            "language.0", dictionary, [Ablate([3, 5])], tokens="text+special"
        ),
        "a vector at all tokens": Patch("language.0", raw, [Steer([3], 1.0)]),
    }
    for name, patch in edits.items():
        calls = calls_of(patch)
        files = len({file for file, _ in calls})
        print(f"{name}: {len(calls)} calls in {files} files, {changes(calls)} changes of file")
        if options.calls:
            print(*(f"  {file} {function}" for file, function in calls), sep="\n")
    if not options.calls:
        for name, (middle, low, high) in microseconds(options.rounds).items():
            print(f"{name}: {middle:.1f} microseconds a step ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
