"""``vlm-edit bias``, as typed, on the zoo and on a folder of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_edit import Host, load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.tasks.bias import Bench, Questions

ZOO = ("bias", "zoo:emoji-clip", "zoo:pairs")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run with a dictionary wrote."""
    folder = tmp_path_factory.mktemp("bias")
    arguments = ["--values", "man,woman", "--label", "concept", "--split-by", "concept"]
    more = ["--dictionary", "zoo:joint", "--out", str(folder), "--k", "10"]
    assert main([*ZOO, *arguments, *more]) == 0
    return folder


def faces(folder: Path, count: int = 24) -> Path:
    """A folder named as UTKFace names its images: of men and women of the zoo."""
    pairs = zoo.load_pairs()
    wanted = [i for i, g in enumerate(pairs.columns["gender"]) if g in ("man", "woman")][:count]
    for i in wanted:
        gender = ("man", "woman").index(pairs.columns["gender"][i])
        pairs.open(i).save(folder / f"30_{gender}_0_{i}.png")
    return folder


def test_one_command_writes_figures_a_page_and_a_patch(out: Path) -> None:
    report = json.loads((out / "bias.json").read_text("utf-8"))
    named = [name for name in report["edits"] if name.startswith("difference of")]
    assert len(named) == 2 and "random" in named[1]
    figures = {name: edit["figures"] for name, edit in report["edits"].items()}
    assert figures["nothing"]["read"]["value"] > figures[named[0]]["read"]["value"] + 0.1
    assert {"read", "probe", "recognised", "kept", "R@1", "MaxSkew"} <= set(figures["nothing"])
    assert report["edits"]["nothing"]["read by group"].keys() == {"man", "woman"}
    people = figures["nothing"]["read"]["n"], figures["nothing"]["kept"]["n"]
    chance = report["edits"]["nothing"]["by chance"]["MaxSkew"]
    assert 0 < chance["low"] < chance["value"] < chance["high"] and chance["n"] == 1000
    assert 0 < chance["p"] <= 1
    effect, cost = report["tables"]
    assert "(groups permuted)" in effect
    assert f"{people[0]} images of man or woman that nothing was fitted on" in effect
    assert f"Of all {people[1]} images" in cost
    assert f"worst group of the {people[0]} images of man or woman." in cost
    assert [row for row in effect.splitlines() if ", below chance" in row][0].startswith("prompt")
    assert report["edits"]["prompt difference"]["below chance"] == ["read"]
    assert "What queries find first" in (out / "index.html").read_text("utf-8")


def test_the_patch_it_writes_does_to_the_host_what_it_says(out: Path) -> None:
    report = json.loads((out / "bias.json").read_text("utf-8"))
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs()
    values = ("man", "woman")
    prompts = {v: [v, f"a picture of {v}", f"a photo of a {v}"] for v in values}
    bench = Bench.read(Host.of(host, processor), pairs, Questions("gender", prompts))
    baseline = bench.edited(load_patch(out / "baseline.safetensors")).read_out().value
    assert baseline < bench.plain.read_out().value - 0.1
    patch = load_patch(out / "patch.safetensors")
    assert patch.info["attribute"] == "man/woman"
    before, after = bench.plain.read_out().value, bench.edited(patch).read_out().value
    told = report["edits"]["nothing"]["figures"]["read"]["value"]
    assert abs(before - told) < 0.15  # of all people, and of the half it was tested on
    assert after < before - 0.1


def test_a_folder_of_faces_needs_no_dictionary_and_no_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "faces", tmp_path / "out"
    folder.mkdir()
    assert main(["bias", "zoo:emoji-clip", str(faces(folder)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "gender: what is left of it" in printed and "female" in printed
    assert "difference in means" in printed and "random features" not in printed
    assert "What it costs" not in printed  # neither labels nor captions: nothing to lose
    assert load_patch(out / "patch.safetensors")
    assert not (out / "baseline.safetensors").exists()


def test_prompts_queries_and_a_sample_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "queries.txt").write_text("a picture of pilot\n\na picture of cook\n", "utf-8")
    arguments = ["--values", "man,woman", "--most", "700", "--seed", "3"]
    more = ["--prompt", "man=man", "--prompt", "woman=woman", "--prompt", "woman=lady"]
    written = ["--queries", str(tmp_path / "queries.txt"), "--out", str(tmp_path / "out")]
    assert main([*ZOO, *arguments, *more, *written]) == 0
    report = json.loads((tmp_path / "out" / "bias.json").read_text("utf-8"))
    assert report["edits"]["nothing"]["figures"]["MaxSkew"]["n"] == 2
    assert report["arguments"]["prompt"] == ["man=man", "woman=woman", "woman=lady"]
    printed = capsys.readouterr().out
    assert "Of all 350 images that nothing was fitted on. 95 %" in printed
    assert f"{report['edits']['nothing']['figures']['read']['n']} images of man or woman" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attribute", "age"], "has no column 'age'"),
        (["--attribute", "concept"], "name those to tell apart with --values"),
        (["--values", "man,robot"], "has gender 'robot'"),
        (["--values", "man"], "two values"),
        (["--prompt", "robot=a robot"], "write VALUE=TEXT"),
        (["--label", "colour"], "has no column 'colour'"),
        (["--queries", "nowhere.txt"], "--queries nowhere.txt"),
        (["--split", "val"], "has no splits"),
        (["--most", "1"], "at least 2 images"),
        (["--most", "60", "--values", "man,woman", "--seed", "1"], "it takes 4"),
        (["--values", "man,woman", "--split-by", "age"], "has no column 'age'"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ZOO, *arguments, "--out", str(tmp_path / "out")]) == 2
    *loaded, error = capsys.readouterr().err.splitlines()
    assert words in error and error.startswith("vlm-edit: ")
    assert loaded in ([], ["vlm-edit: CLIPModel on cpu in float32"])


def test_an_empty_list_of_queries_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none.txt").write_text("\n", "utf-8")
    assert main([*ZOO, "--queries", str(tmp_path / "none.txt"), "--out", str(tmp_path)]) == 2
    assert "holds no text" in capsys.readouterr().err
