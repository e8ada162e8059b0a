"""The page in a headless Chromium, opened from disk, used by keyboard and by mouse."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browsed_pages import HOSTILE, NEEDED, measured, numbers, pairs_of
from page_checks import CONTRAST
from PIL import Image

from vlm_edit.measuring import Measurement
from vlm_edit.report import Examples, Picture, Table, write_page

pytest_plugins = ("browsed_pages",)
pytestmark = NEEDED
LOAD_SECONDS, SORT_SECONDS = 15, 2  # at 16,384 features on two busy cores


@pytest.fixture(scope="module")
def found() -> Measurement:
    return measured(200, 130)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, found: Measurement) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    tables = [Table("A table", ("name", "value"), ((HOSTILE, "1"),))]
    shown = [Examples("Before and after", [(3, ("before: a", f"after: {HOSTILE}"))])]
    grid = Picture(
        f"A grid {HOSTILE}", Image.new("RGB", (900, 60), "red"), f"red {HOSTILE}", "note"
    )
    write_page(path, found, pairs_of(200), f"A title {HOSTILE}", tables, shown, [grid],
               recurring=range(0, 130, 3))  # fmt: skip
    return path


def test_the_page_draws_every_part_without_an_error_or_a_request(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.locator("#histogram .bars path").count() > 10
    assert page.locator("#random-cards article").count() == 6
    assert page.locator("#features tbody tr").count() == 50
    assert page.locator("#example-cards .card").inner_text().endswith(f"after: {HOSTILE}")
    assert page.evaluate("document.title") == f"A title {HOSTILE}"


def test_no_picture_is_missing(visit: Callable[..., Any]) -> None:
    page = visit()
    failed = page.evaluate(
        """async () => {
            const shown = [...document.querySelectorAll('.picture')];
            const urls = new Set(shown.map((n) => n.style.backgroundImage.slice(5, -2)));
            const load = (url) => new Promise((done) => { const i = new Image();
                i.onload = () => done(i.naturalWidth === 1024); i.onerror = () => done(false);
                i.src = url; });
            const good = await Promise.all([...urls].map(load));
            return [shown.length, urls.size, good.filter((g) => !g).length];
        }"""
    )
    assert failed[0] > 100 and failed[1] >= 1 and failed[2] == 0
    assert page.locator(".picture.none").count() == 0
    place, shown, side = page.evaluate(
        """() => { const { places } = data.sheets.small;
            const pair = places.indexOf(31), node = picture(pair);
            document.querySelector('main').append(node); const style = getComputedStyle(node);
            return [places[pair], style.backgroundPosition, parseFloat(style.width)]; }"""
    )
    assert shown == f"-{place % 16 * side:g}px -{place // 16 * side:g}px"


def test_a_wide_picture_is_shown_at_its_size_and_scrolls_by_itself(
    visit: Callable[..., Any],
) -> None:
    page = visit(viewport={"width": 420, "height": 800})
    picture = page.get_by_role("img", name=f"red {HOSTILE}", exact=True)
    assert picture.evaluate("(i) => [i.complete, i.naturalWidth, i.width]") == [True, 900, 900]
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.locator("#pictures figure").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#pictures figure').scrollLeft > 0")


def test_the_search_finds_numbers_and_words_of_captions(
    visit: Callable[..., Any], found: Measurement
) -> None:
    page = visit()
    page.fill("#query", "#77")
    assert numbers(page) == [77]
    page.fill("#query", "19 CAPTION ärger")
    texts = pairs_of(200).texts
    hits = {i for i, t in enumerate(texts) if all(w in t.lower() for w in ("19", "ärger"))}
    top = [found.examples[s].numbers[:, :10] for s in ("image", "text")]
    expected = [k for k in range(130) if hits & {int(i) for t in top for i in t[k]}]
    assert numbers(page) == expected[:50] and len(expected) > 3
    page.fill("#query", "nowhere")
    assert page.locator("#count").inner_text() == "No feature matches."


def test_filters_by_class_and_by_active_pairs(
    visit: Callable[..., Any], found: Measurement
) -> None:
    page = visit()
    classes = found.dominance.classes()
    page.select_option("#class", "vision")
    assert numbers(page) == classes["vision"][:50] and classes["vision"]
    page.fill("#least", "100")
    active = found.dominance.active
    assert numbers(page) == [k for k in classes["vision"] if active[k] >= 100][:50]
    page.select_option("#rule", "sd")
    members = found.dominance.classes("sd")["vision"]
    assert numbers(page) == [k for k in members if active[k] >= 100][:50]


def test_a_box_leaves_only_what_recurs(visit: Callable[..., Any], found: Measurement) -> None:
    page = visit()
    page.check("#recurs")
    assert numbers(page) == list(range(0, 130, 3))
    page.select_option("#class", "vision")
    members = found.dominance.classes()["vision"]
    assert numbers(page) == [k for k in members if k % 3 == 0]
    page.uncheck("#recurs")
    assert numbers(page) == members[:50]


def test_every_column_sorts_both_ways_with_the_undefined_last(
    visit: Callable[..., Any], found: Measurement
) -> None:
    page = visit()
    columns = {
        c["name"]: c["values"]
        for c in page.evaluate(
            "data.columns.map((c) => ({...c, values: [...c.values].map("
            "(v) => Number.isNaN(v) ? null : v)}))"
        )
        if c["shown"]
    }
    assert {"mds", "mds_width", "swap_p", "active", "lift", "ms_image"} <= set(columns)
    assert columns["mds"][5] is None and bool(found.dominance.scores[5].isnan())
    for name, listed in columns.items():
        head, seen = page.locator(f"th[data-name={name}]"), set()
        for _ in range(2):
            head.locator("button").click()
            order = head.get_attribute("aria-sort")
            sign = {"ascending": 1, "descending": -1}[order]
            expected = sorted(
                range(130), key=lambda k: (listed[k] is None, sign * (listed[k] or 0), k)
            )
            assert numbers(page) == expected[:50]
            assert page.evaluate("document.activeElement.closest('th').dataset.name") == name
            seen.add(order)
        assert len(seen) == 2


def test_keys_move_turn_pages_open_and_close(visit: Callable[..., Any]) -> None:
    page = visit()
    page.focus("#features tbody a")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "1"
    page.keyboard.press("PageDown")
    assert numbers(page)[0] == 50 and page.evaluate("document.activeElement.textContent") == "50"
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] h2").inner_text().startswith("Feature 50")
    assert page.url.endswith("#feature-50?page=2")
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail h2").inner_text().startswith("Feature 51")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog[open]')")
    assert page.evaluate("document.activeElement.textContent") == "50"
    page.wait_for_function("location.hash === '#?page=2'")
    page.click("#last")
    assert numbers(page) == list(range(100, 130))
    assert page.get_attribute("#next", "aria-disabled") == "true"


def test_an_address_opens_its_feature(visit: Callable[..., Any], found: Measurement) -> None:
    page = visit("#feature-77")
    assert page.locator("dialog[open] h2").inner_text().startswith("Feature 77")
    page.wait_for_selector("#ratios .bars path")
    assert page.locator("#detail .gallery li").count() == min(
        10, len(found.examples["image"].of(77))
    )
    assert page.locator("#ratios .bars path").count() > 1
    page.evaluate("location.hash = 'feature-5'")
    page.wait_for_function(
        "document.querySelector('#detail-title').textContent.includes('ture 5 ')"
    )
    page.wait_for_selector("#detail-body :text('No pair activates it.')")
    page.go_back()
    page.wait_for_function("document.querySelector('#detail-title').textContent.includes('77')")


def test_a_click_on_the_plane_opens_the_feature_pointed_at(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate(
        "document.querySelector('#scatter').emit('plotly_hover', {points: [{customdata: 9}], "
        "event: {clientX: 300, clientY: 300}})"
    )
    assert "MDS" in page.locator("#hover").inner_text()
    page.evaluate(
        "document.querySelector('#scatter').emit('plotly_click', {points: [{customdata: 9}]})"
    )
    page.wait_for_selector("dialog[open]")
    assert page.url.endswith("#feature-9") and not page.locator("#hover").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(scheme: str, visit: Callable[..., Any]) -> None:
    page = visit("#feature-9", color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(18, 21, 26)") == (scheme == "dark")
    page.keyboard.press("Escape")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    assert page.evaluate(CONTRAST) == []


def test_a_phone_scrolls_down_only(visit: Callable[..., Any]) -> None:
    page = visit(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate("location.hash = 'feature-9'")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 360


def test_who_cannot_see_the_page_can_use_it(visit: Callable[..., Any]) -> None:
    page = visit("#feature-9")
    assert page.get_attribute("html", "lang") == "en"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a, input, select, [role=img], dialog, nav')]
            .filter((n) => !(n.getAttribute('aria-label') || n.labels?.[0]?.textContent.trim()
                || (n.tagName !== 'SELECT' && n.textContent.trim())
                || document.getElementById(n.getAttribute('aria-labelledby'))?.textContent))
            .map((n) => n.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    levels = page.evaluate(
        "[...document.querySelectorAll('main h2, main h3, main h4')].map((n) => +n.tagName[1])"
    )
    assert page.locator("h1").count() == 1 and levels[0] == 2
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    doubled = page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('main [id], dialog [id]')]"
        ".filter((n) => !n.closest('svg')).map((n) => n.id);"
        "return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
    )
    assert doubled == []
    assert page.evaluate("document.querySelector('#detail').contains(document.activeElement)")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.html"
    write_page(path, measured(300, 16_384), pairs_of(300), "Large")
    return path


@pytest.mark.slow
def test_sixteen_thousand_features_load_and_sort_in_time(
    visit: Callable[..., Any], large: Path
) -> None:
    assert large.stat().st_size < 24_000_000
    start = time.perf_counter()
    page = visit(file=large)
    assert time.perf_counter() - start < LOAD_SECONDS
    for step in (
        "document.querySelector('th[data-name=mds] button').click()",
        "(() => { const q = document.querySelector('#query'); q.value = 'caption 19';"
        "q.dispatchEvent(new Event('input')); })()",
    ):
        start = time.perf_counter()
        page.evaluate(step)
        assert time.perf_counter() - start < SORT_SECONDS
    assert page.locator("#features tbody tr").count() == 50


@pytest.mark.slow
def test_a_hundred_and_thirty_thousand_features_open_too(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    found = measured(40, 131_072)
    write_page(tmp_path / "huge.html", found, pairs_of(40), "Huge")
    assert (tmp_path / "huge.html").stat().st_size < 24_000_000 + 300 * (131_072 - 32_768)
    start = time.perf_counter()
    page = visit(file=tmp_path / "huge.html")
    assert time.perf_counter() - start < LOAD_SECONDS
    start = time.perf_counter()
    page.fill("#query", "caption 19")
    assert time.perf_counter() - start < SORT_SECONDS
    texts = pairs_of(40).texts
    hits = torch.tensor([all(word in text for word in ("caption", "19")) for text in texts])
    top = torch.cat([found.examples[s].numbers[:, :10] for s in ("image", "text")], 1)
    expected = (hits[top.clamp(min=0)] & (top >= 0)).any(1).nonzero().flatten().tolist()
    assert numbers(page) == expected[:50]
    told = page.locator("#count").inner_text()
    assert told.startswith(f"{len(expected):,} features")
    page.evaluate("location.hash = '#feature-131071'")
    page.wait_for_selector("#detail-title:text('Feature 131071')")
