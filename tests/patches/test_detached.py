"""``with detached(host)``: nothing is on the host inside, and all is as it was after."""

import copy
import io
import pickle

import pytest
import torch
from conftest import make_llava
from torch import nn

from vlm_edit import Dictionary, Host, Patch, Scale, VlmEditError, record
from vlm_edit.hooks import OnHost
from vlm_edit.patches import attached, detached


def patch(site="language.1", by=-2.0, **choice) -> Patch:
    return Patch(site, Dictionary.identity(32), Scale(range(8), by), **choice)


def state(model: nn.Module) -> list[object]:
    """All that lies on any module beside its weights and parts, in its order."""
    kept = []
    for module in model.modules():
        there = {n: v for n, v in vars(module).items() if n not in ("_parameters", "_buffers")}
        kept.append({n: [*v.items()] if isinstance(v, dict) else v for n, v in there.items()})
    return kept


OPTIONS = {"max_new_tokens": 3, "do_sample": False}


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_all_is_off_inside_and_lies_where_it_lay_afterwards(llava, llava_inputs, fails):
    layer = Host.of(llava).site("language.1").taps[0].module
    plain = llava(**llava_inputs).logits
    layer.register_forward_hook(lambda *_: None)
    answer = llava.generate(**llava_inputs, **OPTIONS)
    Host.of(llava).prepare("language.2")
    with (
        patch().attach(llava) as one,
        patch(by=3.0).attach(llava),
        record(llava, "language.1") as r,
    ):
        layer.register_forward_hook(lambda *_: None)
        before, edited = state(llava), llava(**llava_inputs).logits
        try:
            with detached(llava):
                assert not any(isinstance(hook, OnHost) for hook in layer._forward_hooks.values())
                assert torch.equal(llava(**llava_inputs).logits, plain)
                assert torch.equal(llava.generate(**llava_inputs, **OPTIONS), answer)
                assert not {"generate", "generate_batch"} & {*vars(llava)}
                if fails:
                    raise KeyError("fails")
        except KeyError:
            assert fails
        assert state(llava) == before
        assert len(attached(llava)) == 2
        assert torch.equal(llava(**llava_inputs).logits, edited)
        assert len(r.captures) == 2
    assert one.report().sites[0].calls == 2
    assert torch.equal(llava(**llava_inputs).logits, plain)


@torch.no_grad()
def test_inside_the_model_can_be_pickled_saved_and_copied(llava, llava_inputs, tmp_path):
    plain = make_llava()(**llava_inputs).logits  # once it was called, LLaVA cannot be by itself
    Host.of(llava).prepare()
    with patch().attach(llava), detached(llava):
        buffer = io.BytesIO()
        torch.save(llava, buffer)
        buffer.seek(0)
        copies = [
            copy.deepcopy(llava),
            pickle.loads(pickle.dumps(llava)),
            torch.load(buffer, weights_only=False),
        ]
        llava.save_pretrained(tmp_path)
        copies.append(type(llava).from_pretrained(tmp_path).eval())
    for other in copies:
        assert torch.equal(other(**llava_inputs).logits, plain)
        assert "generate" not in vars(other)
        assert not Host.of(other).site("language.1").taps[0].module._forward_hooks
    with pytest.raises(VlmEditError, match=r"prepared.*with detached\(host\)"):
        pickle.dumps(llava)


@torch.no_grad()
def test_what_is_removed_inside_stays_away(llava, llava_inputs):
    plain, before = llava(**llava_inputs).logits, state(llava)
    first, second = patch().attach(llava), patch("language.0", by=3.0).attach(llava)
    edited = llava(**llava_inputs).logits
    with detached(llava):
        first.remove()
    assert len(attached(llava)) == 1
    middle = llava(**llava_inputs).logits
    assert not torch.equal(middle, plain)
    assert not torch.equal(middle, edited)
    with detached(llava):
        second.remove()
    assert state(llava) == before
    assert torch.equal(llava(**llava_inputs).logits, plain)


@torch.no_grad()
def test_hooks_that_others_put_on_or_take_off_inside_stay_so(llava, llava_inputs):
    layer, calls = Host.of(llava).site("language.1").taps[0].module, []
    gone = layer.register_forward_hook(lambda *_: calls.append("gone"))
    with patch().attach(llava) as attachment:
        layer.register_forward_hook(lambda *_: calls.append("stays"))
        with detached(llava):
            gone.remove()
            layer.register_forward_hook(lambda *_: calls.append("new"))
        llava(**llava_inputs)
        assert type(next(iter(layer._forward_hooks.values()))).__name__ == "Dispatcher"
    assert calls == ["stays", "new"]
    assert attachment.report().edited_tokens


def test_nothing_can_be_attached_inside_and_the_block_not_begun_twice(llava):
    with patch().attach(llava), detached(llava):
        with pytest.raises(VlmEditError, match="attach before that block, or after it"):
            patch().attach(llava)
        with pytest.raises(VlmEditError, match="inside `with detached"), detached(llava):
            pass
        with pytest.raises(VlmEditError, match="inside `with detached"):
            Host.of(llava).prepare()
    patch().attach(llava).detach()


@torch.no_grad()
def test_patches_by_nnsight_are_off_too(llava_inputs):
    pytest.importorskip("nnsight")
    host = make_llava()
    plain = host(**llava_inputs).logits
    with patch().attach(host, via="nnsight"):
        edited = host(**llava_inputs).logits
        with detached(host):
            assert torch.equal(host(**llava_inputs).logits, plain)
        assert torch.equal(host(**llava_inputs).logits, edited)
    assert not torch.equal(edited, plain)
    assert torch.equal(host(**llava_inputs).logits, plain)
