"""Training and checking a dictionary by the command, on the zoo."""

from dataclasses import replace

import pytest
import torch

from vlm_edit import Host, load_dictionary, zoo
from vlm_edit.cli import main
from vlm_edit.dictionaries import (
    PairedDictionary,
    TrainConfig,
    save_saelens,
    train_dictionary,
)
from vlm_edit.measuring import collect


@pytest.mark.slow
def test_train_writes_a_dictionary_that_check_finds_fit_and_measure_takes(tmp_path, capsys):
    sae = tmp_path / "deep" / "sae"
    training = ["--features", "64", "--k", "8", "--steps", "200", "--rows", "256"]
    assert main(["train", "zoo:emoji-clip", "zoo:pairs", *training, "--out", str(sae)]) == 0
    told = capsys.readouterr().out
    assert "64 features" in told
    assert "Of 102 pairs that it was not trained on." in told
    assert load_dictionary(sae).info == {"model_name": "emoji-clip", "site": "joint"}
    assert main(["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", str(sae)]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("image"))
    _, count, explained, l0, _ = line.split()
    streams = collect(Host.of(*zoo.load_host()), zoo.load_pairs(), progress=False)
    found = load_dictionary(sae).check(streams["image"], "image", warn=False)
    assert (int(count), float(explained)) == (1024, round(found.explained_variance, 3))
    assert abs(float(l0) - 8) < 4


