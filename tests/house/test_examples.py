"""Each script of docs/examples runs as a person runs it, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
LM_EVAL = os.environ.get("VLM_EDIT_LM_EVAL_PYTHON")


@cache
def printed(name: str, python: str = sys.executable, **variables: str) -> list[str]:
    """What an example prints, line by line."""
    done = subprocess.run(
        [python, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line]


def after(name: str, opening: str) -> str:
    """The rest of the one line that opens so."""
    (line,) = [line for line in printed(name) if line.startswith(opening)]
    return line.removeprefix(opening).strip()


def edited(name: str) -> list[int]:
    """Tokens edited, report by report."""
    found = re.findall(r"^language\.0: (\d+) tokens edited", "\n".join(printed(name)), re.MULTILINE)
    return [int(count) for count in found]


def test_every_example_is_tested_here() -> None:
    tested = set(re.findall(r'"(\w+)",?\s', Path(__file__).read_text("utf-8")))
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_existing_code_answers_otherwise_within_a_patch_and_as_before_behind_it() -> None:
    name = "wrap_an_existing_model"
    classes = ast.literal_eval(after(name, "features at language.0:"))
    assert sum(classes.values()) == 512
    assert classes["vision"] > 0
    rows = [line for line in printed(name) if line.startswith("what ")]
    assert len(rows) == 8
    assert any(row[32:54].strip() != row[56:].strip() for row in rows)
    assert edited(name) == [8 * 37]
    assert after(name, "detached, the answers are those from before:") == "True"


def test_the_stronger_a_row_is_steered_the_yellower_its_background() -> None:
    name = "steer_in_a_generation_loop"
    answers = ast.literal_eval(after(name, "strengths 0, 1, 2, 3:"))
    assert answers[0] == "blue"
    assert answers[-1] == "yellow"
    assert ast.literal_eval(after(name, "three beams:")) == ["blue", "yellow"]
    assert len(ast.literal_eval(after(name, "sampled:"))) == 2
    batch, prompt, decode = edited(name)
    assert batch == 3 * 37  # the row of strength 0 is not touched
    assert prompt > 37
    assert decode == 2
    assert after(name, "by hand:") == "['yellow'] as generate: True"


def test_a_patch_made_elsewhere_drops_into_a_server_and_out_again() -> None:
    name = "drop_in_patch"
    assert re.match(r"\d+ KiB, without the \d+ vision", after(name, "no-vision.safetensors:"))
    plain, patched = (ast.literal_eval(after(name, s)) for s in ("plain:", "patched:"))
    assert len(plain) == len(patched)
    assert plain != patched
    assert edited(name) == [37 * len(plain)]
    assert "differ from those of the host this patch was made for" in after(name, "another host:")
    assert after(name, "removed, the same bits as the plain server:") == "True"


def test_pipelines_run_with_a_patch_on_the_model_inside() -> None:
    name = "transformers_pipeline"
    assert after(name, "image-text-to-text:") == "['blue', 'yellow']"
    before, during = ast.literal_eval(after(name, "zero-shot-image-classification:"))
    assert len(before) == len(during) == 3
    assert before != during
    assert edited(name) == [37]
    assert after(name, "removed, it answers as before:") == "True"
    assert after(name, "removed, it scores as before:") == "True"


def test_a_loop_of_ones_own_with_a_cache_answers_as_generate_does() -> None:
    name = "own_generation_loop"
    plain = after(name, "plain:")
    image, decode = (after(name, f"{{'tokens': '{tokens}'") for tokens in ("image", "all"))
    assert plain not in image
    assert plain not in decode
    assert edited(name) == [2 * 3 * 37, 2 * 3 * 2]
    same = [line for line in printed(name) if line.startswith("as the host's own generate:")]
    assert [line.rpartition(" ")[2] for line in same] == ["True", "True"]
    assert after(name, "removed, the same ids as before:") == "True"


def test_workers_serve_each_request_under_its_own_patch() -> None:
    name = "batched_serving"
    for patch, colour in (("None", "white"), *((c, c) for c in ("yellow", "blue", "green"))):
        assert after(name, f"{patch} ") == f"['{colour}']"
    assert "24 requests served by 3 workers" in printed(name)
    assert after(name, "each as if it had come alone:") == "True"


def test_a_host_that_accelerate_put_on_disk_answers_under_a_patch_as_one_in_memory() -> None:
    name = "accelerate_host"
    assert re.match(r"\d+ of \d+ weights are not in memory", printed(name)[0])
    assert after(name, "answers:") == "['blue', 'yellow']"
    assert edited(name) == [2 * 37]
    assert after(name, "as a host all in memory:") == "True"
    assert after(name, "removed, the same bits as before:") == "True"


def test_a_host_with_lora_is_trained_under_a_patch_that_was_saved_without() -> None:
    name = "peft_host"
    assert after(name, "answers under the patch:") == "yellow"
    first, last = map(float, after(name, "loss under the patch:").split(" to "))
    assert last < first / 10
    assert after(name, "answers after it was fine-tuned:") == "red"
    assert after(name, "LoRA off, the patch on:") == "yellow"
    assert after(name, "the same bits as the plain host under it:") == "True"


def test_a_trace_of_nnsight_sees_what_a_patch_did_and_acts_on_top() -> None:
    name = "nnsight_trace"
    assert after(name, "plain:") == "blue"
    assert after(name, "patched:") == "green"
    assert after(name, "the host's own call, the same bits:") == "True"
    assert after(name, "patched, and its change taken out in the trace:") == "blue"
    assert after(name, "tokens that the trace saw moved:") == "37"


def test_an_async_server_answers_each_request_under_the_patches_it_names() -> None:
    pytest.importorskip("fastapi", reason="pip install 'vlm-edit[test]'")
    name = "serve_async"
    assert after(name, "{}:") == "blue"
    for colour in ("yellow", "blue", "green"):
        assert after(name, f"{{'patch': '{colour}'}}:") == colour
    assert after(name, "25 requests at once, each as if it had come alone:") == "True"
    assert "it has 'yellow', 'blue', 'green'" in after(name, "unknown:")
    assert after(name, "left on the host:") == "[]"


@pytest.mark.skipif(
    not LM_EVAL,
    reason="needs an environment of its own: pip install torch 'lm-eval[hf]==0.4.13' and this "
    "package there, then VLM_EDIT_LM_EVAL_PYTHON=VENV/bin/python python -m pytest "
    "tests/house/test_examples.py -k harness",
)
def test_the_harness_scores_a_patched_host() -> None:
    lines = printed("lm_evaluation_harness", str(LM_EVAL), PYTHONPATH=str(ROOT))
    assert len(lines) == 12
    for host in ("LLaVA", "Llama"):
        assert f"{host}, strength 0, the same bits: True" in lines
        assert f"{host}, accuracy: 0.0 and 0.5" in lines
        assert f"{host}, scores that differ: 24" in lines
        assert f"{host}, removed, the same bits: True" in lines
    assert "images: ['blue', 'green'] ['yellow', 'yellow']" in lines
