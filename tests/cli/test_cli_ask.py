"""``vlm-edit ask``, as typed, on the zoo's LLaVA and a picture of one's own."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlm_edit import Ablate, Clamp, Host, Patch, zoo
from vlm_edit.cli import main
from vlm_edit.zoo.questions import ask

LLAVA = "zoo:emoji-llava"
COLOUR = "what colour is the background?"
BLUE = 1  # a pair with a blue background, which CLAMPED turns to red
CLAMPED = Clamp([31, 407], value=4.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, and patches that turn, that do nothing, and of another model."""
    folder = tmp_path_factory.mktemp("ask")
    zoo.load_pairs().open(BLUE).save(folder / "blue.png")
    host, dictionary = Host.load(LLAVA, device="cpu"), zoo.load_dictionary("language.0")
    Patch("language.0", dictionary, CLAMPED, "image").save(folder / "red.safetensors", host)
    late = {"tokens": "text", "phase": "decode", "steps": (500, 600)}
    Patch("language.0", dictionary, Ablate([3]), **late).save(folder / "late.safetensors", host)
    joint = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
    joint.save(folder / "clip.safetensors", zoo.load_host()[0])
    with torch.no_grad():
        for weight in host.site("language.0").taps[0].module.parameters():
            weight.mul_(1.5)
    Patch("language.0", dictionary, CLAMPED, "image").save(folder / "other.safetensors", host)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["ask", *map(str, words), "--device", "cpu"])
    told = capsys.readouterr()
    return status, told.out, told.err


def known(patched: bool = False) -> str:
    """What the zoo's own way of asking is answered."""
    model, processor = zoo.load_llava()
    image = zoo.load_pairs().open(BLUE)
    if not patched:
        return ask(model, processor, [image], COLOUR)[0]
    dictionary = zoo.load_dictionary("language.0")
    with Patch("language.0", dictionary, CLAMPED, "image").attach(model):
        return ask(model, processor, [image], COLOUR)[0]


def test_without_a_patch_the_answer_alone_is_printed(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, LLAVA, files / "blue.png", COLOUR)
    assert (status, out) == (0, "blue\n")
    assert out.strip() == known()
    assert "greedy decoding, at most 64 new tokens" in err and "{text}" in err


