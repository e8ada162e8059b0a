"""What `vlm-edit train` is told of the training itself, beside what test_cli_dictionaries tries."""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_edit import Host, load_dictionary, zoo
from vlm_edit.cli import main, training
from vlm_edit.cli.arguments import Train
from vlm_edit.dictionaries import TrainConfig, load_activations, train_dictionary
from vlm_edit.ground.errors import CannotKnow
from vlm_edit.measuring import Pairs, collect, loss_recovered

TRAIN = ["train", "--features", "32", "--k", "4", "--steps", "20", "--rows", "64"]
CONFIG = TrainConfig(32, 4, 20, 64, norm="constant_norm_rescale")


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stored") / "activations"
    pairs = zoo.load_pairs().select(range(200))
    collect(Host.of(*zoo.load_host()), pairs, "joint", out=folder, progress=False)
    yield folder


def trained(folder: Path, config: TrainConfig, log: Path | None = None) -> torch.Tensor:
    streams = load_activations(folder).split(0.1).training
    return train_dictionary(streams, config, log=log, progress=False).decoder


def test_norm_target_and_log_are_passed_on(activations: Path, tmp_path: Path) -> None:
    words = [*TRAIN, "--activations", str(activations), "--out"]
    given = ["--kind", "jumprelu", "--target-l0", "5.5", "--norm", "layer_norm"]
    log = tmp_path / "log.csv"
    assert main([*words, str(tmp_path / "a"), *given, "--log", str(log)]) == 0
    config = replace(CONFIG, kind="jumprelu", target_l0=5.5, norm="layer_norm")
    decoder = trained(activations, config, tmp_path / "own.csv")
    assert torch.equal(load_dictionary(tmp_path / "a").decoder, decoder)
    assert log.read_text() == (tmp_path / "own.csv").read_text()
    # What is not said is as before: k is the target, and a joint embedding has its norm.
    assert main([*words, str(tmp_path / "b"), "--kind", "jumprelu"]) == 0
    decoder = trained(activations, replace(CONFIG, kind="jumprelu", target_l0=4.0))
    assert torch.equal(load_dictionary(tmp_path / "b").decoder, decoder)


def test_options_of_kinds_are_passed_on(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TRAIN, "--activations", str(activations), "--out"]
    given = ["--kind", "archetypal", "--points", "50", "--delta", "0.3", "--align", "0.2"]
    assert main([*words, str(tmp_path / "a"), *given]) == 0
    config = replace(CONFIG, kind="archetypal", points=50, delta=0.3, align=0.2)
    assert torch.equal(load_dictionary(tmp_path / "a").decoder, trained(activations, config))
    seen = []
    monkeypatch.setattr(
        "vlm_edit.dictionaries.training.trainer.compiled",
        lambda objective, device: seen.append(device.type) or objective,
    )
    assert main([*words, str(tmp_path / "b"), "--compile", "--device", "cpu"]) == 0
    assert seen == ["cpu"]
    config = replace(CONFIG, middle="median", precision="bfloat16", longest=1.5)
    given = ["--middle", "median", "--precision", "bfloat16", "--longest", "1.5"]
    assert main([*words, str(tmp_path / "c"), *given]) == 0
    assert torch.equal(load_dictionary(tmp_path / "c").decoder, trained(activations, config))


