"""Each script of docs/examples runs as a person runs it, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@cache
def printed(name: str) -> list[str]:
    """What an example prints, line by line."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
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
