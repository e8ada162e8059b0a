"""Pages that only show: one style, light and dark, and a way back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browsed_pages import NEEDED, measured, pairs_of
from page_checks import ACCESSIBLE, CONTRAST, serious

from vlm_edit.cli.writing import way_back
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measuring import Measurement
from vlm_edit.report import Run, Table, runs_table, write_page
from vlm_edit.tasks import adversarial, bias

pytest_plugins = ("browsed_pages",)
pytestmark = NEEDED
TABLE = Table("Shares", ("what", "share"), (("nothing", "0.5"), ("edited", "0.7")), "A note.")


@pytest.fixture(scope="module")
def found() -> Measurement:
    return measured(60, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bench: bias.Bench) -> Path:
    folder = tmp_path_factory.mktemp("plain pages")
    back = way_back(str(page_in(folder)), folder)
    studies = {"nothing": bench.plain}
    bias.write_page(folder / "bias.html", studies, "Groups", [TABLE], shown=2, back=back)
    image = torch.rand(3, 8, 8)
    case = adversarial.Case("a", image, 1 - image, "cat", "dog", [("3 vision", 1.5)])
    adversarial.write_page(folder / "attack.html", "Attack", [case], [TABLE], back=back)
    return folder


def page_in(folder: Path) -> Path:
    path = folder / "a run #1" / "index.html"
    if not path.exists():
        path.parent.mkdir()
        write_page(path, measured(60, 70), pairs_of(60), "A run")
    return path


@pytest.fixture(scope="module")
def page_file(folder: Path) -> Path:
    return page_in(folder)


@pytest.mark.parametrize("name", ["bias", "attack"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_other_pages_look_alike_and_lead_back(
    name: str, scheme: str, visit: Callable[..., Any], folder: Path
) -> None:
    page = visit(file=folder / f"{name}.html", plain=True, color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(18, 21, 26)") == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    assert serious(page) == []
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    page.set_viewport_size({"width": 400, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.click("nav a:text('All features')")
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate("document.title") == "A run"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper


def test_a_way_back_to_nowhere_is_refused(tmp_path: Path) -> None:
    assert way_back(None, tmp_path) is None
    with pytest.raises(VlmEditError, match=r"--back .*none\.html: there is no such page"):
        way_back(str(tmp_path / "none.html"), tmp_path)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, found: Measurement) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    runs = [Run("layer <2>", "one.html", found), Run("layer 9", "two.html", measured(60, 90))]
    for run in runs:
        write_page(folder / run.page, run.measurement, pairs_of(60), run.name, runs=runs)
    return folder


def test_runs_side_by_side_lead_to_each_other_with_the_same_search(
    visit: Callable[..., Any], beside: Path, found: Measurement
) -> None:
    page = visit(file=beside / "one.html")
    page.fill("#query", "caption 1")
    page.select_option("#class", "vision")
    page.wait_for_function("document.querySelector('a.run').href.includes('caption')")
    page.click("a.run")
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate("data.features") == 90
    assert page.input_value("#query") == "caption 1" and page.input_value("#class") == "vision"
    assert page.locator("nav.runs [aria-current]").inner_text() == "layer 9"
    cells = page.locator("#runs tbody tr").all_inner_texts()
    table = runs_table([Run("layer <2>", "", found), Run("layer 9", "", measured(60, 90))])
    assert [cell.split("\t") for cell in cells] == [list(row) for row in table.rows]
    for row in table.rows:
        assert sum(int(cell.split()[0].replace(",", "")) for cell in row[5:]) in (70, 90)


@pytest.mark.skipif(ACCESSIBLE is None, reason="needs axe-core: pip install axe-core-python")
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1920, "light")])
def test_axe_finds_nothing_serious(
    width: int, scheme: str, visit: Callable[..., Any], beside: Path, found: Measurement
) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    page = visit(file=beside / "one.html", **options)
    assert serious(page) == []
    both = (found.dominance.image_active > 0) & (found.dominance.text_active > 0)
    page.evaluate(f"location.hash = '#feature-{int(both.int().argmax())}'")
    page.wait_for_selector("#detail .bars")
    assert serious(page) == []
    page.locator("#detail .gallery button").first.click()
    page.wait_for_selector("#viewer[open]")
    assert serious(page) == []


def test_focus_stays_in_the_dialog_and_is_seen(visit: Callable[..., Any]) -> None:
    page = visit("#feature-9")
    page.wait_for_selector("#detail .entries")
    for _ in range(40):
        page.keyboard.press("Tab")
        inside, seen = page.evaluate(
            """() => { const n = document.activeElement; return [
                n === document.body || document.querySelector('#detail').contains(n),
                n === document.body || getComputedStyle(n).outlineStyle !== 'none']; }"""
        )
        assert inside and seen
