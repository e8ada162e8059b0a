"""What docs/experiments runs, and that every command written down for it is one of them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "docs" / "experiments"
COMMAND = re.compile(r"python docs/experiments (\w+\.\w+)")
SHOWN = [
    *(ROOT / name for name in ("README.md", "NOTICE")),
    *(p for folder in ("docs", "vlm_edit") for p in (ROOT / folder).rglob("*.md")),
    *(p for folder in ("docs", "vlm_edit") for p in (ROOT / folder).rglob("*.py")),
]


def run(*options: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXPERIMENTS), *options],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    found: dict[str, str] = runpy.run_path(str(EXPERIMENTS / "__main__.py"))["commands"]()
    return found


def test_every_command_written_down_is_there(commands: dict[str, str]) -> None:
    told = {name for path in SHOWN for name in COMMAND.findall(path.read_text("utf-8"))}
    assert told and not told - set(commands)


def test_what_can_be_run_says_what_it_does_and_by_which_command(commands: dict[str, str]) -> None:
    assert all(commands.values())
    for name in commands:
        text = EXPERIMENTS.joinpath(*name.split(".")).with_suffix(".py").read_text("utf-8")
        assert re.search(rf"python docs/experiments {name}\b", text), name


def test_no_command_of_where_the_experiments_were_is_left() -> None:
    gone = re.compile(r"vlm_edit[./]zoo[./]recipes|docs/results/|-m recipes|-m results")
    assert not [str(path) for path in SHOWN if gone.search(path.read_text("utf-8"))]


def test_without_a_name_all_are_named_and_a_wrong_one_is_told(commands: dict[str, str]) -> None:
    listed = run()
    assert listed.returncode == 0 and not listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == sorted(commands)
    wrong = run("results.nothing")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("there is no 'results.nothing'")


@pytest.mark.parametrize("name", ["recipes.pairs", "results.bias"])
def test_a_command_runs_from_any_folder(name: str, tmp_path: Path) -> None:
    done = run(name, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name.partition('.')[2]}.py")
