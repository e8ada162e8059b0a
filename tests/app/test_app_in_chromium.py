"""The page in a headless Chromium: by mouse and keyboard, narrow and wide, light and dark."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from browsed_pages import CHROMIUM, chromium, playwright
from desks import QUESTION, YELLOW, clip_desk, llava_desk

from vlm_edit import Clamp, Patch
from vlm_edit.app import Server, serve
from vlm_edit.app.effect import say

pytest.importorskip("gradio", reason="needs gradio: pip install gradio")
__all__ = ["chromium"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>${1}{{2}}'


@pytest.fixture(scope="module")
def llava() -> Iterator[Server]:
    desk = llava_desk()
    pairs = replace(desk.pairs, texts=tuple(f"{HOSTILE} {text}" for text in desk.pairs.texts))
    names = {k: f"name {HOSTILE}" for k in range(0, 512, 2)}
    with serve(replace(desk, pairs=pairs, names=names)) as server:
        yield server


@pytest.fixture(scope="module")
def clip() -> Iterator[Server]:
    with serve(clip_desk()) as server:
        yield server


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; afterwards nothing may have gone wrong in it, nor left this machine."""
    contexts, troubles = [], []

    def go(server: Server, width: int = 1280, **options: Any) -> Any:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith((server.url, "data:", "blob:")) or troubles.append(r.url),
        )
        page.goto(server.url)
        page.wait_for_selector(".ve-told")
        return page

    yield go
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.harmed") is None
        context.close()
    assert not troubles


def said(page: Any, title: str) -> Any:
    return page.get_by_label(title, exact=True)


def wait_for(page: Any, title: str, text: str) -> None:
    playwright.expect(said(page, title)).to_have_value(text, timeout=20_000)


def test_features_are_turned_and_the_answer_changes(
    visit: Callable[..., Any], llava: Server
) -> None:
    desk = llava_desk()
    yellow = Patch(desk.site, desk.dictionary, Clamp(YELLOW, 8.0), tokens="image")
    number = desk.examples()[1].number
    *_, expected = say(desk, desk.picture(number), QUESTION, [None, yellow])
    assert expected.texts[0] != expected.texts[1]
    page = visit(llava, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Thumbnail 2 of 8").click()
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("by number").check()
    page.get_by_label("Numbers, with commas between").fill("342, 110, 49, 501")
    playwright.expect(page.locator(".ve-told")).to_have_text("4 features, by number")
    page.get_by_role("button", name="Ask").click()
    wait_for(page, "As it is", expected.texts[0])
    page.get_by_role("button", name="Which tokens, and when").click()
    page.get_by_label("image", exact=True).check()
    page.get_by_role("combobox", name="Rule").click()
    page.get_by_role("option", name="Clamp").click()
    amount = page.get_by_label("number input for Value")
    amount.fill("8")
    amount.press("Enter")
    wait_for(page, "With features turned", expected.texts[1])
    page.get_by_role("button", name="As many random features instead").click()
    playwright.expect(said(page, "As many random features")).not_to_have_value("")
    page.get_by_role("button", name="Where these features fire").click()
    playwright.expect(page.locator(".ve-sheets figure")).to_have_count(4, timeout=20_000)
    page.get_by_role("button", name="Patch: save").click()
    page.get_by_role("button", name="Copy the Python").click()
    copied = ""
    for _ in range(300):  # a busy machine answers after seconds
        copied = copied or page.evaluate("navigator.clipboard.readText()")
        page.wait_for_timeout(0 if copied else 100)
    assert copied.endswith('Clamp([342, 110, 49, 501], value=8.0), tokens="image")')
    assert "37 tokens edited" in page.locator("[role=status]").first.inner_text()


def test_a_slider_is_moved_by_keys_and_the_answer_follows(
    visit: Callable[..., Any], clip: Server
) -> None:
    page = visit(clip)
    page.get_by_label("Labels, with commas between").fill("red apple, boot")
    page.get_by_label("Thumbnail 1 of 8").focus()
    page.keyboard.press("Enter")
    page.locator(".ve-bars").first.wait_for()
    count = page.get_by_label("range slider for How many, the surest first")
    for _ in range(3):
        count.press("ArrowRight")
    playwright.expect(page.locator(".ve-told")).to_contain_text("11 features for vision")
    strength = page.get_by_label("range slider for Strength: 0 nothing")
    strength.press("Home")
    note = page.get_by_text("nothing changed")
    playwright.expect(note).to_be_visible(timeout=20_000)


def test_words_of_captions_and_names_are_shown_as_words(
    visit: Callable[..., Any], llava: Server
) -> None:
    page = visit(llava)
    page.get_by_label("by number").check()
    page.get_by_label("Numbers, with commas between").fill("2, 3")
    playwright.expect(page.locator(".ve-told")).to_have_text("2 features, by number")
    text = page.locator(".ve-list").filter(has_text="name <img").inner_text()
    assert f"2 · name {HOSTILE}" in text


@pytest.mark.parametrize("width", [400, 900, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways_and_the_scheme_is_the_systems(
    visit: Callable[..., Any], llava: Server, clip: Server, width: int, scheme: str
) -> None:
    for server in (llava, clip):
        page = visit(server, width, color_scheme=scheme)
        for name in ("Strength of single features", "Which tokens, and when", "Patch: save"):
            page.get_by_role("button", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(shade) > 128) == (scheme == "light")


def test_every_control_has_a_name(visit: Callable[..., Any], llava: Server) -> None:
    page = visit(llava)
    for name in ("Strength of single features", "Which tokens, and when", "Patch: save"):
        page.get_by_role("button", name=name).click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, select")]
        .filter(e => e.offsetParent && !(e.labels?.length || e.getAttribute("aria-label")
          || e.innerText?.trim() || e.title || e.type === "file"))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1 and page.title() == "Turn features"
