"""Several sites side by side: recorded, kept for the one that comes last, never mixed up."""

import pytest
import torch

from vlm_edit import Host, VlmEditError
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks import Beside, EarlyStop, attach, record


@torch.no_grad()
def test_sites_side_by_side_are_recorded_end_to_end(llava, llava_inputs):
    names = ("language.0", "language.1.mlp_in")
    with record(llava, *names, "+".join(names)) as recording:
        llava(**llava_inputs)
    first, second, both = (recording.last(name, "mixed") for name in (*names, "+".join(names)))
    assert torch.equal(both.hidden, torch.cat([first.hidden, second.hidden], -1))
    assert torch.equal(both.tokens.modality.at("image"), llava_inputs["input_ids"] == 60)


def test_a_joined_site_is_as_wide_as_its_parts_and_has_their_modules(llava):
    site = Host.of(llava).site("vision.0+vision.1")
    assert (site.width, len(site.taps), site.streams) == (48, 2, ("image",))
    assert [part.name for part in site.parts] == ["vision.0", "vision.1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vision.0+language.1", "other tokens pass at each"),
        ("language.0+language.9", "has no site 'language.9'"),
        ("language.0+", "has no site ''"),
    ],
)
def test_sites_that_do_not_stand_side_by_side_are_refused(llava, name, message):
    with pytest.raises(VlmEditError, match=message):
        Host.of(llava).site(name)


def test_a_joint_embedding_has_two_modules_and_stands_beside_nothing(clip):
    with pytest.raises(BadArgument, match="only sites of one module each"):
        Host.of(clip).site("joint+text.0")


def test_nothing_edits_several_at_once(llava):
    host = Host.of(llava)
    with pytest.raises(BadArgument, match="no module gives their state out"):
        attach(host, host.site("language.0+language.1"), lambda hidden, _: hidden)


@torch.no_grad()
def test_a_forward_is_ended_behind_the_last_of_them(llava, llava_inputs):
    name, ran = "language.0.mlp_in+language.0.mlp_out", []
    early = EarlyStop(llava, name)
    llava.get_submodule("model.language_model.layers.1").register_forward_hook(
        lambda *_: ran.append(1)
    )
    for _ in range(2):
        with record(llava, name) as recording:
            early.run(llava_inputs, rows=2)
        assert len(recording.captures) == 1
    assert early.reason is None or "hook" in early.reason


def test_what_was_not_seen_is_not_made_up(llava):
    host = Host.of(llava)
    beside = Beside([host.site("language.0"), host.site("language.1")], "language.1")
    with pytest.raises(CannotKnow, match="'language.0' did not pass before 'language.1'"):
        beside.take(torch.zeros(2, 3, 32))
    ((site, keep),) = beside.listeners()
    assert site.name == "language.0"
    keep(torch.ones(2, 3, 32), None)
    with pytest.raises(CannotKnow, match="these are not the same tokens"):
        beside.take(torch.zeros(2, 4, 32))
    with pytest.raises(CannotKnow, match="did not pass"):
        beside.take(torch.zeros(2, 3, 32))  # what was taken is gone
    keep(torch.ones(2, 3, 32), None)
    taken = beside.take(torch.zeros(2, 3, 32))
    assert torch.equal(taken, torch.cat([torch.ones(2, 3, 32), torch.zeros(2, 3, 32)], -1))
    with pytest.raises(BadArgument, match="'language.0' passes before 'language.1'"):
        Beside([host.site("language.0"), host.site("language.1")], "language.0")
