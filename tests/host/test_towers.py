"""Rules of families with two towers, against the same rules written out."""

import pytest

from vlm_edit import Adapter, VlmEditError
from vlm_edit.host import SiteRule, TapRule, Tower, find_adapter, two_towers

EYE = Tower(
    "image",
    layers=("blocks.{i}", "old.blocks.{i}"),
    joint=("eye.head", "eye_projection"),
    path="eye",
    config="eye_config",
    ends=("+fc",),
    joint_ends=("out",),
)
WORDS = Tower("text", ("rows.{i}",), ("embed()",), width=("rows.width", 8))


def test_a_host_of_two_towers_has_both_and_a_joint_embedding():
    assert two_towers(EYE, WORDS, ("size",)) == Adapter(
        sites=(
            SiteRule(
                "joint",
                (
                    TapRule(("eye.head", "eye_projection"), "image", ends=("out",)),
                    TapRule(("embed()",), "text"),
                ),
                width=("size",),
            ),
            SiteRule(
                "vision.{i}",
                (TapRule(("eye.blocks.{i}", "eye.old.blocks.{i}"), "image", ends=("+fc",)),),
                width=("eye_config.hidden_size",),
            ),
            SiteRule("text.{i}", (TapRule(("rows.{i}",), "text"),), width=("rows.width", 8)),
        ),
    )
    words = Tower("text", ("rows.{i}",), ("embed()",), path="words")
    assert two_towers(EYE, words, ("size",)).calls == ("words",)


@pytest.mark.parametrize("optional", [True, False])
def test_a_tower_alone_has_its_parts_in_itself_or_where_the_whole_host_has_them(optional):
    paths = ("blocks.{i}", "old.blocks.{i}", "eye.blocks.{i}", "eye.old.blocks.{i}")
    layers = SiteRule("vision.{i}", (TapRule(paths, "image", ends=("+fc",)),), ("hidden_size",))
    joint = TapRule(("head", "eye_projection", "eye.head"), "image", ends=("out",))
    assert EYE.alone() == Adapter((layers,))
    assert EYE.alone(("size",), optional) == Adapter(
        (SiteRule("joint", (joint,), ("size",), optional=optional), layers)
    )


def test_a_tower_that_is_no_module_of_its_host_says_each_place_once():
    rule = SiteRule("text.{i}", (TapRule(("rows.{i}",), "text"),), ("rows.width", 8))
    assert WORDS.alone() == Adapter((rule,))


def test_a_tower_of_another_stream_is_refused():
    with pytest.raises(VlmEditError, match="'image' or 'text', not 'mixed'"):
        Tower("mixed", ("blocks.{i}",), ("head",))
    with pytest.raises(VlmEditError, match="image='image' and text='text'"):
        two_towers(WORDS, EYE, ("size",))


def test_clip_is_declared_as_it_was_before_there_was_a_builder(clip):
    rules = {rule.name: rule for rule in find_adapter(clip).sites}
    assert rules["vision.{i}"] == SiteRule(
        "vision.{i}",
        (TapRule(("vision_model.encoder.layers.{i}",), "image", ends=("+mlp.fc2",)),),
        width=("vision_config.hidden_size",),
    )
    assert rules["joint"].taps == (
        TapRule(("visual_projection",), "image"),
        TapRule(("text_projection",), "text"),
    )
