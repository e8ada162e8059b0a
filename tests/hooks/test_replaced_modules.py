"""A module that is replaced while something is attached to it: the host says so, and the mend."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import make_clip
from torch import nn

from vlm_edit import Dictionary, Host, Patch, Scale, VlmEditError, record
from vlm_edit.ground.errors import WrongHost

SAYS = r"module at 'model.language_model.layers.1' .* was replaced .* attach it again"


def patch(site="language.1", width=32) -> Patch:
    return Patch(site, Dictionary.identity(width), Scale(range(8), -2.0))


@torch.no_grad()
def test_a_forward_and_generate_say_that_the_layer_was_replaced_until_it_is_mended(
    llava, llava_inputs
):
    layers = llava.model.language_model.layers
    plain = llava(**llava_inputs).logits
    attached = patch().attach(llava)
    edited = llava(**llava_inputs).logits
    layers[1] = copy.deepcopy(layers[1])
    for run in (llava, llava.generate):
        with pytest.raises(WrongHost, match=SAYS):
            run(**llava_inputs)
    attached.remove()
    assert torch.equal(llava(**llava_inputs).logits, plain)
    with patch().attach(llava):
        assert torch.equal(llava(**llava_inputs).logits, edited)
    assert torch.equal(llava(**llava_inputs).logits, plain)


@torch.no_grad()
def test_a_recording_and_a_part_around_the_layer_are_looked_at_too(llava, llava_inputs):
    with record(llava, "language.1"):
        llava(**llava_inputs)
        llava.model.language_model = copy.deepcopy(llava.model.language_model)
        with pytest.raises(WrongHost, match=SAYS):
            llava(**llava_inputs)
    llava(**llava_inputs)


def test_a_layer_that_is_gone_is_one_that_was_replaced(clip, clip_inputs):
    with patch("text.2", 16).attach(clip):
        del clip.text_model.encoder.layers[2]
        with pytest.raises(WrongHost, match="'text_model.encoder.layers.2'"):
            clip(**clip_inputs)


@torch.no_grad()
def test_layers_that_nothing_is_attached_to_may_be_replaced(llava, llava_inputs):
    with patch().attach(llava) as attached:
        llava.model.language_model.layers[0] = copy.deepcopy(llava.model.language_model.layers[0])
        llava(**llava_inputs)
    assert attached.report().edited_tokens


@torch.no_grad()
def test_a_layer_that_was_wrapped_where_it_stands_still_acts(llava, llava_inputs):
    layers = llava.model.language_model.layers
    with patch().attach(llava) as attached:
        edited = llava(**llava_inputs).logits
        layers[1] = nn.DataParallel(layers[1])
        layers[1].attention_type = layers[1].module.attention_type = "full_attention"
        assert torch.equal(llava(**llava_inputs).logits, edited)
    assert attached.report().sites[0].calls == 2


@torch.no_grad()
def test_adapters_of_peft_that_take_the_modules_place_are_noticed(clip, clip_inputs):
    peft = pytest.importorskip("peft")
    width = Host.of(clip).site("joint").width
    with patch("joint", width).attach(clip):
        clip(**clip_inputs)
        wrapped = peft.get_peft_model(clip, peft.LoraConfig(target_modules=["visual_projection"]))
        with pytest.raises(VlmEditError, match="'visual_projection' .* was replaced"):
            wrapped(**clip_inputs)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_part_of_the_host_that_is_called_alone_says_so_too(clip, clip_inputs, kind):
    values = {
        "image": {"pixel_values": clip_inputs["pixel_values"]},
        "text": {name: clip_inputs[name] for name in ("input_ids", "attention_mask")},
    }[kind]
    run = getattr(clip, f"get_{kind}_features")
    plain = run(**values).pooler_output
    site, width = ("vision.1", 24) if kind == "image" else ("text.1", 16)
    attached = patch(site, width).attach(clip)
    edited = getattr(clip, f"get_{kind}_features")(**values).pooler_output
    assert not torch.equal(edited, plain)
    layers = getattr(clip, "vision_model" if kind == "image" else "text_model").encoder.layers
    layers[1] = copy.deepcopy(layers[1])
    with pytest.raises(WrongHost, match="was replaced .* attach it again"):
        getattr(clip, f"get_{kind}_features")(**values)
    attached.remove()
    assert torch.equal(getattr(clip, f"get_{kind}_features")(**values).pooler_output, plain)
    assert f"get_{kind}_features" not in vars(clip)


@torch.no_grad()
def test_a_copy_of_a_patched_host_runs_its_own_parts(clip, clip_inputs):
    values = {"pixel_values": clip_inputs["pixel_values"]}
    plain = clip.get_image_features(**values).pooler_output
    with patch("vision.1", 24).attach(clip):
        other = copy.deepcopy(clip)
        assert torch.equal(other.get_image_features(**values).pooler_output, plain)
        assert "get_image_features" not in vars(other)


def test_a_host_that_is_dropped_while_something_looks_at_its_parts_is_gone_at_once():
    host = make_clip()
    gc.collect()
    gc.disable()
    try:
        attached, gone = patch("vision.1", 24).attach(host), weakref.ref(host)
        assert "get_image_features" in vars(host)
        del host
        assert gone() is None
        attached.remove()
    finally:
        gc.enable()


@torch.no_grad()
def test_a_part_that_is_compiled_gives_the_same_with_a_patch_and_without(clip, clip_inputs):
    values = {"pixel_values": clip_inputs["pixel_values"]}
    Host.of(clip).prepare()
    compiled = torch.compile(
        lambda: clip.get_image_features(**values).pooler_output, backend="eager"
    )
    plain = clip.get_image_features(**values).pooler_output
    for _ in range(2):
        assert torch.equal(compiled(), plain)
        with patch("vision.1", 24).attach(clip):
            edited = clip.get_image_features(**values).pooler_output
            assert not torch.equal(edited, plain)
            assert torch.equal(compiled(), edited)