@pytest.mark.slow
def test_a_trained_dictionary_is_the_same_again_with_its_seed(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        training = ["--features", "32", "--k", "4", "--steps", "20", "--seed", seed]
        out = str(tmp_path / name)
        main(["train", "zoo:emoji-clip", "zoo:pairs", *training, "--out", out])
    a, b, c = (load_dictionary(tmp_path / name).decoder for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.slow
def test_the_rate_and_the_clip_of_training_are_passed_on(tmp_path, capsys):
    training = ["--features", "32", "--k", "4", "--steps", "20", "--rows", "256", "--out"]
    pairs = zoo.load_pairs()
    some = pairs.select(range(round(0.9 * len(pairs))))
    streams = collect(Host.of(*zoo.load_host()), some, out=tmp_path / "streams")
    config = TrainConfig(32, 4, 20, 256, norm="constant_norm_rescale")
    for name, flags, change in (
        ("a", [], {}),
        ("b", ["--lr", "0.01", "--clip", "none"], {"lr": 0.01, "clip": None}),
        ("c", ["--clip", "0.002"], {"clip": 0.002}),
    ):
        out = str(tmp_path / name)
        assert main(["train", "zoo:emoji-clip", "zoo:pairs", *training, out, *flags]) == 0
        found = train_dictionary(streams, replace(config, **change), progress=False)
        assert torch.equal(load_dictionary(out).decoder, found.decoder)
    out = str(tmp_path / "d")
    assert main(["train", "zoo:emoji-clip", "zoo:pairs", *training, out, "--clip", "0"]) == 2
    assert "clip is 0.0; it must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_check_refuses_a_dictionary_of_another_site_and_warns_of_one_that_does_not_fit(
    tmp_path, capsys
):
    other = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", "zoo:vision.2"]
    assert main(other) == 2
    told = capsys.readouterr().err
    assert "trained at site 'vision.2'" in told and told.rstrip().endswith(
        "--any-origin lets it through"
    )
    assert main([*other, "--any-origin"]) == 1  # loaded, and found not to fit
    told = capsys.readouterr().err
    assert "another layer or another host" in told and "dataclasses" not in told
    save_saelens(replace(zoo.load_dictionary("vision.2"), info={}), tmp_path)
    wrong = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", str(tmp_path)]
    assert main(wrong) == 1
    assert "another layer or another host" in capsys.readouterr().err


def test_what_a_dictionary_s_files_leave_open_is_passed_on(tmp_path, capsys):
    measured = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary"]
    assert main([*measured, "zoo:joint", "--dictionary-k", "4"]) == 2
    assert "zoo:joint needs none of --dictionary-k" in capsys.readouterr().err
    save_saelens(zoo.load_dictionary("joint"), tmp_path / "inside")
    assert main([*measured, str(tmp_path), "--dictionary-file", "inside"]) == 0
    assert main([*measured, str(tmp_path / "inside"), "--dictionary-k", "4"]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert main([*measured, str(tmp_path / "inside"), "--dictionary-format", "onnx"]) == 2
    assert "unknown format 'onnx'" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0", "1", "0.0001", "-1", "2"])
def test_pairs_are_held_out_and_some_are_left(share, tmp_path, capsys):
    out = str(tmp_path / "sae")
    assert main(["train", "zoo:emoji-clip", "zoo:pairs", "--out", out, "--held-out", share]) == 2
    assert "both parts need at least one" in capsys.readouterr().err
    assert not (tmp_path / "sae").exists()


@pytest.mark.slow
def test_separate_trains_one_for_each_stream_that_check_measure_and_edit_take(tmp_path, capsys):
    sae, out = str(tmp_path / "sae"), ["--out", str(tmp_path / "run")]
    training = ["--features", "64", "--k", "8", "--steps", "100", "--rows", "128", "--separate"]
    assert main(["train", "zoo:emoji-clip", "zoo:pairs", *training, "--out", sae]) == 0
    found = load_dictionary(sae)
    assert isinstance(found, PairedDictionary)
    assert found.info == {"model_name": "emoji-clip", "site": "joint"}
    for command in (["check"], ["measure", *out]):
        name, *rest = command
        assert main([name, "zoo:emoji-clip", "zoo:pairs", "--dictionary", sae, *rest]) == 0
    edit = ["edit", "zoo:emoji-clip", "zoo:pairs", "--dictionary", sae, "--class", "vision"]
    assert main([*edit, "--run", str(tmp_path / "run")]) == 0
    assert "retrieval" in capsys.readouterr().out.lower()
    other = ["--out", str(tmp_path / "other"), "--centred"]
    centred = ["measure", "zoo:emoji-clip", "zoo:pairs", "--dictionary", sae, *other]
    assert main(centred) == 2
    assert "train each with center=True" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_what_was_trained_here_is_told_to_be_trained_too_little(tmp_path, capsys):
    sae = str(tmp_path / "sae")
    training = ["--features", "16", "--k", "1", "--steps", "1", "--rows", "64"]
    assert main(["train", "zoo:emoji-clip", "zoo:pairs", *training, "--out", sae]) == 0
    check = ["check", "zoo:emoji-clip", "zoo:pairs", "--dictionary", sae]
    assert main(check) == 1
    told = capsys.readouterr().err
    assert told.count("it was trained too little") == 4 and "another layer" not in told
    assert main([*check, "--any-origin"]) == 1
    assert "it was trained too little" not in capsys.readouterr().err


def test_what_a_dictionary_leaves_open_is_said_in_every_verb_that_takes_one(tmp_path, capsys):
    save_saelens(zoo.load_dictionary("joint"), tmp_path / "inside")
    given = ["--dictionary", str(tmp_path), "--dictionary-format", "onnx"]
    out = tmp_path / "out"
    for words in (
        ["bias", "zoo:emoji-clip", "zoo:pairs", "--values", "man,woman", "--out", str(out)],
        ["draw", "a cat", "--reference", "a dog", "--out", str(tmp_path / "x.png")],
    ):
        assert main([*words, *given]) == 2
        assert "onnx" in capsys.readouterr().err
        assert not out.exists()


def test_a_dictionary_of_a_pipelines_prompts_is_trained_and_checked(tmp_path, capsys):
    pytest.importorskip("diffusers", reason="pip install 'vlm-edit[diffusion]'")
    from tiny_pipelines import PIPELINES

    PIPELINES["sd"].make().save_pretrained(tmp_path / "pipe")
    prompts = [f"a {a} {b}" for a in ("red", "blue", "fast", "cat") for b in ("cat", "dog", "on")]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts) + "\n")
    about = [str(tmp_path / "pipe"), str(tmp_path / "prompts.txt"), "--site", "text_encoder.text.1"]
    sae, run = str(tmp_path / "sae"), str(tmp_path / "run")
    small = ["--features", "16", "--k", "2", "--steps", "20", "--rows", "16", "--out", sae]
    assert main(["train", *about, *small]) == 0
    assert "Of 1 text that it was not trained on." in capsys.readouterr().out
    assert load_dictionary(sae).info == {"model_name": "pipe", "site": "text_encoder.text.1"}
    main(["check", *about, "--dictionary", sae])
    told = capsys.readouterr().out
    assert "Of 12 texts." in told
    line = next(x for x in told.splitlines() if x.startswith("text "))
    assert line.split()[1] == str(3 * 12)
    assert main(["measure", *about, "--dictionary", sae, "--out", run]) == 2
    assert "prompts alone, and this command needs an image with each" in capsys.readouterr().err
    assert main(["train", about[0], "zoo:pairs", *about[2:], "--out", run]) == 2
    assert "take prompts alone, in a .txt file with one on each line" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["train", about[0], str(tmp_path / "empty.txt"), *about[2:], "--out", run]) == 2
    assert "holds no prompts: write one on each line" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
