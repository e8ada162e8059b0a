"""Hosts that say themselves where they put features: what they say goes before what ids say.

The oracle is the mask that the host gives to ``Tensor.masked_scatter``, as in the modes of
generation; here the adapter names no ids, or wrong ones.
"""

import functools
from dataclasses import replace

import pytest
import torch
from test_modes import MODES, SPEAKING, inputs_of, masks_of, mixed_site, run
from tiny_hosts import FAMILIES, IMAGE_TOKEN
from torch import nn

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError, record
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call
from vlm_edit.hooks.calls import places_itself
from vlm_edit.hooks.placeholders import hear, masks_in
from vlm_edit.host import find_adapter

SAYING = [name for name in SPEAKING if places_itself(FAMILIES[name].make())]
# Their ``generate`` puts features into places without asking itself, and they take no text alone.
SILENT = {"blip2", "blip2_t5"}


@functools.cache
def host_of(name):
    return FAMILIES[name].make()


def without_ids(name):
    return replace(find_adapter(host_of(name)), image_token=None, video_token=None)


def test_most_families_say_where_they_put_features():
    assert {*SPEAKING} - {*SAYING} == {"idefics3"}


@pytest.mark.parametrize("mode", ["forward", "left-padded batch", "beam search", "inputs_embeds"])
@pytest.mark.parametrize("name", SAYING)
def test_a_mask_that_nobody_declares_is_the_hosts_own(name, mode, monkeypatch):
    model, way = host_of(name), MODES[mode]
    host, inputs = Host.of(model, adapter=without_ids(name)), inputs_of(name, way, model)
    assert mixed_site(host).taps[0].stream == "mixed"
    try:
        run(way, model, inputs)
    except Exception as error:
        pytest.skip(f"not offered by the host: {error}")
    pairs = masks_of(monkeypatch, host, lambda: run(way, model, inputs))
    assert pairs[0][1].any()
    if name in SILENT and way.options is not None:
        assert pairs[0][0] is None, "nobody says, so nobody knows"
        return
    for ours, theirs in pairs:
        assert torch.equal(theirs & False if ours is None else ours, theirs)


@pytest.mark.parametrize("name", [name for name in SAYING if name not in SILENT])
def test_a_call_that_brings_no_image_is_all_text(name):
    model, ids = host_of(name), torch.tensor([[1, 5, IMAGE_TOKEN, 7]])
    host = Host.of(model, adapter=without_ids(name))
    own = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with record(host, mixed_site(host).name) as recording, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **own)
    assert recording.captures[0].tokens.modality == "text"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_ids_that_are_not_the_hosts_own_are_refused_with_both_counts(name):
    model = host_of(name)
    host = Host.of(model, adapter=replace(find_adapter(model), image_token=8))
    inputs = FAMILIES[name].inputs()
    rule = Clamp([0], 5.0)
    site = mixed_site(host)
    patch = Patch(site.name, Dictionary.identity(site.width), rule, tokens="image")
    told = r"get_placeholder_mask has 8 image tokens in this call, and 1 ids are 8, as the adapter"
    with pytest.raises(VlmEditError, match=told), patch.attach(host), torch.no_grad():
        model(**inputs)
    image = inputs["input_ids"] == 7
    with patch.attach(host, image_mask=image) as attached, torch.no_grad():
        model(**inputs)  # what the user says goes before both
    assert attached.report().edited_tokens == int(image.sum())


@pytest.mark.parametrize("tokens", ["image", "all"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_compiled_hosts_go_on_with_their_own_method(name, tokens):
    """Their graphs break inside it, and go on with it by its name."""
    host, inputs = FAMILIES[name].make(), FAMILIES[name].inputs()
    rule, whole = Clamp([0], 5.0), Dictionary.identity(32)
    with Patch("language.0", whole, rule, tokens=tokens).attach(host), torch.no_grad():
        expected = host(**inputs).logits
        compiled = torch.compile(host, backend="eager")(**inputs).logits
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_masks_on_another_device_are_compared_there_and_only_where_asked():
    ids = torch.tensor([[True, False, False]])
    call = Call((1, 3), Mixed.of(image=ids))
    hear(call, {7: "image"}, "image", ids.to("meta"), True)  # no value can be looked at there
    assert call.modality.at("image").device.type == "meta"
    assert callable(call.doubt)


class OneByOne(nn.Module):
    """Says where features go for each kind by its own id, as hosts of many kinds do."""

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()

    def get_placeholder_mask(self, input_ids, inputs_embeds, features, token_id):  # noqa: ARG002
        return (input_ids == token_id).unsqueeze(-1).expand_as(inputs_embeds)

    def forward(self, input_ids, pixel_values=None, input_features=None):
        embeds = torch.zeros(*input_ids.shape, 4)
        for features, token in ((pixel_values, 7), (input_features, 9)):
            if features is not None:
                self.get_placeholder_mask(input_ids, embeds, features, token_id=token)
        return self.block(embeds)


@pytest.mark.parametrize("brings", [(), ("pixel_values",), ("pixel_values", "input_features")])
def test_a_host_that_is_asked_for_one_kind_at_a_time_is_heard_for_each(brings):
    sites = {"block": ("block", "mixed", 4)}
    host = Host.of(OneByOne(), adapter=Adapter.of(sites, image_token=7, audio_token=9))
    ids = torch.tensor([[7, 7, 5, 9], [5, 9, 9, 7]])
    with record(host, "block") as recording:
        host.model(ids, **{name: torch.zeros(1) for name in brings})
    modality = recording.captures[0].tokens.modality
    if not brings:
        assert modality == "text"
        return
    assert torch.equal(modality.at("image"), ids == 7)
    assert torch.equal(modality.at("audio"), (ids == 9) & ("input_features" in brings))
    assert torch.equal(modality.at("text"), ~modality.at("image") & ~modality.at("audio"))


def asked(method, output, **given):
    return [(k, m.tolist(), now) for k, m, now in masks_in(method, (), given, output, {7: "image"})]


def test_masks_are_of_what_the_method_takes_in_its_order():
    mask, none = torch.tensor([[[True], [False]]]), torch.tensor([[False, False]])

    def of_two(ids, image_features=None, video_features=None): ...
    def of_sounds(ids, image_features=None, audio_features=None): ...
    def of_all(ids): ...
    def of_images(ids): ...

    one, nothing = [[True, False]], [[False, False]]
    assert asked(of_two, (mask, none), ids=1, image_features=2) == [
        ("image", one, True),
        ("video", nothing, False),
    ]
    assert [kind for kind, _, _ in asked(of_sounds, (mask, none))] == ["image", "audio"]
    assert [kind for kind, _, _ in asked(of_all, (mask, none, none))] == ["image", "video", "audio"]
    assert asked(of_images, mask) == [("image", one, False)]


def test_what_a_host_says_without_features_only_confirms_what_is_brought():
    mask = torch.tensor([[True, False, True]])
    for known in ("text", Mixed.of(video=~mask)):
        call = Call((1, 3), known)
        hear(call, {7: "image"}, "image", mask, False)
        assert call.modality is known
    for known in (None, Mixed.of(image=mask)):
        call = Call((1, 3), known)
        hear(call, {7: "image"}, "image", mask, False)
        assert torch.equal(call.modality.at("image"), mask)
        assert call.why_not() is None
    call = Call((1, 3), "text")
    hear(call, {7: "image"}, "image", mask[:, :2], True)
    assert call.modality == "text", "a mask of another shape is of another call"