def test_a_service_is_told_what_the_log_is_and_by_the_first_process_alone(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")

    class Writer:  # the parts of torch's that are used
        def __init__(self, folder: str) -> None:
            told.append(("begun", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(("closed",))

    board.SummaryWriter = Writer  # type: ignore[attr-defined]
    run = SimpleNamespace(log=lambda figures, step: told.append((figures["l0"], step)))
    wandb.init = lambda **given: told.append(tuple(given.values())) or run  # type: ignore[attr-defined]
    wandb.finish = lambda: told.append(("closed",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, board.__name__, board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    words = [*TRAIN, "--activations", str(activations), "--log", str(tmp_path / "log")]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "a", "--report-to", "tensorboard"]) == 0
    (line,) = csv.DictReader((tmp_path / "log").read_text().splitlines())
    names = ("explained", "l0", "dead", "coefficient")
    figures = [(f"train/{name}", float(line[name]), 20) for name in names]
    assert told == [("begun", str(tmp_path / "a-tensorboard")), *figures, ("closed",)]
    told.clear()
    assert main([*words, "--out", "b", "--report-to", "wandb", "--overwrite"]) == 0
    project, name, settings = told[0]
    assert (project, name, settings["n_features"]) == ("vlm-edit", "b", 32)
    assert told[1:] == [(float(line["l0"]), 20), ("closed",)]
    told.clear()
    options = Train(out="c", report_to="wandb")
    with training._reported(options, CONFIG, 1) as callbacks:
        assert callbacks == []
    assert told == []


def test_very_many_held_out_rows_are_checked_on_some_that_are_spread_over_all(
    activations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_activations(activations)["image"]
    assert torch.equal(training._some(rows), rows[:])
    monkeypatch.setattr(training, "_CHECKED", 7 * rows.width + 1)
    some = torch.arange(7) * len(rows) // 7
    assert torch.equal(training._some(rows), rows[some]) and int(some[-1]) > len(rows) / 2


def test_separate_trainings_have_a_log_each(
    activations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TRAIN, "--activations", str(activations), "--separate", "--out", str(tmp_path / "a")]
    log = tmp_path / "log"
    assert main([*words, "--log", str(log)]) == 0
    for stream in ("image", "text"):
        with (tmp_path / f"log.{stream}").open() as file:
            assert [line["step"] for line in csv.DictReader(file)] == ["20"]
    assert not log.exists()
    words[-1] = str(tmp_path / "b")
    assert main([*words, "--log", str(log)]) == 2  # theirs are there
    assert f"{log}.image is there already" in capsys.readouterr().err
    words = [*TRAIN, "--activations", str(activations), "--out", str(tmp_path / "b")]
    assert main([*words, "--start", str(tmp_path / "a")]) == 2
    assert "holds one for each stream: name one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--target-l0", "5"],
            "target_l0 goes with relu, jumprelu and gated; batchtopk takes k",
        ),
        (["--norm", "tall"], "unknown norm 'tall'"),
        (["--lr", "nan"], "lr is nan"),
        (["--points", "9"], "points is 9, and kind 'batchtopk' has no points"),
        (["--site", "vision.2", "--align", "0.1"], "--align 0.1 learns from pairs of one activ"),
        (["--site", "vision.2", "--kind", "ncl", "--k", "16"], "--kind ncl learns from pairs of"),
        (["--log", "no/such/log.csv"], "--log is 'no/such/log.csv', and there is no folder"),
        (["--log", "."], "--log is '.', a folder"),
        (["--log", "/proc/log.csv"], "cannot write the --log to '/proc/log.csv'"),
        (["--report-to", "wandb"], "wandb cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_collected(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "sae"
    assert main([*TRAIN, "zoo:emoji-clip", "zoo:pairs", "--out", str(out), *words]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_log_that_is_there_is_not_replaced_unasked(
    activations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("mine")
    words = [*TRAIN, "--activations", str(activations), "--log", str(log), "--out"]
    assert main([*words, str(tmp_path / "sae")]) == 2
    assert "name another file with --log" in capsys.readouterr().err
    assert log.read_text() == "mine" and not (tmp_path / "sae").exists()
    assert main([*words, str(tmp_path / "sae"), "--overwrite"]) == 0
    assert log.read_text().startswith("step,")


def test_a_training_tells_the_loss_of_pairs_that_were_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = zoo.load_pairs()
    few = pairs.select(range(160))
    rows = [["image", "text"]]
    for number in range(len(few)):  # two captions of each image, one of which cannot be read
        image = tmp_path / f"{number // 2}.png"
        few.images[number - number % 2].save(image)
        rows.append([image.name, few.texts[number]])
    (tmp_path / "75.png").write_bytes(b"no image")
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    words = [*TRAIN, "zoo:emoji-clip", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "sae")]
    assert main([*words, "--held-out", "0.2", "--loss", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (title,) = [table for table in told["tables"] if "loss" in table["title"]]
    assert "that it was not trained on" in title["note"]
    host, found = Host.of(*zoo.load_host()), load_dictionary(tmp_path / "sae")
    unseen = Pairs.of(str(tmp_path / "pairs.csv")).select(
        [n for n in range(128, 160) if n not in (150, 151)]
    )
    loss = loss_recovered(host, found, "joint", unseen)
    for name in ("plain", "reconstructed", "mean", "of_mean"):
        assert told["figures"]["loss"][name] == pytest.approx(getattr(loss, name), rel=1e-4)
    assert told["figures"]["loss"]["n"] == told["figures"]["fit"]["image"]["n"] == 30
    assert "loss" not in json.loads(_without_loss(words, tmp_path, capsys))["figures"]


def _without_loss(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--held-out", "0.2", "--out", str(tmp_path / "b"), "--json"]) == 0
    return capsys.readouterr().out


def test_a_loss_that_nobody_can_tell_is_refused_before_anything_is_collected(
    activations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = [*TRAIN, "--loss", "--out", str(tmp_path / "sae")]
    assert main([*words, "--activations", str(activations)]) == 2
    assert "--loss compares what the model says of its pairs: give MODEL" in capsys.readouterr().err

    def neither(*_: object) -> None:
        raise CannotKnow("it has neither")

    monkeypatch.setattr("vlm_edit.measuring.recovering._loss", neither)
    assert main([*words, "zoo:emoji-clip", "zoo:pairs"]) == 2
    assert "it has neither" in capsys.readouterr().err
    assert not (tmp_path / "sae").exists()


def test_check_tells_the_loss_that_the_library_tells(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", "zoo:joint", "--json"]
    assert main([*words, "--loss"]) == 0
    told = json.loads(capsys.readouterr().out)["figures"]["loss"]
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    loss = loss_recovered(host, dictionary, "joint", zoo.load_pairs())
    assert told["reconstructed"] == pytest.approx(loss.reconstructed, rel=1e-4)
    assert told["of_mean"] == pytest.approx(loss.of_mean, rel=1e-4) and told["of_zero"] is None
    assert main(words) == 0
    assert "loss" not in json.loads(capsys.readouterr().out)["figures"]
