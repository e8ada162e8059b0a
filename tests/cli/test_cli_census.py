"""``vlm-edit census``: rows, what is kept with a run, and what a page then shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_edit import zoo
from vlm_edit.cli import kept, main
from vlm_edit.measures.nulls import ROWS
from vlm_edit.measuring import load_measurement

TRAINED = ("frozen-dictionary", "retrained", "random-host")
SKIP = [word for name in TRAINED for word in ("--skip", name)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    shown = zoo.load_pairs().select(range(48))
    rows = ["image,text,background"]
    for i, text in enumerate(shown.texts):
        shown.open(i).save(folder / f"{i}.png")
        rows.append(f'{i}.png,"{text}",{shown.columns["background"][i]}')
    (folder / "pairs.csv").write_text("\n".join(rows), "utf-8")
    return folder / "pairs.csv"


@pytest.fixture
def run(pairs: Path, tmp_path: Path) -> Path:
    words = ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint"]
    assert main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return tmp_path / "run"


def count(pairs: Path, *more: str) -> int:
    words = ["census", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint"]
    return main([*words, *SKIP, *more])


def test_rows_are_printed_but_for_those_that_are_skipped(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count(pairs, "--factor", "background", "--skip", "joint", "--json") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    names = [name for name in ROWS if name not in (*TRAINED, "joint")]
    rows = told["figures"]["census"]["rows"]
    assert [row["name"] for row in rows] == names
    assert [row[0] for row in told["tables"][0]["rows"]] == [ROWS[name] for name in names]
    assert "background" in told["tables"][0]["columns"]
    assert sum(rows[0]["sizes"].values()) == 512


def test_a_census_kept_with_a_run_stands_on_its_page(
    pairs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    assert main(["report", str(run)]) == 0
    before = (run / "index.html").read_text("utf-8")
    assert "Class sizes say little" in before and ROWS["unpaired"] not in before
    assert count(pairs, "--run", str(run)) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "index.html").read_text("utf-8")
    assert ROWS["unpaired"] in page and 'id="census"' in page
    capsys.readouterr()
    assert count(pairs, "--run", str(run)) == 2
    assert "census.json is there already" in capsys.readouterr().err
    assert count(pairs, "--run", str(run), "--overwrite", "--skip", "unpaired") == 0
    kept_rows = kept.census(run, load_measurement(run).checksum())
    assert kept_rows is not None
    assert [row.name for row in kept_rows.rows] == ["data", "swapped", "joint", "random-dictionary"]


def test_a_census_of_a_run_that_was_here_before_is_no_longer_shown(pairs: Path, run: Path) -> None:
    assert count(pairs, "--run", str(run)) == 0
    checksum = load_measurement(run).checksum()
    assert kept.census(run, checksum) is not None
    assert kept.census(run, "another") is None
    assert kept.others(run, checksum) == []
    assert kept.others(run, "another") == [run / "census.json"]
    words = [
        "measure",
        "zoo:emoji-clip",
        str(pairs),
        "--dictionary",
        "zoo:joint",
        "--zeros",
        "half",
    ]
    assert main([*words, "--out", str(run), "--overwrite"]) == 0
    assert not (run / "census.json").exists()


def test_a_damaged_census_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "census.json").write_text('{"run": 1, "census": {}}', "utf-8")
    assert main(["report", str(run)]) == 2
    assert "census.json is damaged: delete it" in capsys.readouterr().err


def test_a_run_with_another_dictionary_and_a_strange_column_are_refused(
    pairs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["census", "zoo:emoji-clip", str(pairs), "--dictionary", "neurons", "--run", str(run)]
    assert main([*words, *SKIP]) == 2
    assert "another dictionary" in capsys.readouterr().err
    assert count(pairs, "--factor", "weather") == 2
    assert "no column 'weather'" in capsys.readouterr().err
    assert count(pairs, "--skip", "gaussian") == 2
    assert "no row 'gaussian' of a census to skip" in capsys.readouterr().err
    assert not (run / "census.json").exists()


def test_what_comes_again_in_halves_is_kept_and_can_be_shown_alone(
    pairs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    assert count(pairs, "--run", str(run), "--halves", "3", "--cuts", "fixed") == 0
    assert "Stability: halves of the pairs" in capsys.readouterr().out
    census = kept.census(run, load_measurement(run).checksum())
    assert census is not None and census.halves is not None
    classes = load_measurement(run).dominance.classes("fixed")
    labelled = {k for name in ("vision", "language", "cross") for k in classes[name]}
    assert 0 < len(census.halves.recurring) < 512 and set(census.halves.recurring) <= labelled
    assert main(["report", str(run)]) == 0
    page = (run / "index.html").read_text("utf-8")
    assert f"Only what recurs ({len(census.halves.recurring)})" in page
    assert count(pairs, "--run", str(run), "--halves", "0", "--overwrite") == 0
    assert "Stability" not in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "Only what recurs" not in (run / "index.html").read_text("utf-8")


def test_several_captions_of_an_image_are_one_pair_of_a_census(tmp_path, capsys) -> None:
    shown = zoo.load_pairs().select(range(30))
    rows = ["image,text"]
    for i, text in enumerate(shown.texts):
        shown.open(i).save(tmp_path / f"{i}.png")
        rows += [f'{i}.png,"{text}"', f'{i}.png,"a picture of {text}"']
    (tmp_path / "pairs.csv").write_text("\n".join(rows), "utf-8")
    assert count(tmp_path / "pairs.csv", "--skip", "swapped") == 0
    assert "Classes by the rule interval; 30 pairs." in capsys.readouterr().out
