"""What one takes from the page, and what it keeps: addresses, files, notes, heat maps."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browsed_pages import HOSTILE, NEEDED, measured, numbers, pairs_of

from vlm_edit import VlmEditError
from vlm_edit.measuring import Measurement
from vlm_edit.report import write_page

pytest_plugins = ("browsed_pages",)
pytestmark = NEEDED


@pytest.fixture(scope="module")
def found() -> Measurement:
    return measured(200, 130)


def facts(found: Measurement, feature: int) -> dict[str, Any]:
    """Real neighbours, and heat maps of known values."""
    if feature % 2:
        return {}
    top = {s: [n for n, _ in found.examples[s].of(feature)] for s in ("image", "text")}
    quarters = [[x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5] for y in range(2) for x in range(2)]
    shared = {
        k: len(set(top["image"]) & {n for n, _ in found.examples["image"].of(k)}) for k in (1, 3)
    }
    return {
        "name": {"name": f"a name {HOSTILE} {feature}", "score": 0.75, "held": 12},
        "effects": {"up": [[HOSTILE, 2.5]], "down": [["sky", -1.25]]},
        "near": {"examples": [[k, n / 20] for k, n in shared.items()]},
        "maps": {
            "image": [{"pair": n, "boxes": quarters, "values": [0, 1, 2, 4]} for n in top["image"]],
            "text": [
                {"pair": n, "words": ["a", HOSTILE, "z"], "values": [0.5, 3, 0]}
                for n in top["text"]
            ],
        },
    }


def escape(page: Any) -> None:
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog[open]')")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, found: Measurement) -> Path:
    path = tmp_path_factory.mktemp("browsing") / "page.html"
    write_page(path, found, pairs_of(200), "Browsing", details=lambda k: facts(found, k))
    return path


WIDTHS = (400, 900, 1920)


@pytest.mark.parametrize("width", WIDTHS)
def test_captions_and_features_stand_on_the_first_screen(
    width: int, visit: Callable[..., Any]
) -> None:
    page = visit(viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    cut = page.evaluate(
        """(width) => [...document.querySelectorAll('#features .captions')].map((n) =>
            n.getBoundingClientRect()).filter((r) => r.left < 0 || r.right > width || r.width < 90)
            .length""",
        width,
    )
    assert cut == 0
    on_screen = page.evaluate(
        """[...document.querySelectorAll('#features tbody tr')].filter((n) =>
            n.getBoundingClientRect().top < innerHeight).length"""
    )
    assert on_screen >= 3


def test_the_address_keeps_what_is_shown(visit: Callable[..., Any], found: Measurement) -> None:
    page = visit()
    page.fill("#query", "caption 1")
    page.select_option("#class", "vision")
    page.select_option("#rule", "sd")
    page.click("th[data-name=active] button")
    seen = numbers(page)
    assert seen and set(seen) <= set(found.dominance.classes("sd")["vision"])
    page.locator("#features tbody a").first.click()
    page.wait_for_selector("#detail[open]")
    assert re.search(rf"#feature-{seen[0]}\?", page.url)
    page.reload()
    page.wait_for_selector("#detail[open]")
    assert page.locator("#detail-title").inner_text().startswith(f"Feature {seen[0]}")
    assert numbers(page) == seen and page.input_value("#query") == "caption 1"
    assert page.get_attribute("th[data-name=active]", "aria-sort") == "descending"
    page.go_back()
    page.wait_for_function("!document.querySelector('#detail[open]')")
    assert numbers(page) == seen
    page.go_back()
    page.wait_for_selector("th[data-name=feature][aria-sort=ascending]")
    assert page.input_value("#class") == "vision" and page.input_value("#rule") == "sd"
    page.go_back()
    page.wait_for_function("document.querySelector('#rule').value === 'interval'")
    page.click("#clear")
    assert len(numbers(page)) == 50 and page.input_value("#query") == ""


def test_an_address_of_nonsense_shows_all_features(visit: Callable[..., Any]) -> None:
    page = visit(
        "#feature-999?sort=-constructor&class=x&rule=y&least=-3&page=1e9&columns=a,__proto__"
    )
    assert page.locator("#count").inner_text().startswith("130 features")
    assert not page.locator("#detail[open]").count()


def test_scores_filter_from_and_to(visit: Callable[..., Any], found: Measurement) -> None:
    page = visit("#?low=0.4&high=0.6")
    scores = found.dominance.scores
    inside = [k for k in range(130) if 0.4 <= float(scores[k]) <= 0.6]
    assert numbers(page) == inside[:50] and 0 < len(inside) < 130


def test_filtered_rows_are_saved_as_csv_that_no_spreadsheet_runs(
    visit: Callable[..., Any], found: Measurement, tmp_path: Path
) -> None:
    page = visit("#feature-8", accept_downloads=True)
    page.fill("#note", '=cmd|"/c calc"!A1')
    escape(page)
    active = found.dominance.active
    least = int(active[8])
    page.fill("#least", str(least))
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "rows.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text("utf-8-sig"))))
    expected = [k for k in range(130) if active[k] >= least]
    assert [int(row["feature"]) for row in rows] == expected and 1 < len(expected) < 130
    texts = pairs_of(200).texts
    for row in rows:
        k = int(row["feature"])
        assert float(row["mds"]) == pytest.approx(float(found.dominance.scores[k]), abs=1e-3)
        assert int(row["active"]) == int(active[k])
        top = [n for n, _ in found.examples["text"].of(k)][:10]
        assert [int(n) for n in row["top_texts"].split()] == top
        assert row["first_text"] == (texts[top[0]] if top else "")
    assert {row["note"] for row in rows} == {"", '\'=cmd|"/c calc"!A1'}


def test_features_are_copied_as_a_rule(visit: Callable[..., Any], found: Measurement) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.select_option("#class", "language")
    page.click("#copy-rule")
    page.wait_for_selector("#told:text('copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"Ablate({found.dominance.classes()['language']})"
    page.check("tr:nth-child(3) .chosen")
    page.check("tr:nth-child(2) .chosen")
    page.click("#copy-rule")
    page.wait_for_selector("#told:text('2 features')")
    listed = found.dominance.classes()["language"][1:3]
    assert page.evaluate("navigator.clipboard.readText()") == f"Ablate({listed})"


def test_what_may_not_be_copied_stands_there_to_be_taken(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new Error('no')))")
    page.check("tr:nth-child(7) .chosen")
    page.click("#copy-rule")
    page.wait_for_selector("#by-hand:visible")
    assert page.input_value("#by-hand") == "Ablate([6])"


def test_notes_are_kept_searched_saved_and_read(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit("#feature-12")
    page.fill("#note", f"odd one {HOSTILE}")
    escape(page)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    page.fill("#query", "odd ONE")
    assert numbers(page) == [12]
    with page.expect_download() as download:
        page.click("#save-notes")
    download.value.save_as(tmp_path / "notes.json")
    saved = json.loads((tmp_path / "notes.json").read_text("utf-8"))
    assert saved["notes"] == {"12": f"odd one {HOSTILE}"}
    fresh = visit()
    assert fresh.locator("#notes-told").inner_text() == "0 notes"
    fresh.set_input_files("#read-notes", tmp_path / "notes.json")
    fresh.wait_for_selector("#told:text('1 note read')")
    fresh.check("#noted")
    assert numbers(fresh) == [12]
    (tmp_path / "other.json").write_text(json.dumps({**saved, "run": "another"}), "utf-8")
    fresh.set_input_files("#read-notes", tmp_path / "other.json")
    fresh.wait_for_selector("#told:text('of another run')")


def test_a_page_works_where_nothing_may_be_stored(chromium: Any, page_file: Path) -> None:
    context = chromium.new_context()
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', "
        "{get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(f"file://{page_file}#feature-4")
    page.wait_for_selector("#note")
    page.fill("#note", "kept nowhere")
    escape(page)
    page.click("#theme")
    assert page.locator("#notes-kept").is_visible()
    page.fill("#query", "nowhere")
    assert numbers(page) == [4] and not troubles
    context.close()


def test_a_picture_is_enlarged_with_its_heat_map_by_keys_alone(visit: Callable[..., Any]) -> None:
    page = visit("#feature-8")
    page.wait_for_selector("#detail .gallery .heat-layer")
    small = page.evaluate(
        """[...document.querySelectorAll('#detail .gallery .heat-layer')].map((n) => {
            const [a, b] = [n, n.parentElement].map((one) => one.getBoundingClientRect());
            return [a.width / a.height, (a.top + a.bottom - b.top - b.bottom) / b.height,
                (a.left + a.right - b.left - b.right) / b.width]; })"""
    )
    # Over the picture, in the middle of its tile, and not over the margins.
    assert small and torch.tensor(small).allclose(torch.tensor([64 / 48, 0, 0]), atol=0.05)
    page.locator("#detail .gallery button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open] .heat-cell")
    cells = page.evaluate(
        """[...document.querySelectorAll('#viewer .heat-cell')].map((n) => {
            const [a, b] = [n, n.parentElement].map((one) => one.getBoundingClientRect());
            return [(a.left - b.left) / b.width, (a.top - b.top) / b.height,
                +n.style.getPropertyValue('--heat-share')]; })"""
    )
    assert torch.tensor(cells).allclose(
        torch.tensor([[0, 0, 0], [0.5, 0, 0.25], [0, 0.5, 0.5], [0.5, 0.5, 1]]), atol=0.01
    )
    shape = page.evaluate(
        "(() => { const r = document.querySelector('.enlarged').getBoundingClientRect();"
        "return r.width / r.height; })()"
    )
    assert shape == pytest.approx(64 / 48, rel=0.02)
    page.locator(".enlarged").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer .heat-told").inner_text() == "Place 2 of 4: 1"
    first = page.locator("#viewer-title").inner_text()
    page.focus("#viewer-close")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('#viewer-title').textContent !== '{first}'")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#viewer[open]')")
    assert page.locator("#detail[open]").count() == 1
    assert page.evaluate("document.activeElement.classList.contains('picture')")


def test_a_click_on_a_picture_of_the_table_enlarges_it_and_opens_no_feature(
    visit: Callable[..., Any],
) -> None:
    page = visit()
    page.locator("#features .picture").first.click()
    page.wait_for_selector("#viewer[open]")
    assert not page.locator("#detail[open]").count()
    size = page.evaluate("document.querySelector('.enlarged').getBoundingClientRect().width")
    assert size > 300


def test_a_feature_tells_all_that_is_known_of_it(visit: Callable[..., Any]) -> None:
    page = visit("#feature-8")
    page.wait_for_selector("#detail .near")
    text = page.locator("#detail-body").inner_text()
    assert f"a name {HOSTILE} 8" in text and "score 0.75" in text and "12 examples" in text
    assert "−1.25" in text and "sky" in text
    words = page.locator("#detail .heat-words").first
    assert words.locator(".heat-word").all_inner_texts() == ["a", HOSTILE, "z"]
    words.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.locator("#detail .texts .heat-told").first.inner_text() == f"{HOSTILE}: 3"
    page.locator("#detail .near a").first.click()
    page.wait_for_selector("#detail-title:text('Feature 1 ')")
    escape(page)
    page.fill("#query", "a name 8")
    assert 8 in numbers(page)


@pytest.mark.parametrize("stream", ["image", "text"])
def test_the_histogram_counts_activations_by_size(
    stream: str, visit: Callable[..., Any], found: Measurement
) -> None:
    sizes = found.sizes[stream]
    feature = int(sizes.active.argmax())
    page = visit(f"#feature-{feature}")
    page.wait_for_selector("#detail .bars")
    titles = page.evaluate(
        """(kind) => [...document.querySelectorAll(`#detail .bars.${kind} span`)]
            .map((n) => n.title)""",
        {"image": "vision", "text": "language"}[stream],
    )
    counts = [int(title.split()[0]) for title in titles]
    assert sum(counts) == int(sizes.active[feature]) and len(counts) == 16
    # The codes themselves, drawn again as they were made, are the oracle.
    generator = torch.Generator().manual_seed(0)
    image, text = torch.rand(2, 200, 130, generator=generator)
    lean = torch.linspace(-0.4, 0.4, 130)[torch.randperm(130, generator=generator)]
    codes = ((image - 0.8 + lean) if stream == "image" else (text - 0.8 - lean)).relu()[:, feature]
    for title, count in list(zip(titles, counts, strict=True))[1:]:
        low, high = (float(edge) for edge in title.split(", ")[1].split(" to "))
        inside = int(((codes >= low * 0.995) & (codes < high * 1.005)).sum())
        strictly = int(((codes >= low * 1.005) & (codes < high * 0.995)).sum())
        assert strictly <= count <= inside


def test_details_of_another_form_are_refused(tmp_path: Path, found: Measurement) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"colour": 1}, "'colour'"),
        ({"near": {"decoder": [[130, 0.5]]}}, "neighbour 130 of 130"),
        ({"maps": {"text": [{"pair": 0, "words": ["a"], "values": []}]}}, "1 words with 0 values"),
        ({"maps": {"image": [{"pair": 0, "boxes": [[0, 0, 2, 1]], "values": [1]}]}}, "shares"),
        ({"effects": {"sideways": []}}, "'sideways'"),
    ]
    for details, told in wrong:
        with pytest.raises(VlmEditError, match=told):
            write_page(tmp_path / "p.html", found, pairs_of(200), "T", details={7: details})
    assert not list(tmp_path.iterdir())
