"""Sites inside layers: what attention and MLP add, and heads; held against the host's weights."""

import re

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, Dictionary, Host, Patch, Scale, VlmEditError, load_patch
from vlm_edit.hooks import record
from vlm_edit.host import some_inside


def zero(site, width, features=None, **choice):
    return Patch(site, Dictionary.identity(width), Scale(features or range(width), 0.0), **choice)


@torch.no_grad()
def logits(host, inputs):
    return host(**inputs, use_cache=False).logits


def test_the_parts_of_a_layer_are_named_behind_it(llava):
    host = Host.of(llava)
    assert list(host.inside("language.1")) == [
        *("language.1.attention", "language.1.mlp"),
        *("language.1.mid", "language.1.mlp_in", "language.1.mlp_out"),
        *(f"language.1.head.{i}" for i in range(4)),
    ]
    widths = [site.width for site in host.inside("language.1").values()]
    assert widths == [32, 32, 32, 32, 32, 8, 8, 8, 8]
    assert host.site("language.1.attention").streams == ("image", "text")
    assert host.site("vision.0.head.0").streams == ("image",)
    assert not set(host.inside("language.1")) & set(host.sites), "they are not listed with layers"


def test_what_attention_and_mlp_add_is_what_a_layer_adds(llava, llava_inputs):
    names = ("language.0", "language.1", "language.1.attention", "language.1.mlp")
    with record(Host.of(llava), *names) as recording:
        logits(llava, llava_inputs)
    before, after, attention, mlp = (recording.last(name, "mixed").hidden for name in names)
    torch.testing.assert_close(before + attention + mlp, after)


@pytest.mark.parametrize(
    ("site", "weight", "columns"),
    [
        ("language.1.attention", "model.language_model.layers.1.self_attn.o_proj", None),
        ("language.1.mlp", "model.language_model.layers.1.mlp.down_proj", None),
        ("language.1.head.1", "model.language_model.layers.1.self_attn.o_proj", slice(8, 16)),
        ("language.0.head.0", "model.language_model.layers.0.self_attn.o_proj", slice(0, 8)),
    ],
)
def test_a_part_at_zero_is_its_weights_at_zero(llava, llava_inputs, site, weight, columns):
    host, linear = Host.of(llava), llava.get_submodule(weight)
    plain = logits(llava, llava_inputs)
    with zero(site, host.site(site).width).attach(host) as attached:
        edited = logits(llava, llava_inputs)
    assert attached.report().edited_tokens
    assert torch.equal(logits(llava, llava_inputs), plain)
    with torch.no_grad():
        linear.weight[:, slice(None) if columns is None else columns] = 0
        assert linear.bias is None
    torch.testing.assert_close(edited, logits(llava, llava_inputs))
    assert not torch.allclose(edited, plain)


def test_an_edit_of_image_tokens_at_a_head_leaves_words_before_the_projection_alone(
    llava, llava_inputs
):
    host, seen = Host.of(llava), []
    linear = llava.model.language_model.layers[1].self_attn.o_proj
    with zero("language.1.head.1", 8, tokens="image").attach(host):
        handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(llava, llava_inputs)
        handle.remove()
    with record(host, *(f"language.1.head.{i}" for i in range(4))) as recording:
        logits(llava, llava_inputs)
    image = recording.captures[0].tokens.mask("image")
    heads = [capture.hidden for capture in recording.captures]
    heads[1] = heads[1].masked_fill(image[..., None], 0)
    assert torch.equal(seen[0], torch.cat(heads, -1))
    assert image.any() and not image.all()


def test_steps_with_a_cache_edit_a_head_as_one_forward_does(llava, llava_inputs):
    host, new = Host.of(llava), 4
    options = {"max_new_tokens": new, "do_sample": False}
    with zero("language.1.head.0", 8).attach(host) as attached:
        cached = llava.generate(**llava_inputs, **options)
        phases = attached.report().sites[0].phases
        whole = llava.generate(**llava_inputs, **options, use_cache=False)
    assert torch.equal(cached, whole)
    assert phases["decode"] == len(cached) * (new - 1)
    assert not torch.equal(cached, llava.generate(**llava_inputs, **options))