def test_answers_before_and_after_and_what_was_edited_are_printed(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [LLAVA, files / "blue.png", COLOUR, "--patch", files / "red.safetensors"]
    status, out, _ = run(capsys, *words)
    after = known(patched=True)
    assert status == 0 and after == "red"
    assert out.split("\n\n") == [
        "as it is:\nblue",
        f"with red.safetensors:\n{after}",
        out.split("\n\n")[2],
    ]
    report = out.split("\n\n")[2]
    assert re.fullmatch(
        r"red\.safetensors: language\.0: 37 tokens edited in \d+ calls \(37 image; 37 prompt\)\n",
        report,
    )
    assert "note" not in out


def test_patches_act_together_each_at_its_strength(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--patch", files / "red.safetensors", "--patch", files / "late.safetensors"]
    words = [LLAVA, files / "blue.png", COLOUR, *both]
    status, out, _ = run(capsys, *words)
    assert status == 0 and "with red.safetensors and late.safetensors:\nred\n" in out
    assert "late.safetensors: language.0: 0 tokens edited" in out
    assert "note: late.safetensors edited nothing" in out and "equal" not in out
    status, out, _ = run(capsys, *words, "--strength", "0", "--strength", "1")
    assert status == 0 and "note: red.safetensors changed nothing, since its strength is 0" in out
    assert "note: both answers are equal" in out


def test_what_is_drawn_comes_again_by_its_seed(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [LLAVA, files / "blue.png", "what is it?", "--temperature", "5"]
    drawn = [run(capsys, *words, "--seed", seed)[1] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_the_draw_is_the_same_before_and_after(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [LLAVA, files / "blue.png", "what is it?", "--temperature", "5", "--seed", "3"]
    _, out, err = run(capsys, *words, "--patch", files / "late.safetensors")
    assert "note: both answers are equal" in out and "temperature 5 with seed 3" in err


def test_an_answer_that_is_cut_off_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [LLAVA, files / "blue.png", "what is it?", "--max-new-tokens"]
    status, out, err = run(capsys, *words, "1")
    assert status == 0 and len(out.split()) == 1
    assert "an answer ends at --max-new-tokens 1" in err
    assert "an answer ends" not in run(capsys, *words, "64")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zoo:emoji-clip", "blue.png", "what?"], "CLIPModel does not speak"),
        ([LLAVA, "blue.png", " "], "the question is empty"),
        ([LLAVA, "no.png", "what?"], "no.png"),
        ([LLAVA, "blue.png", "what?", "--patch", "no.safetensors"], "no patch at"),
        ([LLAVA, "blue.png", "what?", "--patch", "clip.safetensors"], "has no site 'joint'"),
        ([LLAVA, "blue.png", "what?", "--patch", "blue.png"], "not a readable safetensors"),
        ([LLAVA, "blue.png", "what?", "--patch", "other.safetensors"], "pass --no-check-host"),
        ([LLAVA, "blue.png", "what?", "--strength", "1"], "name one with --patch"),
        (
            [LLAVA, "blue.png", "what?", "--patch", "red.safetensors", *["--strength", "1"] * 2],
            "--strength was given 2 times for 1 patches",
        ),
        ([LLAVA, "blue.png", "what?", "--max-new-tokens", "0"], "it must be at least 1"),
        ([LLAVA, "blue.png", "what?", "--temperature", "0"], "leave it out for greedy"),
        ([LLAVA, "blue.png", "what?", "--seed", "1"], "add --temperature"),
        ([LLAVA, "blue.png", "what?", "--patch", "."], "say which with the path of one"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_answered(
    words: list[str],
    message: str,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_another_models_patch_is_let_in_when_asked(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [LLAVA, files / "blue.png", COLOUR, "--patch", files / "other.safetensors"]
    status, out, _ = run(capsys, *words, "--no-check-host")
    assert status == 0 and "with other.safetensors:\nred\n" in out


def test_a_failing_answer_leaves_no_patch_on_the_host(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_edit.cli import asking
    from vlm_edit.patches import attached

    hosts, answer = [], asking.answer

    def fail(host: Host, *rest: object) -> object:
        hosts.append(host)
        if len(hosts) == 2:
            raise KeyboardInterrupt
        return answer(host, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "answer", fail)
    words = [LLAVA, files / "blue.png", COLOUR, "--patch", files / "red.safetensors"]
    assert run(capsys, *words)[0] == 130
    assert len(hosts) == 2 and not attached(hosts[0])


def terminal(width: int, *words: object) -> str:
    """What the command writes to a terminal of this width."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "vlm_edit", "ask", *map(str, words), "--device", "cpu"]
    environment = {**os.environ, "COLUMNS": str(width), "LINES": "40", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, env=environment):
        os.close(follower)
        told = b""
        while True:
            try:
                told += (more := os.read(leader, 65536))
            except OSError:  # the other end is closed
                break
            if not more:
                break
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told.decode()).replace("\r\n", "\n")


@pytest.mark.slow
def test_a_wide_terminal_shows_answers_beside_each_other_and_a_narrow_one_below(
    files: Path,
) -> None:
    words = [LLAVA, files / "blue.png", COLOUR, "--patch", files / "red.safetensors"]
    lines = [line.split() for line in terminal(100, *words).splitlines()]
    assert ["as", "it", "is", "with", "red.safetensors"] in lines
    assert ["blue", "red"] in lines
    assert ["blue"] in lines  # while the second is not there yet
    narrow = terminal(50, *words)
    assert "as it is:\nblue\n\nwith red.safetensors:\nred\n" in narrow
