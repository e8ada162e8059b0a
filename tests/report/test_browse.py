"""The page in a notebook's cell: in a frame of its own, with what was mapped."""

import html
import re

import pytest
from browsed_pages import NEEDED, chromium

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.measuring import Maps, map_examples

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def run() -> tuple[Measurement, Pairs, Maps]:
    pairs = zoo.load_pairs().select(range(24))
    what = Host.of(*zoo.load_llava()), pairs, zoo.load_dictionary("language.2")
    measurement = measure(*what, "language.2", progress=False)
    return measurement, pairs, map_examples(*what, measurement, progress=False)


def test_the_frame_holds_the_page_and_reaches_nothing_else(run) -> None:
    measurement, pairs, _ = run
    browser = measurement.browse(pairs, title='A "title"', height=500)
    frame = browser._repr_html_()
    assert html.unescape(re.search(r'srcdoc="(.*?)"', frame, re.S)[1]) == browser.html
    assert 'sandbox="allow-scripts allow-downloads allow-modals"' in frame
    assert 'height="500"' in frame and "<title>A &#34;title&#34;</title>" in browser.html
    with pytest.raises(VlmEditError):
        measurement.browse(pairs.select(range(20)))


@NEEDED[0]
@NEEDED[1]
def test_it_works_in_the_frame_and_shows_the_maps(run, chromium, tmp_path) -> None:
    measurement, pairs, maps = run
    cell = measurement.browse(pairs, maps)._repr_html_()
    (tmp_path / "cell.html").write_text(f"<!doctype html><body>{cell}</body>", "utf-8")
    page, errors = chromium.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "cell.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#features tbody tr").first.wait_for()
    feature = measurement.top("vision", 1)[0]
    frame.locator('input[type="search"]').fill(str(feature))
    frame.locator(f'a[href="#feature-{feature}"]').first.click()
    frame.locator("#detail .gallery .heat-layer").first.wait_for()
    assert errors == []
