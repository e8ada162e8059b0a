"""What a run tells of itself as it goes on, and to whom."""

import csv
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlm_edit.dictionaries import TrainConfig, reporter, train_dictionary, train_paired
from vlm_edit.ground.errors import VlmEditError

FIGURES = ("explained", "l0", "dead", "coefficient")
CONFIG = TrainConfig(n_features=12, k=2, steps=250, batch_size=32, kind="relu", sparsity=0.7)
# The parts of wandb and trackio that are used, as their documentation has them; neither is here.
SERVICE = """
calls = []

class Run:
    def log(self, data, step=None):
        calls.append(("log", step, data))

def init(project=None, name=None, config=None):
    calls.append(("init", project, name, config))
    return Run()

def finish():
    calls.append(("finish",))
"""


def streams() -> dict[str, torch.Tensor]:
    return {"image": torch.randn(200, 6, generator=torch.Generator().manual_seed(0))}


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        self.lines.append((step, dict(figures)))


def test_callbacks_are_told_what_the_log_is_told(tmp_path: Path) -> None:
    one, two, log = Told(), Told(), tmp_path / "log.csv"
    train_dictionary(streams(), CONFIG, log=log, callbacks=[one, two], progress=False)
    assert [step for step, _ in one.lines] == [100, 200, 250] and one.lines == two.lines
    with log.open() as file:
        rows = list(csv.DictReader(file))
    written = [(int(row.pop("step")), {name: float(v) for name, v in row.items()}) for row in rows]
    assert written == one.lines


def test_a_run_that_goes_on_tells_of_the_steps_that_are_left(tmp_path: Path) -> None:
    whole, rest = Told(), Told()
    train_dictionary(streams(), CONFIG, callbacks=[whole], progress=False)
    kept: dict[str, Any] = {"checkpoint": tmp_path / "c", "every": 0.0, "progress": False}

    def stop(_step: int, _: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dictionary(streams(), CONFIG, callbacks=[stop], **kept)
    train_dictionary(streams(), CONFIG, callbacks=[rest], **kept)
    assert rest.lines == whole.lines  # the state was of the step before the one it was stopped in
    again = Told()
    train_dictionary(streams(), CONFIG, callbacks=[again], **kept)
    assert again.lines == []


def test_of_two_trainings_each_says_whose_figures_it_tells() -> None:
    both, alone = Told(), Told()
    x = {**streams(), "text": streams()["image"].flip(0)}
    train_paired(x, replace(CONFIG, steps=5), callbacks=[both], progress=False)
    train_dictionary({"image": x["image"]}, replace(CONFIG, steps=5), callbacks=[alone])
    assert [step for step, _ in both.lines] == [5, 5]
    assert both.lines[0][1] == {f"image/{name}": v for name, v in alone.lines[0][1].items()}
    assert all(name.startswith("text/") for name in both.lines[1][1])


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_service_is_told_each_step_once_and_that_the_run_has_ended(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{service}.py").write_text(SERVICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, service, raising=False)
    told = Told()
    with reporter(service, "runs/sae", {"k": 2}) as callback:
        train_dictionary(streams(), CONFIG, callbacks=[callback, told], progress=False)
    calls = sys.modules.pop(service).calls
    assert calls[0] == ("init", "vlm-edit", "sae", {"k": 2}) and calls[-1] == ("finish",)
    assert calls[1:-1] == [("log", step, figures) for step, figures in told.lines]


def test_tensorboard_s_writer_is_told_each_figure_and_closed_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    class Writer:  # the parts of torch's that are used
        def __init__(self, folder: str) -> None:
            calls.append(("begun", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append(("closed",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    folder = tmp_path / "some" / "curves"
    with pytest.raises(KeyError), reporter("tensorboard", folder) as callback:
        callback(7, {"l0": 2.5, "dead": 3.0})
        raise KeyError
    told = [("train/l0", 2.5, 7), ("train/dead", 3.0, 7)]
    assert calls == [("begun", str(folder)), *told, ("closed",)] and folder.is_dir()


def test_the_files_of_tensorboard_hold_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = Told()
    with reporter("tensorboard", tmp_path / "curves") as callback:
        train_dictionary(streams(), CONFIG, callbacks=[callback, told], progress=False)
    read = EventAccumulator(str(tmp_path / "curves")).Reload()
    for name in FIGURES:
        events = [(each.step, each.value) for each in read.Scalars(f"train/{name}")]
        assert [step for step, _ in events] == [step for step, _ in told.lines]
        expected = [figures[name] for _, figures in told.lines]
        assert [value for _, value in events] == pytest.approx(expected)


def test_what_is_not_installed_or_known_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail: Any = "mail"
    known = "no service 'mail': use tensorboard, trackio, wandb"
    with pytest.raises(VlmEditError, match=known), reporter(mail, tmp_path):
        pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = "wandb cannot be imported .*: pip install wandb"
    with pytest.raises(VlmEditError, match=missing), reporter("wandb", tmp_path):
        pass
