"""Copies of a patched host: nothing of ours lies on them, and they do as the plain host does."""

import copy

import pytest
import torch
from conftest import make_clip, make_llava
from torch import nn
from torch.nn.utils import parametrizations

from vlm_edit import Dictionary, Host, Patch, Scale, record
from vlm_edit.hooks import OnHost
from vlm_edit.host import find_sites


def patch(site="language.1", width=32) -> Patch:
    return Patch(site, Dictionary.identity(width), Scale(range(8), -2.0))


def ours(model: nn.Module) -> list[object]:
    """What of this library lies in any module: hooks, what torch knows of them, attributes."""
    there: list[object] = []
    for module in model.modules():
        for name, value in vars(module).items():
            values = [*value.values()] if isinstance(value, dict) else [value]
            values += [getattr(v, "__self__", None) for v in values]
            there += [(name, v) for v in values if isinstance(v, OnHost)]
        hooks = {*module._forward_hooks, *module._forward_pre_hooks}
        known = {*module._forward_hooks_with_kwargs, *module._forward_pre_hooks_with_kwargs}
        there += [*(known | {*module._forward_hooks_always_called}) - hooks]
    return there


@torch.no_grad()
def test_a_copy_has_no_hook_and_no_stand_in_and_the_original_keeps_its_own(llava, llava_inputs):
    plain = llava(**llava_inputs).logits
    with patch().attach(llava) as attached, record(llava, "vision.1") as recording:
        edited, before = llava(**llava_inputs).logits, len(ours(llava))
        twin = copy.deepcopy(llava)
        assert before
        assert not ours(twin)
        assert len(ours(llava)) == before
        assert torch.equal(twin(**llava_inputs).logits, plain)
        assert len(recording.captures) == 1
        assert torch.equal(llava(**llava_inputs).logits, edited)
    assert attached.report().sites[0].calls == 2
    assert not ours(llava)


@torch.no_grad()
def test_hooks_of_others_are_copied_in_their_order(llava, llava_inputs):
    layer, calls = Host.of(llava).site("language.1").taps[0].module, []
    layer.register_forward_hook(lambda *_: calls.append("a"))
    with patch().attach(llava):
        layer.register_forward_hook(lambda *_: calls.append("b"), always_call=True)
        twin = copy.deepcopy(llava)
    twin(**llava_inputs)
    assert calls == ["a", "b"]


@pytest.mark.parametrize("scope", ["process", "thread", "context"])
def test_a_copy_of_one_layer_alone_has_none_either(llava, scope):
    layer = Host.of(llava).site("language.1").taps[0].module
    with patch().attach(llava, scope=scope):
        assert ours(layer)
        assert not ours(copy.deepcopy(layer))
        assert not ours(copy.deepcopy({"layers": [layer, layer]})["layers"][1])


def test_a_copy_of_a_compiled_host_that_was_attached_to_has_none(llava):
    compiled = torch.compile(llava, backend="eager")
    with patch().attach(compiled, scope="context"):
        assert compiled._forward_hooks
        twin = copy.deepcopy(compiled)
        assert not ours(twin)
        assert not twin._forward_hooks
        assert not twin._forward_pre_hooks


@torch.no_grad()
def test_a_copy_of_a_parametrized_layer_has_none(clip_inputs):
    clip = make_clip()
    parametrizations.weight_norm(clip.visual_projection)
    plain = clip(**clip_inputs).logits_per_image
    with patch("joint", find_sites(clip)["joint"].width).attach(clip):
        twin = copy.deepcopy(clip)
        assert not torch.equal(clip(**clip_inputs).logits_per_image, plain)
    assert not ours(twin)
    assert torch.equal(twin(**clip_inputs).logits_per_image, plain)


@torch.no_grad()
def test_a_copy_can_be_patched_itself(llava_inputs):
    host = make_llava()
    with patch().attach(host):
        expected = host(**llava_inputs).logits
        twin = copy.deepcopy(host)
        with patch().attach(twin) as attached:
            assert torch.equal(twin(**llava_inputs).logits, expected)
        assert attached.report().edited_tokens
        assert not ours(twin)


def replica_of(model: nn.Module) -> nn.Module:
    """A replica as ``DataParallel`` makes them on devices that are not here."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, part in module._modules.items():
            replica._modules[name] = replicas.get(part)
        for name, weight in module._parameters.items():
            vars(replica)[name] = weight
    return replicas[model]


@torch.no_grad()
def test_a_replica_of_a_patched_host_is_edited_and_asked_itself(llava, llava_inputs, monkeypatch):
    kind, asked = type(llava.model), []
    method = kind.get_placeholder_mask

    def note(self, *args, **kwargs):
        asked.append(self)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(kind, "get_placeholder_mask", note)
    with patch().attach(llava):
        expected = llava(**llava_inputs).logits
        replica = replica_of(llava)
        assert torch.equal(replica(**llava_inputs).logits, expected)
        assert torch.equal(llava(**llava_inputs).logits, expected)
    assert asked[0] is asked[2] is llava.model
    assert asked[1] is replica.model
