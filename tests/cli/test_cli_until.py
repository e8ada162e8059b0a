"""``vlm-edit measure --until-width``: what it prints, writes, finds again and refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_edit import zoo
from vlm_edit.cli import main
from vlm_edit.measuring import MeasurementAccumulator, load_measurement, until

COUNT = 48


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks from 16 pairs on."""
    monkeypatch.setattr(until, "FIRST", 16)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, ours = tmp_path_factory.mktemp("pairs"), zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(COUNT):
            ours.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", ours.texts[i]])
    return folder / "pairs.csv"


@pytest.fixture
def words(pairs: Path, tmp_path: Path) -> list[str]:
    size = ["--batch-size", "8", "--out", str(tmp_path / "run"), "--quiet"]
    return ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint", *size]


def test_a_run_says_where_it_stopped_and_is_found_whole(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    typed = [*words, "--until-width", ".9", "--until-features", "71,387"]
    assert main(typed) == 0
    printed = capsys.readouterr().out
    told = "Stopped after 16 of 48 pairs: the 90 % intervals of the 2 features asked about are at "
    assert told in printed
    run = load_measurement(tmp_path / "run")
    assert run.n_pairs == 16 and run.stopping().startswith(told)
    low, high = run.dominance.intervals(0.9)
    wide = (high - low > 0.9).nonzero().flatten().tolist()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["until"]["told"] == run.stopping()
    assert summary["until"]["not_settled"] == wide
    monkeypatch.setattr(MeasurementAccumulator, "update", None)  # nothing is read again
    assert main(typed) == 0
    printed = capsys.readouterr().out
    assert "holds this measurement, whole" in printed and told in printed
    assert main([*words, "--until-width", ".8", "--until-features", "71,387"]) == 2
    assert "holds another measurement" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run")]) == 0
    assert told in (tmp_path / "run" / "index.html").read_text("utf-8")


def test_the_share_of_pairs_is_passed_on(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--until-width", ".001", "--until-share", ".3"]) == 0
    run = load_measurement(tmp_path / "run")
    asked = (run.dominance.active >= 0.3 * COUNT).sum()
    assert run.provenance["until"]["share"] == 0.3
    assert run.provenance["until"]["asked"] == int(asked) and run.n_pairs == COUNT


# A part, which looks from 16 pairs on; it may be killed where its n-th batch is added.
PART = """
import os, sys
from vlm_edit.cli import main
from vlm_edit.measuring import MeasurementAccumulator, until
until.FIRST, left, update = 16, [{left}], MeasurementAccumulator.update
def killed(*given):
    left[0] -= 1
    return os.kill(os.getpid(), 9) if not left[0] else update(*given)
MeasurementAccumulator.update = killed
sys.exit(main({words!r}))
"""


def start(words: list[str], part: str, left: int = 0) -> subprocess.Popen[str]:
    code = PART.format(left=left, words=[*words, "--part", part, "--every", "0"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def test_processes_side_by_side_stop_where_one_after_another_do(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*words, "--until-width", ".9", "--until-features", "71,387", "--batch-size", "4"]
    killed = start(typed, "2/2", left=2)
    assert killed.communicate() and killed.returncode == -9
    side = [start(typed, "1/2"), start(typed, "2/2")]
    printed = [one.communicate(timeout=300) for one in side]
    assert [one.returncode for one in side] == [0, 0], printed
    run = load_measurement(tmp_path / "run")
    assert run.stopping().startswith("Stopped after ") and run.n_pairs < COUNT
    assert sum(run.stopping() in out for out, _ in printed) >= 1
    there = {file.name for file in (tmp_path / "run").iterdir()}
    assert there == {"features.csv", "measurement.safetensors", "summary.json"}
    again = [*typed[: typed.index("--out")], *typed[typed.index("--out") + 2 :]]
    for part in ("1/2", "2/2"):
        assert main([*again, "--out", str(tmp_path / "again"), "--part", part]) == 0
    assert load_measurement(tmp_path / "again").checksum() == run.checksum()
    assert main([*typed, "--part", "2/2"]) == 0
    assert "holds this measurement, whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--until-width", "0"], "--until-width is 0.0; "),
        (["--until-features", "3"], "say how narrow with --until-width"),
        (["--until-width", ".1", "--until-features", "3,x"], "such as 3,17, got '3,x'"),
        (["--until-width", ".1", "--until-features", "512"], "--until-features names feature 512"),
        (["--until-width", ".1", "--centred"], "--centred measures twice"),
    ],
)
def test_what_cannot_be_is_refused_in_words_of_the_command(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert main([*words, *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "measurement.safetensors").exists()
    assert not list(tmp_path.rglob("part*"))
