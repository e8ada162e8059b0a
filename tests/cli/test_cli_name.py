"""``vlm-edit name``: names of a run's features, what is kept of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_edit import Host, zoo
from vlm_edit.cli import kept, main
from vlm_edit.measuring import load_measurement, name_features, neighbours, promotes

FEATURES = [3, 17, 99]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    shown = zoo.load_pairs().select(range(96))
    rows = ["image,text"]
    for i, text in enumerate(shown.texts):
        shown.open(i).save(folder / f"{i}.png")
        rows.append(f'{i}.png,"{text}"')
    (folder / "pairs.csv").write_text("\n".join(rows), "utf-8")
    return folder / "pairs.csv"


@pytest.fixture
def run(pairs: Path, tmp_path: Path) -> Path:
    words = ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint"]
    assert main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return tmp_path / "run"


def name(run: Path, *more: str) -> int:
    return main(["name", str(run), "--features", "3,17,99", "--quiet", *more])


def test_a_run_alone_tells_what_to_name_and_the_names_are_kept_with_it(
    run: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert name(run, "--json", "--near", "2") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    measurement = load_measurement(run)
    stored = kept.names(run, measurement.checksum())
    assert stored is not None and list(stored) == FEATURES
    host, dictionary = Host.load("zoo:emoji-clip", device="cpu"), zoo.load_dictionary("joint")
    names = name_features(host, measurement, str(pairs), dictionary, FEATURES)
    moved = promotes(host, dictionary, "joint", FEATURES, names.vocabulary)
    near = neighbours(dictionary, FEATURES, 2, measurement=measurement)
    for one in names:
        expected = {
            **one.as_json(),
            "promotes": moved[one.feature].as_json(),
            "neighbours": near[one.feature].as_json(),
        }
        assert stored[one.feature] == told["figures"]["names"][str(one.feature)] == expected
    assert {row[0] for row in told["tables"][0]["rows"]} == {"3", "17", "99"}
    assert told["files"][0]["path"] == str(run / "names.json")


def test_words_of_ones_own_name_features_best_names_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("person\nfood\nanimal\n", "utf-8")
    capsys.readouterr()
    options = ("--vocabulary", str(words), "--template", "a picture of {}", "--shown", "2")
    assert name(run, *options) == 0
    out = capsys.readouterr().out
    assert "among 3 words of" in out and "The best 2 of 3 are shown" in out
    stored = kept.names(run, load_measurement(run).checksum())
    assert stored is not None
    assert all(
        {w for w, _ in one["words"]} == {"person", "food", "animal"} for one in stored.values()
    )


def test_names_are_replaced_only_if_asked_and_go_with_their_run(
    run: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name(run) == 0
    assert name(run) == 2
    assert "names.json is there already" in capsys.readouterr().err
    assert name(run, "--overwrite", "--seed", "1") == 0
    checksum = load_measurement(run).checksum()
    assert kept.names(run, "another") is None and kept.others(run, checksum) == []
    assert kept.others(run, "another") == [run / "names.json"]
    words = ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint"]
    assert main([*words, "--zeros", "half", "--out", str(run), "--overwrite", "--quiet"]) == 0
    assert not (run / "names.json").exists()


def test_what_a_run_does_not_say_is_asked_for(
    run: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlm_edit.dictionaries import save_saelens

    own = tmp_path / "sae"
    save_saelens(zoo.load_dictionary("joint").reordered([1, 0, *range(2, 512)]), own)
    out = tmp_path / "other"
    words = ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", str(own), "--out", str(out)]
    assert main([*words, "--quiet"]) == 0
    assert name(out) == 2
    assert "where its dictionary lies: name it with --dictionary" in capsys.readouterr().err
    assert name(out, "--dictionary", str(own)) == 0
    assert name(run, "--dictionary", str(own)) == 2
    assert "another dictionary" in capsys.readouterr().err
    assert name(run, "--features", "a,b") == 2
    assert "--features takes numbers" in capsys.readouterr().err
    assert name(run, "--shown", "0") == 2
    assert not (run / "names.json").exists()


def test_raw_neurons_need_no_dictionary_named(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "neurons"
    words = ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "neurons", "--out", str(out)]
    assert main([*words, "--quiet"]) == 0
    assert name(out) == 0
    stored = kept.names(out, load_measurement(out).checksum())
    assert stored is not None and all(one["firing"] > 0 for one in stored.values())


@pytest.mark.parametrize("text", ['{"run": "a"}', "[]", '{"run": "a", "names": {"x": {}}}'])
def test_damaged_names_are_told_with_how_to_make_them_anew(
    text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "names.json").write_text(text, "utf-8")
    assert main(["report", str(run)]) == 2
    assert "names.json is damaged: delete it, or name again" in capsys.readouterr().err
