import csv
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from vlm_edit.dictionaries import Dictionary, Kind, TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import read_tensors

CONFIG = TrainConfig(
    n_features=32, k=2, steps=400, batch_size=64, kind="jumprelu", target_l0=3.0, dead_after=20
)
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from test_training_checkpoint import KILLED, streams
from vlm_edit.dictionaries import train_dictionary
config = KILLED[sys.argv[2]]
train_dictionary(streams(config), config, checkpoint=sys.argv[1], every=0.0, progress=False)
"""
LONG = TrainConfig(n_features=32, k=2, steps=800, batch_size=64, dead_after=20)
KILLED = {
    "batchtopk": LONG,
    "ncl": TrainConfig(n_features=32, steps=800, batch_size=64, kind="ncl"),
    "gated": replace(LONG, kind="gated", target_l0=3.0, middle="median", precision="bfloat16"),
    "archetypal": replace(LONG, kind="archetypal", points=50, delta=0.2),
    "topk": replace(LONG, kind="topk", align=0.1),
    "relu": replace(LONG, kind="relu", target_l0=3.0),
    "jumprelu": replace(LONG, kind="jumprelu", target_l0=3.0, group=0.01),
    "matryoshka": replace(LONG, kind="matryoshka", mask=0.2),
}


def rows() -> torch.Tensor:
    return torch.randn(500, 12, generator=torch.Generator().manual_seed(0))


def streams(config: TrainConfig) -> dict[str, torch.Tensor]:
    found = {"image": rows()}
    if config.paired:
        found["text"] = rows() + 0.5 * rows().flip(0)
    return found


def same(one: Dictionary, two: Dictionary) -> bool:
    pairs = [
        (one.encoder.weight, two.encoder.weight),
        (one.encoder.bias, two.encoder.bias),
        (one.decoder, two.decoder),
        (one.decoder_bias, two.decoder_bias),
    ]
    if one.encoder.threshold is not None and two.encoder.threshold is not None:
        pairs.append((one.encoder.threshold, two.encoder.threshold))
    return all(torch.equal(a, b) for a, b in pairs)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu", "gated", "archetypal", "ncl"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = 3.0 if kind in ("jumprelu", "gated") else None
    config = replace(CONFIG, kind=kind, target_l0=target, k=16 if kind == "ncl" else 2)
    data = streams(config)
    whole = train_dictionary(data, config, log=tmp_path / "a.csv", progress=False)
    step = Trainer.step

    def stopping(self: Trainer) -> dict[str, float]:
        if self.done == 250:
            raise Stop
        return step(self)

    kept = {"checkpoint": tmp_path / "c", "log": tmp_path / "b.csv"}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Stop):
            train_dictionary(data, config, every=0.05, progress=False, **kept)
    assert (tmp_path / "c").exists()
    again = train_dictionary(data, config, progress=False, **kept)
    assert same(whole, again)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    with (tmp_path / "b.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["step"] for line in lines] == ["100", "200", "300", "400"]
    own = ["loss", "accuracy"] if kind == "ncl" else ["explained"]
    last = [] if kind == "ncl" else ["coefficient"]
    assert list(lines[0]) == ["step", *own, "l0", "dead", *last]
    assert all(float(value) >= 0 for line in lines for value in line.values())


def test_every_kind_is_killed_below() -> None:
    assert set(KILLED) == {config.kind for config in KILLED.values()} == set(get_args(Kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_process_leaves_a_state_to_go_on_from(tmp_path: Path, kind: str) -> None:
    path, here = tmp_path / "state", str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), kind, here],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and (not path.exists() or read_tensors(path)[0]["done"] < 60):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert read_tensors(path)[0]["done"] < 800
    config = KILLED[kind]
    again = train_dictionary(streams(config), config, checkpoint=path, progress=False)
    assert same(again, train_dictionary(streams(config), config, progress=False))


def test_the_log_of_another_kind_of_run_is_not_gone_on_with(tmp_path: Path) -> None:
    config, log = replace(CONFIG, steps=5), tmp_path / "log.csv"
    kept = {"checkpoint": tmp_path / "c", "log": log}
    train_dictionary({"image": rows()}, config, progress=False, **kept)
    told = log.read_text()
    log.write_text(told.replace("explained", "loss"))
    with pytest.raises(VlmEditError, match=r"log.csv has columns \['step', 'loss'"):
        train_dictionary({"image": rows()}, config, progress=False, **kept)
    log.write_text(told)
    train_dictionary({"image": rows()}, config, progress=False, **kept)
    assert log.read_text() == told


@pytest.mark.parametrize("left", [1, 3, 8, -3, -1])
def test_a_line_of_the_log_that_was_cut_is_dropped(tmp_path: Path, left: int) -> None:
    config, log = replace(CONFIG, steps=300), tmp_path / "log.csv"
    kept = {"checkpoint": tmp_path / "c", "log": log}
    train_dictionary({"image": rows()}, config, progress=False, **kept)
    header, *lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    log.write_bytes(b"".join([header, *lines[:2], lines[2][:left]]))
    train_dictionary({"image": rows()}, config, progress=False, **kept)
    assert log.read_bytes() == b"".join([header, *lines[:2]])
    log.write_bytes(b"".join([header, lines[0], b"2,,,,\r\n", lines[1]]))
    train_dictionary({"image": rows()}, config, progress=False, **kept)
    assert log.read_bytes() == b"".join([header, *lines[:2]])


def test_a_log_without_room_keeps_whole_lines(tmp_path: Path) -> None:
    config, log = replace(CONFIG, steps=300), tmp_path / "log.csv"
    train_dictionary({"image": rows()}, config, progress=False, log=log)
    whole = log.read_bytes().splitlines(keepends=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(b"".join(whole[:3])) + 4, before[1]))
    try:
        with pytest.raises(VlmEditError, match="cannot write the log to "):
            train_dictionary({"image": rows()}, config, progress=False, log=log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_bytes() == b"".join(whole[:3])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30)
    first = train_dictionary({"image": rows()}, config, checkpoint=tmp_path / "c", progress=False)
    before = (tmp_path / "c").read_bytes()
    again = train_dictionary({"image": rows()}, config, checkpoint=tmp_path / "c", progress=False)
    assert same(first, again)
    assert (tmp_path / "c").read_bytes() == before


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    config, path = replace(CONFIG, steps=5), tmp_path / "c"
    train_dictionary({"image": rows()}, config, checkpoint=path, progress=False)
    with pytest.raises(VlmEditError, match="another config"):
        train_dictionary(
            {"image": rows()}, replace(config, seed=1), checkpoint=path, progress=False
        )
    with pytest.raises(VlmEditError, match="another data"):
        train_dictionary({"image": rows() + 0.01}, config, checkpoint=path, progress=False)
    with pytest.raises(VlmEditError, match="another data"):
        train_dictionary({"text": rows()}, config, checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VlmEditError, match="not a readable"):
        train_dictionary({"image": rows()}, config, checkpoint=path, progress=False)
