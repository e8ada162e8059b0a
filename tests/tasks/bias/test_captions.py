"""Words of groups in captions, by counting, and a host that speaks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from vlm_edit import Ablate, Host, Patch, VlmEditError, zoo
from vlm_edit.ground.statistics import share_difference
from vlm_edit.tasks.bias.captions import (
    Captions,
    caption_table,
    describe,
    named_group,
    without_words,
    word_f1,
)
from vlm_edit.zoo.questions import QUESTIONS, ask


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("Woman biking", "woman"),
        ("#man #biking", "man"),
        ("MUJER: PELO RIZADO!!!", "woman"),
        ("human romance", "neither"),
        ("women and men holding hands", "both"),
        ("", "neither"),
    ],
)
def test_only_whole_words_name_a_group(text: str, group: str) -> None:
    assert named_group(text) == group


def test_words_of_ones_own_take_the_place_of_the_bundled_ones() -> None:
    words = {"bird": ["waterbird"], "place": ["sea"]}
    assert named_group("a waterbird by a man", words) == "bird"
    assert without_words("a Waterbird by the sea", words) == ["a", "by", "the"]


def test_f1_counts_each_word_as_often_as_both_have_it() -> None:
    one, two = ["a", "red", "red", "car"], ["red", "car", "car", "today", "a"]
    shared = sum((Counter(one) & Counter(two)).values())
    precision, recall = shared / len(one), shared / len(two)
    assert word_f1(one, two) == pytest.approx(2 * precision * recall / (precision + recall))
    assert word_f1([], []) == 1.0 and word_f1(["a"], []) == 0.0


def test_the_host_says_what_the_zoo_hears() -> None:
    model, processor = zoo.load_llava()
    pairs = zoo.load_pairs()
    images = [pairs.open(i) for i in range(5)]
    said = describe(Host.of(model, processor), images, QUESTIONS["what"], batch_size=2)
    assert said == ask(model, processor, images, QUESTIONS["what"])
    patch = Patch("language.0", zoo.load_dictionary("language.0"), Ablate(range(300)), "image")
    with patch.attach(model):
        assert describe(Host.of(model, processor), images, QUESTIONS["what"]) != said


def test_shares_and_quality_are_those_of_the_counts() -> None:
    found = Captions(
        ("man biking", "person biking", "woman biking", "dog"),
        ("man", "man", "woman", "woman"),
        ("man biking", "man biking", "woman biking", "woman biking"),
    )
    assert {k: e.value for k, e in found.shares("man").items()} == {
        "man": 0.5,
        "woman": 0.0,
        "neither": 0.5,
        "both": 0.0,
    }
    assert found.overlap().tolist() == pytest.approx([1, 2 / 3, 1, 0])
    table = caption_table({"nothing": found}, "Words")
    assert [row[:2] for row in table.rows] == [("nothing", "man (2)"), ("nothing", "woman (2)")]


def test_an_edit_is_compared_with_the_first_image_by_image() -> None:
    groups, wanted = ("man",) * 20 + ("woman",) * 20, ("man biking",) * 20 + ("woman biking",) * 20
    before = Captions(wanted, groups, wanted)
    after = Captions(("person biking",) * 8 + wanted[8:], groups, wanted)
    less = after.more_often(before, "man", "man")
    told = (torch.arange(20) >= 8, torch.ones(20, dtype=torch.bool))
    assert less == share_difference(*told) and less.value == -0.4 and less.high < 0
    assert after.more_often(before, "woman", "woman").value == 0
    worse = after.better(before)
    assert worse.value == pytest.approx(float((after.overlap() - before.overlap()).mean()))
    assert worse.low <= worse.value < 0
    table = caption_table({"nothing": before, "edit": after}, "Words")
    assert table.columns[-2:] == (
        "names the group, less nothing",
        "other words of all, less nothing",
    )
    assert [row[-2] for row in table.rows] == ["", "", str(less), str(
        after.more_often(before, "woman", "woman"))]  # fmt: skip
    with pytest.raises(VlmEditError, match="these are of other images"):
        before.better(Captions(wanted[1:], groups[1:], wanted[1:]))


def test_captions_of_other_images_and_hosts_that_do_not_speak_are_refused() -> None:
    with pytest.raises(VlmEditError, match="not of the same images"):
        Captions(("a",), (), ("a",))
    with pytest.raises(VlmEditError, match="no image is of group 'robot'"):
        Captions(("a",), ("man",), ("a",)).shares("robot")
    with pytest.raises(VlmEditError, match="a host that generates"):
        describe(Host.of(*zoo.load_host()), [zoo.load_pairs().open(0)], "what is it?")
