"""Each script of docs/examples runs as a person runs it, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
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


def test_an_own_llava_is_measured_edited_and_passed_on_to_another_process() -> None:
    name = "own_llava"
    assert "LlavaForConditionalGeneration" in after(name, "host:")
    assert after(name, "each pair is asked as:") == repr("<image>\n{text}")
    classes = ast.literal_eval(after(name, "classes:"))
    assert sum(classes.values()) == 512
    before, during = re.findall(r"'([^']*)'", after(name, "what colour is the background?"))
    assert before and before != during
    assert edited(name) == [37]
    assert after(name, "removed, it answers as before:") == "True"
    assert after(name, "in another process, the same answer:") == "True"


def test_a_clip_is_served_threaded_and_async_under_the_patches_that_requests_name() -> None:
    pytest.importorskip("fastapi", reason="pip install 'vlm-edit[test]'")
    name = "serve_clip"
    rows = [line for line in printed(name) if line.startswith(("plain:", "feature-"))]
    plain, *others = [ast.literal_eval(line.partition(": ")[2]) for line in rows]
    assert len(others) == 3
    assert all(row != plain for row in others)
    assert after(name, "threaded and async, the same scores:") == "True"
    assert after(name, "48 requests at once, each as if it had come alone:") == "True"
    assert after(name, "left on the host:") == "[]"


def test_a_concept_is_found_in_a_stable_diffusions_text_encoder_and_drawn_weaker() -> None:
    pytest.importorskip("diffusers", reason="pip install 'vlm-edit[diffusion]'")
    name = "stable_diffusion"
    assert ast.literal_eval(after(name, "features of red:"))
    moved = [
        ast.literal_eval(after(name, f"strength {strength}, how far the image moves:"))
        for strength in ("0.0", "0.5", "1.0")
    ]
    red, green = ([row[f"a {colour} cat"] for row in moved] for colour in ("red", "green"))
    assert red[0] == green[0] == 0
    assert 0 < red[1] < red[2]
    assert green[2] < red[2]
    assert "12 tokens edited in 12 calls (12 text; 12 prompt)" in "\n".join(printed(name))
    assert after(name, "removed, the same image:") == "True"
    assert after(name, "loaded, the same image:") == "True"


@pytest.mark.skipif(
    find_spec("torchvision") is None,
    reason="needs torchvision: .ci/second makes an environment with it",
)
def test_a_qwen_is_asked_by_its_own_processor_and_edited_at_a_texts_own_tokens() -> None:
    name = "qwen_vl"
    asked = ast.literal_eval(after(name, "each pair is asked as:"))
    assert asked.startswith("<|im_start|>user") and "{text} <|im_end|>" in asked
    own, text = re.fullmatch(r"'(.*)' of '(.*)'", after(name, "the text's own:")).groups()
    assert own == text
    assert f"<|vision_end|> {text} <|im_end|>" in after(name, "read back:")
    assert sum(ast.literal_eval(after(name, "classes:")).values()) == 32
    for stream in ("image", "text"):
        counts = re.fullmatch(r"(\d+) tokens edited of (\d+) there", after(name, f"{stream}:"))
        assert counts[1] == counts[2] != "0"
    assert after(name, "removed, the same answer:") == "True"


@pytest.mark.slow
def test_by_commands_alone_a_model_is_measured_edited_and_its_patch_passed_on() -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    done = subprocess.run(
        ["bash", str(EXAMPLES / "command_line.sh")],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verbs = re.findall(r"^\$ vlm-edit (\w+)", done.stdout, re.MULTILINE)
    assert verbs == ["check", "measure", "report", "edit", "ask", "patch", "patch"]
    answers = done.stdout.partition("$ vlm-edit ask")[2].partition("\n")[2].partition("\n$ ")[0]
    assert re.search(r"\byellow\b(?!\.safetensors)", answers), answers
    assert "fits zoo:emoji-llava" in done.stdout


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
