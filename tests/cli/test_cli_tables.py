"""``--tables FOLDER``: what is printed, as files."""

import csv
import json
from pathlib import Path

import pytest

from vlm_edit.cli import command, main
from vlm_edit.cli.arguments import Demo
from vlm_edit.cli.command import VERBS

SITES = ["sites", "zoo:emoji-clip"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_printed_table_becomes_csv_and_latex(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SITES, "--tables", "new/tables", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (table,) = told["tables"]
    files = sorted(Path("new/tables").iterdir())
    assert [file.name for file in files] == [
        "01-sites-of-clipmodel.csv",
        "01-sites-of-clipmodel.tex",
    ]
    with files[0].open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [table["columns"], *table["rows"]]
    latex = files[1].read_text("utf-8")
    assert rf"\caption{{{table['title']}}}" in latex
    assert latex.count(r" \\") == 1 + len(table["rows"])
    assert told["files"] == [{"what": "tables", "path": "new/tables"}]


def test_people_read_where_the_tables_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SITES, "--tables", "tables"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "tables: tables"


@pytest.mark.parametrize("there", ["tables", "tables/mine.csv"])
def test_what_is_there_is_refused_before_any_work(
    there: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_edit.cli.verbs.load_model", lambda *_: pytest.fail("was loaded"))
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text("mine")
    assert main([*SITES, "--tables", "tables"]) == 2
    assert "tables is there already" in capsys.readouterr().err
    assert Path(there).read_text() == "mine"


def test_a_verb_that_fails_leaves_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "no-such-model", "--tables", "tables"]) == 2
    assert not Path("tables").exists() and capsys.readouterr().err


def test_a_verb_without_tables_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "import_module", lambda _: type("", (), {"sites": lambda _: 0}))
    assert main([*SITES, "--tables", "tables"]) == 0
    assert "prints no table" in capsys.readouterr().err and not Path("tables").exists()


def test_the_tables_of_the_demonstration_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_edit.report import Table
    from vlm_edit.tasks import demo

    class Done:
        checks = ()
        tables = (Table("One", ("a",), (("1",),)), Table("Two", ("a",), (("2",),)))

    monkeypatch.setattr(demo, "run", lambda _: Done)
    main(["demo", "--out", "demo", "--tables", "tables"])
    names = [file.name for file in sorted(Path("tables").iterdir())]
    assert names == ["01-one.csv", "01-one.tex", "02-two.csv", "02-two.tex"]


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_every_verb_takes_the_option(kind: type) -> None:
    assert "tables" in kind.__dataclass_fields__ and Demo in VERBS
