"""Recording: what passed, in order, with or without patches."""

import pytest
import torch
from random_transcoders import adding_in_place, logits

from vlm_edit import Ablate, Patch, VlmEditError, record


@torch.no_grad()
def test_what_is_recorded_is_what_the_host_computed(clip, clip_inputs):
    expected = clip(**clip_inputs, output_hidden_states=True)
    with record(clip, "joint", "vision.0", "text.1") as recording:
        clip(**clip_inputs)
    assert len(recording.captures) == 4
    text = recording.last("text.1", "text")
    assert torch.equal(text.hidden, expected.text_model_output.hidden_states[2])
    image = recording.last("vision.0", "image")
    assert torch.equal(image.hidden, expected.vision_model_output.hidden_states[1])
    joint = recording.last("joint", "text").hidden
    torch.testing.assert_close(joint / joint.norm(dim=-1, keepdim=True), expected.text_embeds)


@torch.no_grad()
def test_the_last_capture_of_a_stream_is_the_newest(clip, clip_inputs):
    ids = clip_inputs["input_ids"]
    with record(clip, "joint") as recording:
        clip.get_text_features(input_ids=ids[:2])
        clip.get_text_features(input_ids=ids[2:])
    assert recording.last("joint", "text").hidden.shape == (1, 12)
    with pytest.raises(VlmEditError, match=r"nothing recorded of stream 'image' at site 'joint'"):
        recording.last("joint", "image")


def test_captures_keep_their_graph(clip, clip_inputs):
    with record(clip, "joint") as recording:
        clip.get_text_features(input_ids=clip_inputs["input_ids"])
    recording.captures[0].hidden.sum().backward()
    assert clip.text_projection.weight.grad is not None


@torch.no_grad()
def test_a_patch_attached_before_shows_and_one_attached_inside_does_not(
    clip, clip_inputs, dictionary
):
    patch = Patch("joint", dictionary(12), Ablate(range(20)))

    def run() -> torch.Tensor:
        return clip.get_text_features(input_ids=clip_inputs["input_ids"]).pooler_output

    plain = run()
    with patch.attach(clip), record(clip, "joint") as recording:
        edited = run()
    assert torch.equal(recording.captures[0].hidden, edited)
    with record(clip, "joint") as recording, patch.attach(clip):
        assert torch.equal(run(), edited)
    assert torch.equal(recording.captures[0].hidden, plain)
    assert not torch.allclose(plain, edited)


def test_an_exception_in_the_block_or_an_unknown_site_leaves_no_hook(clip, clip_inputs):
    before = clip(**clip_inputs).logits_per_image
    hooks = [len(m._forward_hooks) for m in clip.modules()]
    with pytest.raises(KeyError), record(clip, "joint", "text.0"):
        raise KeyError
    with pytest.raises(VlmEditError, match="no site 'text.7'"), record(clip, "joint", "text.7"):
        pass
    assert [len(m._forward_hooks) for m in clip.modules()] == hooks
    assert torch.equal(clip(**clip_inputs).logits_per_image, before)


@torch.no_grad()
def test_the_padding_of_each_text_is_recorded(clip, clip_inputs):
    with record(clip, "text.0") as recording:
        clip(**clip_inputs)
    assert torch.equal(recording.captures[0].tokens.real, clip_inputs["attention_mask"].bool())


@torch.no_grad()
def test_a_state_is_kept_as_it_passed_where_the_host_adds_to_it_in_place(llava, llava_inputs):
    names = ("language.0", "language.0+language.1")
    with record(llava, *names) as plain:
        expected = logits(llava, llava_inputs)
    with adding_in_place(llava, 1), record(llava, *names) as recording:
        torch.testing.assert_close(logits(llava, llava_inputs), expected)
    for kept, wanted in zip(recording.captures, plain.captures, strict=True):
        torch.testing.assert_close(kept.hidden, wanted.hidden)
