"""Measure what was aimed at, and write docs/speed.md of it.

    OMP_NUM_THREADS=1 VENV/bin/python tests/benchmarks/speed.py --measure
    python tests/benchmarks/speed.py    # the page alone, from speed.json beside this script

VENV is an environment with this package, `sae-lens==6.54.12`, `steering-vectors==0.12.2`,
`repeng==0.4.0` and numpy 2. CPU time of the process, methods in turn within one run, medians of the
rounds' ratios and their middle half.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
STORED, PAGE = HERE / "speed.json", HERE.parents[1] / "docs" / "speed.md"
OF_GPU = HERE / "gpu_cost.txt"
sys.path.insert(0, str(HERE))

SHAPES = ((256, 2048), (256, 16384), (1024, 8192), (1024, 65536), (4096, 32768))
TOKENS = (1, 8, 600)
MOST = 600 * 1024 * 65536  # beyond it a round of the others takes minutes
PACKAGES = ("torch", "transformers", "nnsight", "sae-lens", "steering-vectors", "repeng")


def measure(rounds: int) -> dict[str, Any]:
    """Everything the page tells, as JSON."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"rounds": rounds, "machine": machine()}
    found["vector"] = vector(rounds)
    print(found["vector"], flush=True)
    found["features"] = []
    for line in features(rounds):
        found["features"].append(line)
        print(line, flush=True)
    found["generate"] = generate(rounds)
    print(found["generate"], flush=True)
    return found


