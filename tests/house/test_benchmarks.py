"""The scripts of tests/benchmarks compare like with like. Their numbers are not tested."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

COST = Path(__file__).resolve().parents[1] / "benchmarks" / "steering_cost.py"
SMALL = ["--width=32", "--layers=2", "--tokens=4", "--steps=3", "--features=64", "--rounds=2"]


@pytest.fixture(scope="module")
def cost() -> Any:
    spec = importlib.util.spec_from_file_location("steering_cost", COST)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def ran(*words: str) -> str:
    """What a benchmark prints, run by itself."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cost_of_steering_is_printed_for_every_library_or_it_is_named() -> None:
    out = ran(str(COST), *SMALL)
    alone, whole = out.split("generate: ")
    for name in ("bare torch hook", "vlm-edit", "nnsight", "steering-vectors", "repeng"):
        if f"{name} is left out: it is not installed" in out:
            continue
        assert re.search(rf"^{name}  +-?\d+\.\d  ", alone, re.MULTILINE), name
        assert re.search(rf"^{name}  .* \d\.\d\d\d \[.*e[-+]\d\d$", whole, re.MULTILINE), name
    assert re.search(r"^vlm-edit  +-?\d+\.\d  ", alone, re.MULTILINE)


def test_a_step_of_an_answer_calls_few_functions_and_goes_through_few_files() -> None:
    out = ran(str(COST.with_name("step_cost.py")), "--calls")
    counted = re.findall(r"^(an? .*): (\d+) calls in \d+ files, (\d+) changes", out, re.M)
    counts = {name: (int(calls), int(changes)) for name, calls, changes in counted}
    calls, changes = counts["an SAE's feature at text tokens"]
    # An activation and a norm have a file each, which takes four changes of it.
    assert calls <= 36 and changes <= 14
    calls, changes = counts["a vector at all tokens"]
    assert calls <= 16 and changes <= 8


@contextmanager
def twice(subject: Any) -> Any:
    """The edit, twice as strong."""
    module = subject.host.get_submodule(subject.path)
    handle = module.register_forward_hook(lambda _m, _a, out: out + 2 * subject.vector)
    yield lambda work: work(subject.host)
    handle.remove()


def test_a_library_that_makes_another_edit_is_not_timed(cost: Any) -> None:
    subject = cost.Subject(cost.make_llava(32, 2), 1, torch.ones(32))
    same = {"plain": cost.plain, "bare torch hook": cost.torch_hook, "vlm-edit": cost.ours}
    read = lambda output: torch.cat(output.logits)  # noqa: E731
    off = cost.expect_same(subject, cost.generation(3), same, read)
    assert off["vlm-edit"] <= 1e-5 < off["plain"]
    with pytest.raises(AssertionError, match="^other: not the edit of the bare hook"):
        cost.expect_same(subject, cost.generation(3), same | {"other": twice}, read)
    subject.vector = torch.zeros(32)
    with pytest.raises(AssertionError, match="the edit changes nothing"):
        cost.expect_same(subject, cost.generation(3), same, read)


def test_each_round_begins_with_another_method_and_times_all(cost: Any) -> None:
    order: list[str] = []

    def make(name: str) -> Any:
        @contextmanager
        def method(_subject: Any) -> Any:
            order.append(name)
            yield lambda work: work(None)

        return method

    found = cost.in_turn(None, lambda _host: None, {n: make(n) for n in "abc"}, 3)
    assert [len(timing.cpu) for timing in found.values()] == [3, 3, 3]
    assert "".join(order[3:]) == "abcbcacab"


MEASURING = COST.with_name("measurement_cost.py")
TOY = ["--width=16", "--embedding=8", "--k=4", "--batch=64", "--pairs=60", "--keep=5", "--rounds=2"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux, for the peaks in /proc"
)
def test_the_cost_of_measuring_is_printed_for_every_row_or_its_peer_is_named() -> None:
    out = ran(str(MEASURING), *TOY, "--sizes", "64", "128", "256", "--examples=60")
    printed = {line.split()[0] for line in out.splitlines() if line[:1].strip()}
    assert {"6", "8", "9", "11", "sum"} <= printed
    assert "sae-for-vlm is left out: no checkout is given" in out
    for name, row in (("sae_lens", "7"), ("sparsify", "6")):
        assert f"{name} is left out: it is not installed" in out or row in printed
    assert re.search(r"^9 +MiB beyond the codes, 60 pairs .* \d+$", out, re.MULTILINE)


def test_the_peer_of_the_monosemanticity_score_runs_without_a_gpu(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("measurement_cost", MEASURING)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "here.py").write_text("NAME = 'all_neurons_scores.pth'\n")
    (tmp_path / "metric.py").write_text(
        "import os, torch\n"
        "from datasets.here import NAME\n"
        "def main(args):\n"
        "    folder = os.path.join(args.activations_dir, args.output_subdir)\n"
        "    os.makedirs(folder)\n"
        "    torch.save(torch.load(args.embeddings_path).cuda().sum(1), f'{folder}/{NAME}')\n"
    )
    found = module.peer_monosemanticity(tmp_path, torch.ones(3, 2), torch.eye(3))
    assert torch.equal(found, torch.ones(3))
    assert "datasets.here" not in sys.modules


def test_the_page_of_speed_is_what_the_stored_measurements_say() -> None:
    spec = importlib.util.spec_from_file_location("speed", COST.with_name("speed.py"))
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads(script.STORED.read_text("utf-8"))
    text = script.page(found)
    assert script.PAGE.read_text("utf-8") == text, "run: python tests/benchmarks/speed.py"
    assert f"{found['vector']['nnsight'][0]:.1f} us" in text
