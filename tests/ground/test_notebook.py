"""How things show themselves in a prompt and in a notebook."""

from __future__ import annotations

import re

import pytest
from pages import HOSTILE, Tags

from vlm_edit.ground.notebook import WIDEST, card, one_line, several


def test_a_stranger_s_text_stays_text() -> None:
    html = card(HOSTILE, {HOSTILE: HOSTILE}, [HOSTILE], [[HOSTILE]], HOSTILE)
    page = Tags(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert {name for _, attributes in page.tags for name in attributes} <= {"style", "scope"}
    assert page.text.count(HOSTILE) == 6


def test_a_card_brings_no_colour_of_its_own_and_loads_nothing() -> None:
    html = card("T", {"a": 1}, ("x",), [(2,)], "note")
    assert not re.search(r"color|background|url\(|https?:|src=|href=|<style|<link", html)
    assert len(html) < 1500


def test_halves_of_characters_and_what_is_missing_can_be_shown() -> None:
    card("caption \ud83d", {"none": None}).encode("utf-8")
    assert "<table" not in card("nothing")


@pytest.mark.parametrize("length", [1, WIDEST, WIDEST + 1, 10_000])
def test_a_line_is_never_longer_than_the_widest(length: int) -> None:
    text = one_line("x" * (length - 1) + ")")
    assert len(text) == min(length, WIDEST)
    assert text.endswith(")")
    assert ("..." in text) == (length > WIDEST)


def test_a_line_holds_no_control_characters() -> None:
    assert one_line("a\n\x1b[31m b") == "a [31m b"
    assert several(2, "pair") == "2 pairs"