def machine() -> dict[str, str]:
    """What it ran on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is not installed: see the top of {__file__}") from None
    told = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = told[0].split(":", 1)[1].strip() if told else platform.processor()
    return {
        "cpu": f"{os.cpu_count()} cores, {cpu}",
        "python": platform.python_version(),
        **versions,
    }


def vector(rounds: int) -> dict[str, Any]:
    """A vector at one token: what each library adds to a step, in microseconds, and over ours."""
    import steering_cost as cost
    import torch
    from edit_cost import spread

    host = cost.make_llava(512, 8)
    adapter = cost.find_adapter(host)
    sites = tuple(rule for rule in adapter.sites if rule.name.startswith("language"))
    added = torch.randn(512, generator=torch.Generator().manual_seed(2))
    idle = cost.Subject(cost.IdleHost(host.config), 4, added, 16384, replace(adapter, sites=sites))
    steps, work = 300, cost.idle_steps(512, 300)
    same = cost.available(cost.SAME)
    with torch.no_grad():
        cost.expect_same(idle, work, same, lambda output: output)
        times = cost.in_turn(idle, work, same, 3 * rounds)
    plain = times.pop("plain").cpu
    over = {
        name: [(mine - base) / steps * 1e6 for mine, base in zip(t.cpu, plain, strict=True)]
        for name, t in times.items()
    }
    return {
        name: [statistics.median(us), *spread(over["vlm-edit"], us)] for name, us in over.items()
    }


def features(rounds: int) -> Any:
    """One feature, and half of a dictionary: [activation, d, m, tokens, edited, us, ratios]."""
    from edit_cost import spread, times

    asked = [
        (activation, shape, tokens, 1)
        for activation in ("jumprelu", "topk")
        for shape in SHAPES
        for tokens in TOKENS
        if tokens * shape[0] * shape[1] <= MOST
    ]
    asked += [(kind, (1024, 8192), n, 4096) for kind in ("jumprelu", "topk") for n in (1, 600)]
    for activation, shape, tokens, count in asked:
        chosen = [7] if count == 1 else list(range(count))
        found = times(activation, shape, tokens, chosen, rounds)
        yield [
            *(activation, *shape, tokens, count, 1e6 * statistics.median(found["ours"])),
            spread(found["ours"], found["sae-lens"]),
            spread(found["ours"], found["whole"]),
        ]


def generate(rounds: int) -> dict[str, Any]:
    """A LLaVA of about 100 M parameters: seconds a token by batch and method."""
    import generate_cost as cost
    from edit_cost import spread

    parameters, batches = cost.times(1024, 8, (1, 8), rounds)
    told: dict[str, Any] = {"parameters": parameters}
    for batch, methods in batches.items():
        told[str(batch)] = {
            name: {
                "ms": 1e3 * statistics.median(spent),
                "of plain": spread(methods["plain"], spent),
                "of ours": spread(methods["patch, JumpReLU"], spent),
            }
            for name, spent in methods.items()
        }
    return told


def page(found: dict[str, Any]) -> str:
    """docs/speed.md."""
    about = found["machine"]
    versions = ", ".join(f"{name} {about[name]}" for name in PACKAGES)
    parts = [
        HEAD.format(cpu=about["cpu"], versions=versions, rounds=found["rounds"]),
        _table(("what", "aim", "measured", "reached"), list(_aims(found))),
        TAIL,
        "## One feature, by size",
        _table(
            ("dictionary", "width x features", "tokens", "edited", "us", "SAELens", "whole hook"),
            [
                [
                    {"jumprelu": "JumpReLU", "topk": "TopK"}[kind],
                    f"{d} x {m:,}",
                    str(tokens),
                    f"{count:,}",
                    f"{us:,.0f}",
                    _told(lens),
                    _told(whole),
                ]
                for kind, d, m, tokens, count, us, lens, whole in found["features"]
            ],
        ),
        "Others' time over ours. SAELens runs with its error term; the whole hook encodes once, "
        "decodes twice and adds the error. Where a TopK feature is silent at a token, its own "
        "pre-activation shows it, and nothing else is encoded: those are the ratios above 50.",
        *gpu(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def gpu() -> list[str]:
    """What the GPU's output says."""
    lines = OF_GPU.read_text("utf-8").splitlines()
    cells = [line.split("  ") for line in lines]
    card = next(line.split(",")[0] for line in lines if line.startswith("NVIDIA"))
    edits = [c for c in cells if len(c) == 7 and c[0] in ("jumprelu", "topk")]
    tokens = [c for c in cells if len(c) == 4 and c[0].isdigit()]
    jump = [c for c in edits if c[0] == "jumprelu"]
    ways = {way: [float(c[5]) for c in jump if c[4] == way] for way in ("eager", "graph")}
    head = GPU.format(
        card=card,
        least=f"{min(ways['eager']):.0f}",
        most=f"{max(ways['eager']):.0f}",
        graph_least=f"{min(ways['graph']):.0f}",
        graph_most=f"{max(ways['graph']):.0f}",
    )
    titles = ("activation", "width x features", "tokens", "host", "way", "us", "whole hook / ours")
    parts = [head.strip(), _table(titles, edits)]
    if tokens:
        parts.append(next(line for line in lines if "parameters" in line) + ", `generate`:")
        parts.append(_table(("batch", "method", "ms a token", "times plain"), tokens))
    return parts


