"""``vlm-edit train`` that begins with a dictionary, and dictionaries of the index by name."""

from pathlib import Path

import pytest
import torch

from vlm_edit import load_dictionary, zoo
from vlm_edit.cli import main, subject
from vlm_edit.dictionaries import StoredDictionary, save_saelens

SMALL = ["--features", "64", "--k", "4", "--rows", "64", "--kind", "topk", "--lr", "1e-9"]


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("acts") / "activations"
    assert main(["collect", "zoo:emoji-clip", "zoo:pairs", "--out", str(out), "--quiet"]) == 0
    return out


def train(activations: Path, out: Path, *more: str) -> int:
    words = ["--activations", str(activations), "--out", str(out), *SMALL, "--quiet"]
    return main(["train", *words, *more])


def test_a_training_begins_with_the_dictionary_that_is_named(
    activations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(activations, tmp_path / "first", "--steps", "60", "--lr", "1e-2") == 0
    start = ["--start", str(tmp_path / "first")]
    assert train(activations, tmp_path / "second", "--steps", "2", *start) == 0
    assert train(activations, tmp_path / "alone", "--steps", "2") == 0
    first, second, alone = (
        load_dictionary(tmp_path / name).decoder for name in ("first", "second", "alone")
    )
    # At a learning rate of nearly nothing what it began with is what comes out.
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone, first, rtol=1e-1, atol=1e-2)
    capsys.readouterr()
    assert train(activations, tmp_path / "both", "--separate", *start) == 2
    assert "--start is one dictionary, and --separate trains two" in capsys.readouterr().err
    other = ["--start", "zoo:joint"]  # of 512 features
    assert train(activations, tmp_path / "other", "--steps", "2", *other) == 2
    assert "512" in capsys.readouterr().err


def test_middle_and_precision_reach_the_training(activations: Path, tmp_path: Path) -> None:
    words = ["--steps", "2", "--middle", "median", "--precision", "bfloat16"]
    assert train(activations, tmp_path / "out", *words) == 0
    assert train(activations, tmp_path / "plain", "--steps", "2") == 0
    one, other = (load_dictionary(tmp_path / name) for name in ("out", "plain"))
    assert not torch.equal(one.decoder_bias, other.decoder_bias)


def test_a_dictionary_of_the_index_is_named_by_release_and_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def read(path=None, **options) -> StoredDictionary:
        asked.update(options, path=path)
        return load_dictionary(tmp_path / "sae")

    save_saelens(zoo.load_dictionary("joint"), tmp_path / "sae")
    monkeypatch.setattr(subject, "read_dictionary", read)
    subject.read_named("release:gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    assert asked["release"] == "gemma-scope-2b-pt-res" and asked["path"] is None
    assert asked["sae_id"] == "layer_20/width_16k/average_l0_71"
    monkeypatch.undo()
    words = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", "release:nobodys/x"]
    assert main(words) == 2
    assert "nobodys" in capsys.readouterr().err
