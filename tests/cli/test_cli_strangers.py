"""What others wrote is text: it tells a terminal nothing, and names no file of the reader's."""

import csv

import pytest

from vlm_edit import Ablate, Patch, zoo
from vlm_edit.cli import main
from vlm_edit.ground.files import read_tensors, write_tensors
from vlm_edit.measuring import load_measurement
from vlm_edit.report import Table

ESCAPES = "\x1b]0;mine\x07\x1b[2J\r\u202etxt"
CONTROL = ("\x1b", "\x07", "\r", "\u202e")
FILE = "measurement.safetensors"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs whose captions and names would take a terminal over."""
    folder, shipped = tmp_path_factory.mktemp("pairs"), zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for i in range(40):
            shipped.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", shipped.texts[i] + ESCAPES])
        writer.writerow([f"{ESCAPES}.png", "a missing one"])
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = ["measure", "zoo:emoji-clip", pairs, "--dictionary", "zoo:joint", "--out", folder]
    assert main([str(word) for word in words]) == 0
    return folder


def silent(text: str) -> bool:
    return not any(sign in text for sign in CONTROL)


def test_captions_and_names_of_a_list_tell_a_terminal_nothing(pairs, tmp_path, capsys):
    words = ["measure", "zoo:emoji-clip", pairs, "--dictionary", "zoo:joint"]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 0
    told = "".join(capsys.readouterr())
    assert "txt" in told and "1 pair left out" in told and silent(told)

    Patch("joint", zoo.load_dictionary("joint"), Ablate([1])).save(
        tmp_path / "patch.safetensors", zoo.load_host()[0]
    )
    patch = str(tmp_path / "patch.safetensors")
    assert main(["edit", "zoo:emoji-clip", str(pairs), "--patch", patch]) == 0
    told = "".join(capsys.readouterr())
    assert "1 pair left out" in told and silent(told)


def test_an_error_that_quotes_a_file_tells_a_terminal_nothing(tmp_path, capsys):
    (tmp_path / "list.csv").write_text(f"{ESCAPES},text\na,b\n", "utf-8", newline="")
    words = ["measure", "zoo:emoji-clip", tmp_path / "list.csv", "--dictionary", "zoo:joint"]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "does not have 2 fields but 1, at column 'mine" in told and silent(told)


def test_halves_of_characters_do_not_break_a_table():
    str(Table("names", ("name",), [("\udcff.png",)])).encode("utf-8")


def altered(run, tmp_path, change):
    header, tensors = read_tensors(run / FILE)
    change(header)
    write_tensors(tmp_path / FILE, tensors, header)
    return tmp_path


def test_a_run_shows_no_files_of_the_readers_that_it_did_not_measure(run, pairs, tmp_path, capsys):
    def without_texts(header):
        header["provenance"]["pairs"].pop("texts")

    folder = altered(run, tmp_path, without_texts)
    assert main(["report", str(folder)]) == 2
    assert "does not say which pairs it measured" in capsys.readouterr().err
    assert not (folder / "index.html").exists()
    assert main(["report", str(folder), "--pairs", str(pairs)]) == 0


@pytest.mark.parametrize(
    "told", [None, [], "zoo:pairs", {"pairs": None}, {"pairs": []}, {"pairs": {"texts": "x"}}]
)
def test_a_run_of_odd_provenance_is_refused_in_one_line(run, tmp_path, capsys, told):
    folder = altered(run, tmp_path, lambda header: header.update(provenance=told))
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_as_it_was_measured_is_shown(run):
    assert load_measurement(run).skipped[0][0] == 40
    assert main(["report", str(run)]) == 0
