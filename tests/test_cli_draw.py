"""``vlm-edit draw`` on the bundled pipeline."""

import pytest
from PIL import Image

from vlm_edit.cli import main

pytest.importorskip("diffusers")


def run(*words):
    return main(["draw", *map(str, words), "--steps", "2"])


def test_it_draws_a_column_per_strength_and_a_row_per_reference(tmp_path, capsys):
    reference = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(reference)
    out = tmp_path / "x.png"
    words = ["a picture of dog face", "--reference", reference, "--reference", "a picture of cat"]
    assert run(*words, "--class", "whole", "--strength", "0,1", "--out", out) == 0
    told = capsys.readouterr().out
    assert told.count("whole embedding") == 2
    assert str(out) in told
    with Image.open(out) as page:
        assert page.height > 2 * 96
        assert page.width > 3 * 96
    plain, taken = tile(out, 0, 1), tile(out, 0, 2)
    assert plain == tile(out, 1, 1)
    assert plain != taken != tile(out, 1, 2)


@pytest.mark.slow
def test_classes_are_measured_and_take_different_things(tmp_path, capsys):
    out = tmp_path / "x.png"
    words = ["a picture of dog face", "--reference", "a picture of cat face", "--strength", "1"]
    assert run(*words, "--class", "cross", "--class", "vision", "--out", out) == 0
    told = capsys.readouterr().out
    assert "cross (314)" in told
    assert "vision (96)" in told
    assert tile(out, 0, 1) != tile(out, 1, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--reference", "missing.png"], "no image could be read"),
        (["--reference", "a cat", "--strength", "much"], "give numbers"),
        (["--reference", "a cat", "--strength", "9"], "at most 8"),
        (["--reference", "a cat", "--out", "missing/x.png"], "does not exist"),
        (["--reference", "a cat", "--pipeline", "zoo:other"], "zoo:emoji-unclip"),
        (["--reference", "a cat", "--pipeline", "missing"], "model_index.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("a dog", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-1]
    assert not list(tmp_path.iterdir())


def tile(path, row, column):
    """Bytes of a drawing of the picture."""
    with Image.open(path) as page:
        x, y = 8 + 144 + column * 102, 8 + 36 + row * 102
        return page.convert("RGB").crop((x, y, x + 96, y + 96)).tobytes()
