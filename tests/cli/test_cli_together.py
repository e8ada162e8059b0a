"""One training by several processes that the command is started in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_together

from vlm_edit import load_dictionary
from vlm_edit.cli import main

ZOO = ["zoo:emoji-clip", "zoo:pairs"]
TRAIN = ["--features", "32", "--k", "4", "--steps", "40", "--rows", "64"]
# As torchrun starts it, without torchrun: nobody ends what hangs.
RUN = """
import os, sys
import torch
torch.set_num_threads(1)
from vlm_edit.cli import main
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError
step, rank = Trainer.step, int(os.environ["RANK"])
def changed(trainer):
    if trainer.done == 25 and "kill" in sys.argv[1]:
        os.kill(os.getpid(), 9)
    if trainer.done == 25 and "raise" in sys.argv[1] and rank:
        raise VlmEditError("a fault of the second alone")
    return step(trainer)
Trainer.step = changed
sys.stdout = open(sys.argv[2] + f"/told-{rank}", "w")
status = main(sys.argv[3:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stored") / "activations"
    assert main(["collect", *ZOO, "--out", str(folder), "--quiet"]) == 0
    return str(folder)


@pytest.mark.slow
def test_processes_collect_once_train_together_and_go_on_after_a_kill_to_the_same_bits(
    tmp_path: Path,
) -> None:
    out = [str(tmp_path / name) for name in ("alone", "whole", "killed")]
    assert main(["train", *ZOO, *TRAIN, "--out", out[0], "--quiet"]) == 0
    words = ["train", *ZOO, *TRAIN, "--every", "0", "--json", "--out"]
    ran = run_together(RUN, "", tmp_path, *words, out[1])
    assert [status for status, _ in ran] == [0, 0], ran
    told = [(tmp_path / f"told-{rank}").read_text() for rank in range(2)]
    assert json.loads(told[0])["status"] == 0 and told[1] == "" and ran[1][1].strip() == ""
    ran = run_together(RUN, "kill", tmp_path, *words, out[2])
    assert [status for status, _ in ran] == [-9, -9], ran
    assert {path.name for path in Path(out[2]).iterdir()} == {
        "training.json", "training.checkpoint", "training.activations"
    }  # fmt: skip
    ran = run_together(RUN, "", tmp_path, *words, out[2])
    assert [status for status, _ in ran] == [0, 0], ran
    alone, whole, killed = map(load_dictionary, out)
    assert torch.equal(whole.decoder, killed.decoder) and whole.info == alone.info
    assert torch.allclose(whole.decoder, alone.decoder, atol=2e-4)
    assert all(sorted(os.listdir(folder)) == ["image", "text"] for folder in out)


def test_a_fault_of_one_process_ends_the_others(stored: str, tmp_path: Path) -> None:
    words = ["train", "--activations", stored, *TRAIN, "--out", str(tmp_path / "sae")]
    ran = run_together(RUN, "raise", tmp_path, *words)
    assert [status for status, _ in ran] == [2, 2], ran
    assert "process 1: a fault of the second alone" in ran[1][1]
    assert "process 0 has lost the others" in ran[0][1]


def test_what_is_refused_is_told_once(stored: str, tmp_path: Path) -> None:
    for more, told in ((["--site", "text.1"], "--site text.1 says"), (["--rows", "66"], "divide")):
        words = ["train", "--activations", stored, *TRAIN, *more, "--out", str(tmp_path / "sae")]
        ran = run_together(RUN, "", tmp_path, *words)
        assert [status for status, _ in ran] == [2, 2] and told in ran[0][1], ran
        assert ran[1][1].strip() == "" or "process 1: " in ran[1][1]


def test_processes_that_cannot_find_each_other_say_what_to_start_them_with(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    words = ["train", "--activations", stored, *TRAIN, "--out", str(tmp_path / "sae")]
    assert main(words) == 2
    assert "start them by torchrun" in capsys.readouterr().err
    assert main([*words, "--device", "cuda:1"]) == 2
    assert "names one card for 2 processes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("way", [["-m", "vlm_edit"], ["--no-python", "vlm-edit"]])
def test_torchrun_starts_it(way: list[str], stored: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["train", "--activations", stored, *TRAIN, "--json", "--out", str(tmp_path / "sae")]
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*launch, *way, *words], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": place},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == 0
    assert load_dictionary(tmp_path / "sae").n_features == 32
