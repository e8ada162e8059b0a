"""Pages of several runs, by the command."""

import re
from pathlib import Path

import pytest

from vlm_edit import zoo
from vlm_edit.cli import main
from vlm_edit.report import has_plotly

pytestmark = pytest.mark.skipif(not has_plotly(), reason="needs plotly: pip install plotly")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    ours = zoo.load_pairs()
    for i in range(40):
        ours.open(i).save(folder / f"{i}.png")
    out = [folder / "one" / "run", folder / "two" / "run"]
    for seen, run in zip((30, 40), out, strict=True):
        rows = "".join(f'{i}.png,"{ours.texts[i]}"\n' for i in range(seen))
        (folder / f"{seen}.csv").write_text(f"image,text\n{rows}", "utf-8")
        words = [str(folder / f"{seen}.csv"), "--dictionary", "zoo:joint", "--quiet"]
        assert main(["measure", "zoo:emoji-clip", *words, "--out", str(run)]) == 0
    return [str(run) for run in out]


def test_runs_are_written_side_by_side_and_alone_as_before(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *runs, "--page", str(tmp_path / "both.html")]) == 0
    out = capsys.readouterr()
    assert "both-2.html" in out.out and not out.err  # no bars where nobody looks
    pages = [(tmp_path / f"both{end}.html").read_text("utf-8") for end in ("", "-2")]
    for page, other, name in zip(pages, ("both-2", "both"), ("one/run", "two/run"), strict=True):
        (listed,) = re.findall(r'<nav class="runs".*?</nav>', page, re.DOTALL)
        assert f'href="{other}.html"' in listed and listed.count("<li>") == 2
        assert f'aria-current="page">{name}</strong>' in listed
        assert f"<title>Features at joint of emoji-clip: {name}</title>" in page
        assert str(Path(runs[0]).parents[1]) not in page
    assert main(["report", *runs]) == 0
    assert (Path(runs[0]) / "compare-2.html").is_file()
    assert main(["report", runs[0], "--page", str(tmp_path / "one.html")]) == 0
    assert '<nav class="runs"' not in (tmp_path / "one.html").read_text("utf-8")


def test_a_page_that_is_there_and_a_run_twice_are_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "both-2.html").write_text("mine", "utf-8")
    assert main(["report", *runs, "--page", str(tmp_path / "both.html")]) == 2
    assert "both-2.html is there already" in capsys.readouterr().err
    assert not (tmp_path / "both.html").exists()
    assert main(["report", runs[0], f"{runs[0]}/", "--page", str(tmp_path / "x.html")]) == 2
    assert "a run is named twice" in capsys.readouterr().err


def test_a_run_is_written_for_neuronpedia_too(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--page", str(tmp_path / "p.html"), "--neuronpedia", str(tmp_path / "np")]
    assert main(["report", runs[0], *words]) == 0
    (source,) = (tmp_path / "np" / "emoji-clip").iterdir()
    assert source.name.startswith("joint-") and str(source) in capsys.readouterr().out
    assert (source / "features" / "batch-0.jsonl.gz").is_file()
    assert main(["report", runs[0], "--page", str(tmp_path / "q.html"), *words[2:]]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "q.html").exists()
