"""A module that is replaced while something is attached to it: the host says so, and the mend."""

import copy

import pytest
import torch
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