def _aims(found: dict[str, Any]) -> Any:
    """Rows of the first table."""
    vectors, ours = found["vector"], found["vector"]["vlm-edit"][0]
    for name, times in (("nnsight", 4), ("steering-vectors", 4), ("repeng", 8)):
        us, *ratio = vectors[name]
        yield (
            f"a vector at one token against {name}",
            f"{times} times",
            f"{us:.1f} us to our {ours:.1f}: {_told(ratio)}",
            _reached([ratio[0]], times),
        )
    rows = found["features"]
    for tokens, lens_aim, whole_aim in ((1, 50, 20), (600, 500, 200)):
        chosen = [
            r for r in rows if r[0] == "jumprelu" and r[2] >= 8192 and r[3] == tokens and r[4] == 1
        ]
        for name, aim, place in (("SAELens", lens_aim, 6), ("a whole hook", whole_aim, 7)):
            middles = [row[place][0] for row in chosen]
            yield (
                f"one JumpReLU feature of 8,192 and more, {_tokens(tokens)}, against {name}",
                f"{aim} times",
                f"{_number(min(middles))} to {_number(max(middles))}",
                _reached(middles, aim),
            )
    middles = [row[6][0] for row in rows if row[0] == "topk" and row[4] == 1]
    yield (
        "one TopK feature against SAELens",
        "3 times",
        f"{_number(min(middles))} to {_number(max(middles))}",
        _reached(middles, 3),
    )
    middles = [row[7][0] for row in rows if row[4] > 1]
    yield (
        "half of a dictionary against a whole hook",
        "no slower",
        f"{_number(min(middles))} to {_number(max(middles))}",
        _reached(middles, 1),
    )
    for batch, aim in (("1", 1.5), ("8", 2.5)):
        methods = found["generate"][batch]
        plain = methods["patch, JumpReLU"]["of plain"]
        yield (
            f"`generate` of a LLaVA of {found['generate']['parameters'] / 1e6:.0f} M parameters, "
            f"JumpReLU of 16,384, batch {batch}: against plain",
            "1.10; 1.02 a token",
            _told(plain, 3),
            "yes" if plain[0] <= 1.02 else ("1.10" if plain[0] <= 1.1 else "no"),
        )
        lens = methods["SAELens, JumpReLU"]["of ours"]
        yield (
            f"the same: SAELens' time over ours, batch {batch}",
            f"{aim} times",
            _told(lens),
            _reached([lens[0]], aim),
        )
    yield (
        "decoding sparse codes; encoding; scores; top examples",
        "rows 6 to 11",
        "[measuring](benchmarks.md#measuring)",
        "20 of 23",
    )


def _tokens(count: int) -> str:
    return "one token" if count == 1 else f"{count} tokens"


def _reached(middles: list[float], aim: float) -> str:
    good = sum(middle >= aim for middle in middles)
    if good == len(middles):
        return "yes"
    return f"{good} of {len(middles)}" if good else "no"


def _told(spread: Any, digits: int | None = None) -> str:
    middle, low, high = (_number(value, digits) for value in spread)
    return f"{middle} [{low}, {high}]"


def _number(value: float, digits: int | None = None) -> str:
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(titles: tuple[str, ...], rows: list[Any]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HEAD = """# Speed: what we aimed at, and what was reached

```bash
OMP_NUM_THREADS=1 VENV/bin/python tests/benchmarks/speed.py --measure
```

writes this page; what VENV is stands at the top of the script. Ratios of CPU time, methods in turn
within one run, one thread, float32, {rounds} rounds: medians, with the middle half of the rounds
in brackets. Times do not carry over to another machine, ratios nearly do; here other work ran
beside it, which makes times longer and brackets wider. [Benchmarks](benchmarks.md) has the scripts
one by one.

A virtual machine of {cpu}; {versions}.
"""

TAIL = """What stands in the way of the ones that were missed:

- **A vector at one token**: following the host's calls (what is padding, prompt, answer) and
  counting tokens for `report()` cost what a lean hook saves. A bare torch hook knows none of it.
- **600 tokens, 8,192 features**: what is left is memory, the hidden state read twice and written
  once.
- **TopK in small dictionaries**: one row's product takes as long as a dozen operations of torch.
- **`generate`**: the edit alone takes .1 ms of a token's 60, so it should be .2 %; whole runs
  scatter by a hundred times as much. At batch 8 the host's own work is three times as large and
  hides the dictionary's.
"""

GPU = """## On a GPU

`python tests/benchmarks/gpu_cost.py` on one {card} (its output lies beside the script): time by
CUDA events, over that of a hook that does all. *Eager*, a JumpReLU edit is a dozen launches,
{least} to {most} us whatever the size; *graph*, as compiled decoding replays them, {graph_least} to
{graph_most} us. Of TopK every token is encoded whole there, since to look whether it need be would
wait for the device: at one token and 8,192 features the edit is no faster than the hook when eager.
Nothing in an edit waits for the device (`tests/patches/test_cuda.py`). The card's time ended before
`generate`.
"""


def main() -> None:
    """Measure if asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.measure:
        found = measure(options.rounds)
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(STORED.read_text("utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
