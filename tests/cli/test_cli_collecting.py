"""Activations on the disk by the command, and training on them without the model."""

import json
from pathlib import Path

import pytest
import torch

from vlm_edit import Host, load_dictionary, zoo
from vlm_edit.cli import main
from vlm_edit.dictionaries import load_activations
from vlm_edit.measuring import collect

ZOO = ("zoo:emoji-clip", "zoo:pairs")
FEW = ["--features", "32", "--k", "4", "--steps", "20", "--rows", "64"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "activations"
    assert main(["collect", *ZOO, "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def llava_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    pairs = zoo.load_pairs().select(range(40))
    lines = ["image,text"]
    for i in range(40):  # two captions of each of 20 images, one behind the other
        pairs.open(i // 2).save(folder / f"{i}.png")
        lines.append(f'{i // 2 * 2}.png,"{pairs.texts[i]}"')
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"


def test_collect_writes_what_is_collected_in_python(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = load_activations(stored)
    memory = collect(Host.of(*zoo.load_host()), zoo.load_pairs(), progress=False)
    assert all(torch.equal(store[name][:], x) for name, x in memory.items())
    capsys.readouterr()
    assert main(["collect", *ZOO, "--out", str(stored), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tables"][0]["rows"] == [
        ["image", "1024", "192", "float32"], ["text", "1024", "192", "float32"]
    ]  # fmt: skip
    assert told["figures"]["activations"] == {"image": 1024, "text": 1024, "parts": 1}
    assert told["files"][0]["path"] == str(stored)
    assert main(["collect", *ZOO, "--out", str(stored), "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert "another settings (seed: 0, here 1)" in error and "--overwrite replaces it" in error
    assert main(["collect", *ZOO, "--out", str(stored), "--part-size", "0"]) == 2
    assert "--part-size is 0 MiB" in capsys.readouterr().err


def test_a_dictionary_needs_activations_alone_and_is_that_of_model_and_pairs(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["train", *ZOO, *FEW, "--out", str(tmp_path / "b")]) == 0
    expected = capsys.readouterr().out
    kept = [str(path) for path in (tmp_path / "b").rglob("*")]
    assert len(kept) == 6 and not [name for name in kept if "training" in name]
    there = ["--activations", str(stored)]
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    monkeypatch.setattr(Host, "run", lambda *_: pytest.fail("the host was run"))
    assert main(["train", *ZOO, *FEW, *there, "--out", str(tmp_path / "c")]) == 0
    monkeypatch.setattr(Host, "load", lambda *_, **__: pytest.fail("the host was loaded"))
    assert main(["train", *FEW, *there, "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "Of 102 pairs that it was not trained on." in expected
    assert told.splitlines()[:6] == expected.splitlines()[:6]
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before
    a, b, c = (load_dictionary(tmp_path / name) for name in "abc")
    assert torch.equal(a.decoder, b.decoder) and torch.equal(c.decoder, b.decoder)
    assert a.info == b.info == c.info == {"model_name": "emoji-clip", "site": "joint"}


def test_activations_of_tokens_are_held_out_by_image(
    llava_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "activations")
    words = ["zoo:emoji-llava", str(llava_pairs), "--site", "language.1", "--out", out]
    assert main(["collect", *words, "--most", "4", "--stored-as", "bfloat16"]) == 0
    store = load_activations(out)
    assert store.index.dtype == "bfloat16" and store["image"].dtype == torch.bfloat16
    capsys.readouterr()
    # 33 of 40 are kept: the 33rd caption is of an image that the 34th shows too.
    train = ["train", "--activations", out, *FEW, "--out", str(tmp_path / "sae")]
    assert main([*train, "--held-out", "0.175", "--separate"]) == 0
    assert "Of 6 pairs that it was not trained on." in capsys.readouterr().out
    assert load_dictionary(tmp_path / "sae").info["site"] == "language.1"
    split = store.split(0.175)
    assert len(split.training["text"]) + len(split.held_out["text"]) == len(store["text"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "train takes MODEL and PAIRS, or --activations FOLDER"),
        (["zoo:emoji-clip"], "train takes MODEL and PAIRS, or --activations FOLDER"),
        (["--activations", "THERE", "--site", "vision.1"], "--site vision.1 says how activations"),
        (["--activations", "THERE", "--most", "3"], "--most 3 says how activations are collected"),
        (["--activations", "THERE", "--held-out", "0"], "--held-out 0.0 of 1024 pairs leaves 1024"),
        (["--activations", "THERE", "--held-out", "nan"], "--held-out is nan; it is a share"),
        (["--activations", "THERE", "--start", "zoo:paired"], "no bundled dictionary"),
        (["--activations", "THERE", "--start", "absent"], "no dictionary at 'absent'"),
        (["--activations", "THERE", "--start", ""], "no dictionary at '': the path is empty"),
        (["--activations", "THERE", "--rows", "0"], "batch_size is 0; it must be at least 1"),
        (["--activations", "THERE", "--device", "gpu"], "--device gpu: take auto, cpu, cuda or"),
        (["--activations", "absent"], "no activations in 'absent': it has no activations.json"),
        ([*ZOO, "--activations", "THERE", "--site", "vision.1"], "was collected with another"),
    ],
)
def test_what_does_not_go_with_activations_is_refused(
    words: list[str], told: str, stored: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [str(stored) if word == "THERE" else word for word in words]
    assert main(["train", *words, "--out", str(tmp_path / "sae")]) == 2
    error = capsys.readouterr().err
    assert told in error and "overwrite=True" not in error
    left = list((tmp_path / "sae").glob("*"))
    assert not left or told == "was collected with another"  # only collecting finds that out
    assert not [file for file in left if file.suffix == ".safetensors"]
    assert main(["train", "--activations", str(stored), "--site", "joint", *FEW,
                 "--out", str(tmp_path / "fine")]) == 0  # fmt: skip


def test_a_kind_that_learns_from_pairs_refuses_activations_of_tokens(
    llava_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "activations")
    words = ["zoo:emoji-llava", str(llava_pairs), "--site", "language.1", "--out", out]
    assert main(["collect", *words, "--most", "1"]) == 0
    train = ["train", "--activations", out, "--kind", "ncl", "--out", str(tmp_path / "sae")]
    assert main(train) == 2
    assert "--kind ncl learns from pairs of one activation each" in capsys.readouterr().err


def test_ctrl_c_says_that_collecting_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Host, "run", stopped)
    assert main(["collect", *ZOO, "--out", str(tmp_path)]) == 130
    assert "the same command goes on from the last whole part in" in capsys.readouterr().err
