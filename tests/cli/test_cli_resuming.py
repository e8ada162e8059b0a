"""A training that was broken off goes on by the same command; Ctrl-C says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlm_edit import load_dictionary
from vlm_edit.cli import main
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.measuring import Batch, MeasurementAccumulator

ZOO = ("zoo:emoji-clip", "zoo:pairs")
TRAIN = ["train", *ZOO, "--features", "32", "--k", "4", "--steps", "40", "--rows", "64"]
# A process that is killed within its n-th step.
KILLED = """
import os, sys
from vlm_edit.cli import main
from vlm_edit.dictionaries.training.trainer import Trainer
step = Trainer.step
def killed(trainer):
    if trainer.done == 25:
        os.kill(os.getpid(), 9)
    return step(trainer)
Trainer.step = killed
main({words!r})
"""


def broken_off(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED.format(words=words)], capture_output=True)
    assert done.returncode == -9, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "sae"
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that are taken from here on."""
    taken: list[int] = []
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda trainer: (taken.append(trainer.done), step(trainer))[1]
    )
    return taken


@pytest.mark.slow
def test_a_killed_training_goes_on_by_the_same_command_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [*TRAIN, "--every", "0", "--out", str(tmp_path / "sae")]
    broken_off(words)
    taken = steps(monkeypatch)
    assert main([*words, "--steps", "41"]) == 2 and not taken
    told = capsys.readouterr().err
    assert "broken off, with --steps 40 and not 41" in told and "--overwrite" in told
    assert main(words) == 0 and taken == list(range(25, 40))
    assert sorted(file.name for file in (tmp_path / "sae").rglob("*.*")) == sorted(
        file.name for file in whole.rglob("*.*")
    )
    assert torch.equal(load_dictionary(tmp_path / "sae").decoder, load_dictionary(whole).decoder)
    broken_off([*words, "--overwrite", "--seed", "1"])
    taken.clear()
    assert main([*words, "--seed", "1"]) == 2  # what lies there is of the former training
    assert main([*words, "--seed", "1", "--overwrite"]) == 0 and taken[0] == 25
    assert not torch.equal(
        load_dictionary(tmp_path / "sae").decoder, load_dictionary(whole).decoder
    )


@pytest.mark.slow
def test_another_training_begins_anew_where_that_is_asked_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TRAIN, "--every", "0", "--out", str(tmp_path)]
    broken_off([*words, "--seed", "1"])
    taken = steps(monkeypatch)
    assert main([*words, "--overwrite"]) == 0 and taken[0] == 0
    assert torch.equal(load_dictionary(tmp_path).decoder, load_dictionary(whole).decoder)


@pytest.mark.parametrize(("every", "told"), [("0", "goes on from"), ("60", "begins anew; one is")])
def test_ctrl_c_says_whether_the_same_command_goes_on(
    every: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    step, update, seen = Trainer.step, MeasurementAccumulator.update, []

    def stopped(trainer: Trainer) -> dict[str, float]:
        if trainer.done == 3:
            raise KeyboardInterrupt
        return step(trainer)

    def stopped_too(accumulator: MeasurementAccumulator, batch: Batch) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(batch)
        update(accumulator, batch)

    monkeypatch.setattr(Trainer, "step", stopped)
    monkeypatch.setattr(MeasurementAccumulator, "update", stopped_too)
    measure = ["measure", *ZOO, "--dictionary", "zoo:joint"]
    for words in (TRAIN, measure):
        out = tmp_path / words[0]
        assert main([*words, "--every", every, "--out", str(out)]) == 130
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("vlm-edit: interrupted") and "the same command" in last
        assert told in last
