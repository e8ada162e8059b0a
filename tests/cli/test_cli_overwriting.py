"""Nothing that is there is replaced unasked, and nothing is lost before the new is whole."""

import shutil
from pathlib import Path

import pytest

from vlm_edit import zoo
from vlm_edit.cli import main, training
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import replacing
from vlm_edit.measuring import load_measurement

ZOO = ("zoo:emoji-clip", "zoo:pairs")
MEASURE = ["measure", *ZOO, "--dictionary", "zoo:joint", "--out"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "run"
    assert main([*MEASURE, str(out)]) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("words", "there", "flag"),
    [
        (["train", *ZOO, "--out", "OUT"], "cfg.json", "--out"),
        (["train", *ZOO, "--separate", "--out", "OUT"], "image", "--out"),
        (["train", *ZOO, "--out", "OUT"], "", "--out"),
        (["edit", *ZOO, "--dictionary", "zoo:joint", "--features", "1", "--save", "OUT"], "",
         "--save"),
        (["draw", "a cat", "--reference", "a dog", "--out", "OUT.png"], "", "--out"),
        (["bias", *ZOO, "--values", "man,woman", "--out", "OUT"], "patch.safetensors", "--out"),
        (["attack", *ZOO, "--out", "OUT"], "attack.json", "--out"),
        (["demo", "--out", "OUT"], "index.html", "--out"),
        (["demo", "--llava", "--out", "OUT"], "index.html", "--out"),
        (["report", "no-such-run", "--page", "OUT"], "", "--page"),
    ],
)  # fmt: skip
def test_what_is_there_is_named_with_the_flag_before_any_work(
    words: list[str], there: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def loaded(*_: object) -> None:
        pytest.fail("a model was loaded")

    for module in ("attack", "bias", "training", "subject"):
        monkeypatch.setattr(f"vlm_edit.cli.{module}.load_host", loaded)
    monkeypatch.setattr("vlm_edit.cli.drawing.load_pipeline", loaded)
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    name = next(word for word in words if word.startswith(str(tmp_path)))
    file = Path(name, there)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"dear")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"{file} is there already, and nothing has changed" in told
    assert f"with {flag}" in told and told.rstrip().endswith("--overwrite")
    assert file.read_bytes() == b"dear"


def test_a_run_of_something_else_is_kept_and_the_same_run_is_not_measured_again(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    assert main([*MEASURE, str(run), "--keep", "10"]) == 2
    told = capsys.readouterr().err
    assert f"{run} holds another measurement" in told and "--overwrite" in told
    assert contents(run) == before
    monkeypatch.setattr("vlm_edit.cli.subject.Subject.measure", lambda *_, **__: pytest.fail())
    assert main([*MEASURE, str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"{run} holds this measurement, whole" in printed and "vision-dominant" in printed
    assert contents(run) == before


def test_a_run_is_replaced_where_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    assert main([*MEASURE, str(out), "--keep", "10", "--overwrite"]) == 0
    assert load_measurement(out).provenance["settings"]["keep"] == 10


def test_the_runs_own_page_is_made_anew_and_another_is_kept(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run)]) == main(["report", str(run)]) == 0
    assert main(["report", str(run), "--page", str(page)]) == 0
    assert main(["report", str(run), "--page", str(page)]) == 2
    assert main(["report", str(run), "--page", str(page), "--title", "New", "--overwrite"]) == 0
    assert "<title>New</title>" in page.read_text("utf-8")


def test_what_fails_while_it_is_written_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"one")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(BadArgument), replacing(tmp_path, ("images", "old.json")) as new:
        (new / "images").mkdir()
        raise BadArgument("no room")
    assert contents(tmp_path) == before
    (tmp_path / "old.json").write_bytes(b"old")
    with replacing(tmp_path, ("images", "old.json")) as new:
        (new / "images").mkdir()
        (new / "images" / "2.png").write_bytes(b"two")
    assert contents(tmp_path) == {"images/2.png": b"two", "mine.txt": b"mine"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["images", "mine.txt"]


@pytest.mark.slow
def test_files_of_a_dictionary_are_those_that_training_writes(tmp_path: Path) -> None:
    quick = ["--features", "16", "--k", "2", "--steps", "2", "--rows", "64"]
    for name, more in (("a", []), ("b", ["--separate"])):
        out = tmp_path / name
        assert main(["train", *ZOO, *quick, *more, "--out", str(out)]) == 0
        assert {file.name for file in out.iterdir()} <= set(training.FILES)
        assert main(["train", *ZOO, *quick, *more, "--out", str(out)]) == 2
        assert main(["train", *ZOO, *quick, *more, "--out", str(out), "--overwrite"]) == 0


def test_a_page_without_its_images_says_how_many_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = zoo.load_pairs()
    for i in range(8):
        pairs.open(i).save(tmp_path / f"{i}.png")
    lines = [f'{i}.png,"{pairs.texts[i]}"' for i in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *lines]), "utf-8")
    measure = ["measure", ZOO[0], str(tmp_path / "pairs.csv"), "--dictionary", "zoo:joint"]
    assert main([*measure, "--out", str(tmp_path / "run")]) == 0
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "3 of 8 images are gone or out of reach" in capsys.readouterr().err
