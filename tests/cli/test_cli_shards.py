"""``vlm-edit measure`` over shards, with workers, of several dictionaries at once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from vlm_edit import zoo
from vlm_edit.cli import main
from vlm_edit.dictionaries import TrainConfig, save_saelens, train_dictionary
from vlm_edit.measuring import load_measurement

HOST, JOINT = "zoo:emoji-clip", ["--dictionary", "zoo:joint", "--batch-size", "8"]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, pairs = tmp_path_factory.mktemp("tars"), zoo.load_pairs()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(shard * 16, shard * 16 + 16):
                picture = io.BytesIO()
                pairs.open(i).save(picture, "PNG")
                for ending, data in (
                    ("png", picture.getvalue()),
                    ("txt", pairs.texts[i].encode()),
                ):
                    member = tarfile.TarInfo(f"{i:04d}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("named", ["folder", "pattern", "glob"])
def test_shards_are_measured_and_shown_on_a_page(
    named: str, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"folder": tars, "pattern": tars / "{0..1}.tar", "glob": tars / "*.tar"}[named]
    words = ["measure", HOST, str(source), *JOINT, "--out", str(tmp_path), "--workers", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "32 pairs" in printed or "32" in printed
    run = load_measurement(tmp_path)
    assert run.n_pairs == 32 and run.provenance["pairs"]["shards"] == 2
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    number = int(run.examples["text"].numbers.max())
    assert zoo.load_pairs().texts[16 + number % (1 << 32)] in page and "UklGR" in page
    capsys.readouterr()
    assert main(words) == 0  # whole: not read again
    assert "holds this measurement, whole" in capsys.readouterr().out


def test_a_page_of_other_shards_is_refused(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", HOST, str(tars), *JOINT, "--out", str(tmp_path)]) == 0
    one = str(tars / "0.tar")
    assert main(["report", str(tmp_path), "--pairs", one]) == 2
    assert "these are not the shards that the run measured" in capsys.readouterr().err


def test_other_commands_read_shards_whole(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", HOST, str(tars), "--dictionary", "zoo:joint"]) in (0, 1)
    assert "Of 32 pairs." in capsys.readouterr().out


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another dictionary of the joint site."""
    folder = tmp_path_factory.mktemp("other") / "mine"
    noise = torch.randn(2, 200, 192, generator=torch.Generator().manual_seed(0))
    some = dict(zip(("image", "text"), noise, strict=True))
    config = TrainConfig(n_features=32, k=4, steps=20, batch_size=64)
    save_saelens(train_dictionary(some, config, progress=False), folder)
    return str(folder)


def test_several_dictionaries_of_one_pass_are_runs_of_their_own(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for i in range(16):
        zoo.load_pairs().open(i).save(pairs / f"{i:02d}.png")
        (pairs / f"{i:02d}.txt").write_text(zoo.load_pairs().texts[i])
    words = ["measure", HOST, str(pairs), *JOINT]
    both = tmp_path / "both"
    assert main([*words, "--also", f"joint={other}", "--out", str(both)]) == 0
    printed = capsys.readouterr().out
    assert str(both / "joint-mine") in printed
    alone = tmp_path / "alone"
    assert main([*words, "--out", str(alone)]) == 0
    assert load_measurement(both).checksum() == load_measurement(alone).checksum()
    words = ["measure", HOST, str(pairs), "--dictionary", other, "--batch-size", "8"]
    assert main([*words, "--out", str(tmp_path / "mine")]) == 0
    mine = load_measurement(tmp_path / "mine")
    assert load_measurement(both / "joint-mine").checksum() == mine.checksum()
    assert main(["report", str(both / "joint-mine")]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--also", "joint"], "--also takes SITE=DICTIONARY"),
        (["--also", "nowhere=zoo:joint"], "no site 'nowhere'"),
        (["--workers", "-1"], "workers is -1"),
    ],
)
def test_what_cannot_be_read_together_is_refused(
    words: list[str], says: str, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", HOST, str(tars), *JOINT, "--out", str(tmp_path), *words]) == 2
    assert says in capsys.readouterr().err
