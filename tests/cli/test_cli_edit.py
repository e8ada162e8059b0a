"""``vlm-edit edit`` of models without a joint embedding, as typed."""

import json
from pathlib import Path

import pytest

from vlm_edit import Ablate, Clamp, Host, Patch, load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.measuring import load_measurement
from vlm_edit.zoo.questions import ask

LLAVA = ("zoo:emoji-llava", "zoo:pairs")
COLOUR = "what colour is the background?"
RED = ["--features", "31,407", "--rule", "clamp", "--value", "4", "--tokens", "image"]
SITE = ["--site", "language.0", "--dictionary", "zoo:language.0"]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["edit", *map(str, words), "--device", "cpu"])
    told = capsys.readouterr()
    return status, told.out, told.err


def cells(out: str) -> list[list[str]]:
    """The rows of the first table that is printed, cut where its columns begin."""
    lines = out.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("--"))
    starts = [i for i, c in enumerate(lines[rule]) if c == "-" and lines[rule][i - 1 : i] != "-"]
    rows = []
    for line in lines[rule + 1 :]:
        if not line[:1].isdigit():
            break
        rows.append([line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)])
    return rows


def test_a_model_that_speaks_is_asked_before_and_after_and_the_patch_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "red.safetensors"
    status, out, _ = run(capsys, *LLAVA, *SITE, *RED, "--ask", COLOUR, "--save", file)
    assert status == 0
    model, processor = zoo.load_llava()
    images = [zoo.load_pairs().open(i) for i in range(4)]
    before = ask(model, processor, images, COLOUR)
    patch = Patch("language.0", zoo.load_dictionary("language.0"), Clamp([31, 407], 4.0), "image")
    with patch.attach(model):
        after = ask(model, processor, images, COLOUR)
    found = cells(out)
    assert [row[:3] for row in found] == [
        [str(i), then, now] for i, (then, now) in enumerate(zip(before, after, strict=True))
    ]
    assert before != after
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert f"{changed} of 4 answers changed by clamp 2 features" in out
    assert "clamp 2 random" in out and "one draw of live features" in out
    assert "language.0: 148 tokens edited" in out and f"patch:  {file}" in out
    assert load_patch(file).bindings[0].splice.rules == patch.bindings[0].splice.rules
    status, out, _ = run(capsys, *LLAVA, "--patch", file, "--ask", COLOUR, "--shown", 2)
    assert status == 0 and [row[:3] for row in cells(out)] == [row[:3] for row in found[:2]]


def test_without_a_question_each_pairs_text_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *LLAVA, *SITE, *RED, "--shown", "2")
    assert status == 0
    assert [row[1] for row in cells(out)] == list(zoo.load_pairs().texts[:2])
    assert "ask a question with --ask" in out


def test_a_class_of_any_layer_is_edited_and_shown_on_the_page_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for i in range(24):
        zoo.load_pairs().open(i).save(pairs / f"{i:02}.png")
        (pairs / f"{i:02}.txt").write_text(zoo.load_pairs().texts[i], encoding="utf-8")
    (pairs / "01.png").write_bytes(b"garbage")
    there = [LLAVA[0], str(pairs), "--site", "language.2", "--dictionary", "zoo:language.2"]
    out = tmp_path / "run"
    assert main(["measure", *there, "--out", str(out), "--device", "cpu"]) == 0
    capsys.readouterr()
    words = ["--class", "vision", "--cuts", "fixed", "--run", out, "--ask", "what is it?"]
    status, told, apart = run(capsys, *there, *words)
    assert status == 0
    count = len(load_measurement(out).dominance.classes("fixed")["vision"])
    assert f"ablate vision ({count}, " in told and " proven)" in told
    assert [row[0] for row in cells(told)] == ["0", "2", "3", "4"]
    assert "1 pair left out" in apart and "01.png" in apart
    kept = json.loads((out / "edits" / "001.json").read_text(encoding="utf-8"))
    assert kept["table"][2][0][1] == cells(told)[0][1]
    assert main(["report", str(out)]) == 0
    assert "Answers, before and after" in (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaVA without its head, which neither speaks nor has a joint embedding."""
    folder = tmp_path_factory.mktemp("mute")
    model, processor = zoo.load_llava()
    model.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_where_nothing_can_be_shown_the_patch_is_saved_and_that_is_said(
    mute: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.safetensors"
    words = [mute, "zoo:pairs", "--site", "language.2", "--dictionary", "neurons"]
    status, out, _ = run(capsys, *words, "--features", "3", "--save", file)
    assert status == 0 and f"patch:  {file}" in out
    assert "LlavaModel has no joint embedding and does not speak" in out
    assert load_patch(file).bindings[0].splice.rules == (Ablate([3]),)
    load_patch(file).attach(Host.load(mute, device="cpu")).remove()
    status, out, err = run(capsys, *words, "--features", "3")
    assert (status, out) == (2, "") and "keep the patch with --save" in err
    status, out, err = run(capsys, *words, "--features", "3", "--ask", "what?")
    assert (status, out) == (2, "") and "does not speak" in err and "leave --ask out" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shown", "0"], "--shown 0: it must be at least 1"),
        (["--ask", ""], "--ask is empty"),
        (["--features", "99999"], "99999"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_saved(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.safetensors"
    features = [] if "--features" in words else ["--features", "1"]
    status, out, err = run(capsys, *LLAVA, *SITE, *features, *words, "--save", file)
    assert (status, out) == (2, "") and message in err and not file.exists()


def test_a_model_with_a_joint_embedding_that_cannot_speak_is_not_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["zoo:emoji-clip", "zoo:pairs", "--dictionary", "zoo:joint", "--features", "1"]
    status, _, err = run(capsys, *words, "--ask", "what?")
    assert status == 2 and "CLIPModel does not speak" in err