def test_a_patch_of_a_head_is_kept_and_taken_up(llava, llava_inputs, tmp_path):
    host, patch = Host.of(llava), zero("language.1.head.1", 8, [2, 3])
    with patch.attach(host):
        edited = logits(llava, llava_inputs)
    patch.save(tmp_path / "head.safetensors", host)
    with load_patch(tmp_path / "head.safetensors").attach(host):
        assert torch.equal(logits(llava, llava_inputs), edited)
    with pytest.raises(VlmEditError, match="is what .*o_proj is called with, not what it gives"):
        zero("language.1.head.1", 8).bake(host)


def test_attention_is_baked_into_its_projection(llava, llava_inputs):
    with zero("language.1.attention", 32, [1, 2], phase="both").attach(llava):
        edited = logits(llava, llava_inputs)
    zero("language.1.attention", 32, [1, 2], tokens="all", phase="both").bake(llava)
    torch.testing.assert_close(logits(llava, llava_inputs), edited)


def test_what_is_not_inside_is_refused_with_what_is(llava, clip):
    with pytest.raises(
        VlmEditError,
        match=re.escape(
            "has no site 'language.1.head.4': language.1 is a LlamaDecoderLayer that has "
            "language.1.attention, language.1.mlp, language.1.mid, language.1.mlp_in, "
            "language.1.mlp_out, language.1.head.0 ... language.1.head.3 inside"
        ),
    ):
        Host.of(llava).site("language.1.head.4")
    with pytest.raises(VlmEditError, match="CLIPModel has no site 'joint.attention': joint is a"):
        Host.of(clip).site("joint.attention")
    with pytest.raises(VlmEditError, match="has no site 'language.9.mlp'; its sites are"):
        Host.of(llava).site("language.9.mlp")


class Mixing(nn.Module):
    """A layer of a user's own: attention by one name or another, whose heads are told or not."""

    def __init__(self, **facts):
        super().__init__()
        self.attn = nn.Module()
        self.attn.out_proj = nn.Linear(12, 8)
        vars(self.attn).update(facts)
        self.experts, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("facts", "count"),
    [
        ({"head_dim": 4}, 3),
        ({"num_heads": 6}, 6),
        ({"num_heads": 3, "head_dim": 4}, 3),
        ({"num_heads": 2, "v_head_dim": 6, "head_dim": 8}, 2),
        ({"num_heads": 4, "head_dim": 4}, 0),
        ({"head_dim": 5}, 0),
        ({"num_heads": 5}, 0),
        ({}, 0),
    ],
)
def test_heads_are_there_where_their_number_is_sure(facts, count):
    model = nn.Sequential(Mixing(**facts))
    found = Host.of(model, adapter=Adapter.of({"it.{i}": ("{i}", "text", 8)})).inside("it.0")
    assert [name for name in found if "head" in name] == [f"it.0.head.{i}" for i in range(count)]
    assert "it.0.mlp" not in found, "experts beside an MLP add to it"
    assert found["it.0.attention"].width == 8


def test_a_layer_of_torch_has_its_attention_but_no_heads():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.Sequential(layer)
    host = Host.of(model, adapter=Adapter.of({"it.{i}": ("{i}", "image", 8)}))
    assert list(host.inside("it.0")) == ["it.0.attention"]
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = model(x)
        with zero("it.0.attention", 8).attach(host):
            edited = model(x)
        mixed = layer.norm1(x)
        expected = layer.norm2(mixed + layer._ff_block(mixed))
    torch.testing.assert_close(edited, expected)
    assert not torch.allclose(edited, plain)


def test_one_layer_of_each_kind_stands_for_all(llava):
    sites = Host.of(llava).sites
    names = [site.name for site in some_inside(sites)]
    assert names == [
        *("vision.1.attention", "vision.1.mlp", "vision.1.head.1"),
        *("language.2.attention", "language.2.mlp", "language.2.head.3"),
    ]
    assert Host.of(llava).inside("projector") == {}
