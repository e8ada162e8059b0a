"""The page: self-contained, safe, and true to the studies."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_edit import VlmEditError, zoo
from vlm_edit.report import Table
from vlm_edit.tasks.bias import Bench
from vlm_edit.tasks.bias.baselines import difference_in_means
from vlm_edit.tasks.bias.page import write_page


def test_a_page_shows_every_study_and_query_and_needs_nothing_else(
    tmp_path: Path, bench: Bench
) -> None:
    studies = {"nothing": bench.plain, "means": bench.edited(difference_in_means(bench.plain))}
    path = tmp_path / "page.html"
    write_page(path, studies, "Who is <who>?", [Table("T", ("a",), (("<b>",),))], shown=3, first=4)
    text = path.read_text("utf-8")
    assert "Who is &lt;who&gt;?" in text and "<td>&lt;b&gt;</td>" in text
    assert text.count("<h3>") == 3
    assert len(re.findall(r'class="t s\d+"', text)) == 3 * 2 * 4
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    for study in studies.values():
        for estimate in (study.read_out().n,):
            assert estimate == len(study.told_apart)
    for name in studies:
        assert f"{name}: man (" in text and f"{name}: woman (" in text


def test_the_first_images_are_those_nearest_to_the_query(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "page.html"
    write_page(path, {"nothing": bench.plain}, "T", first=5, shown=1, seed=3)
    text = path.read_text("utf-8")
    query = re.findall(r"<h3>(.*?)</h3>", text)[0]
    near = bench.plain.similarity([query])[:, 0]
    best = sorted(bench.plain.told_apart, key=lambda i: -float(near[i]))[:5]
    shown = re.findall(r'title="image (\d+): ', text)
    assert [int(i) for i in shown] == best


def test_studies_of_other_images_and_none_at_all_are_refused(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(VlmEditError, match="at least one study"):
        write_page(tmp_path / "page.html", {}, "T")
    with pytest.raises(VlmEditError, match="of the same images"):
        write_page(
            tmp_path / "page.html",
            {"all": bench.plain, "some": bench.part(range(60)).plain},
            "T",
        )
    assert not list(tmp_path.iterdir())


def test_an_image_that_is_gone_leaves_its_place(tmp_path: Path, bench: Bench) -> None:
    pairs = bench.plain.pairs
    gone = replace(pairs, images=[tmp_path / f"{i}.png" for i in range(len(pairs))])
    write_page(tmp_path / "page.html", {"x": replace(bench.plain, pairs=gone)}, "T", shown=1)
    assert 'class="t"' in (tmp_path / "page.html").read_text("utf-8")
    assert zoo.load_pairs().open(0).size == (64, 64)
