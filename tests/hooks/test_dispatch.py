"""Attaching callbacks: order, removal, exceptions, threads, dropped hosts."""

import gc
import threading
import weakref
from collections import namedtuple

import pytest
import torch
from conftest import make_clip
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.hooks import Tokens, attach, replace_hidden
from vlm_edit.hooks.dispatch import hidden_of


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def noise(like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(like.shape[-1], generator=torch.Generator().manual_seed(seed))


def add_noise(hidden: torch.Tensor, _: Tokens) -> torch.Tensor:
    return hidden + noise(hidden)


def nothing(hidden: torch.Tensor, _: Tokens) -> torch.Tensor:
    return hidden


@torch.no_grad()
def test_a_callback_changes_the_output_and_its_removal_brings_every_bit_back(clip, clip_inputs):
    before, hooks = clip(**clip_inputs).logits_per_image, hooks_of(clip)
    handle = attach(clip, Host.of(clip).site("text.1"), add_noise)
    assert not torch.allclose(clip(**clip_inputs).logits_per_image, before)
    handle.remove()
    handle.remove()
    assert torch.equal(clip(**clip_inputs).logits_per_image, before)
    assert hooks_of(clip) == hooks


@torch.no_grad()
def test_a_host_that_reads_hidden_states_through_its_own_hooks_sees_the_edit(llava, llava_inputs):
    before = llava(**llava_inputs).logits  # the host installs its own hooks here
    with_edit = attach(llava, Host.of(llava).site("vision.1"), add_noise)
    assert not torch.allclose(llava(**llava_inputs).logits, before)
    with_edit.remove()
    assert torch.equal(llava(**llava_inputs).logits, before)


@torch.no_grad()
def test_callbacks_on_one_module_run_in_the_order_they_came(clip, clip_inputs):
    order: list[str] = []
    handles = [
        attach(
            clip, Host.of(clip).site("joint"), lambda hidden, _, n=name: order.append(n) or hidden
        )
        for name in "abc"
    ]
    hooks = clip.text_projection._forward_hooks
    assert len(hooks) == 1
    clip.get_text_features(input_ids=clip_inputs["input_ids"])
    handles[1].remove()
    clip.get_text_features(input_ids=clip_inputs["input_ids"])
    assert "".join(order) == "abcac"
    handles[0].remove()
    handles[2].remove()
    assert not hooks


@torch.no_grad()
def test_both_taps_of_a_joint_site_name_their_stream(clip, clip_inputs):
    seen: list[tuple[str, torch.Size]] = []
    site_ = Host.of(clip).site("joint")
    handle = attach(clip, site_, lambda hidden, w: seen.append((w.stream, hidden.shape)) or hidden)
    clip(**clip_inputs)
    handle.remove()
    assert sorted(seen) == [("image", (3, 12)), ("text", (3, 12))]


@torch.no_grad()
def test_an_exception_in_a_callback_reaches_the_caller_and_leaves_no_stale_mask(
    llava, llava_inputs
):
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("in the middle")

    seen: list[Tokens] = []
    before, hooks = llava(**llava_inputs).logits, hooks_of(llava)
    kept = attach(llava, Host.of(llava).site("language.0"), lambda h, w: seen.append(w) or h)
    failing = attach(llava, Host.of(llava).site("language.1"), fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        llava(**llava_inputs)
    failing.remove()
    llava.model.language_model(inputs_embeds=torch.randn(1, 5, 32))  # not through the root
    kept.remove()
    assert seen[0].modality is not None
    assert seen[-1].modality is None
    assert seen[-1].real is None
    assert hooks_of(llava) == hooks
    assert torch.equal(llava(**llava_inputs).logits, before)


@torch.no_grad()
def test_a_failure_of_the_host_itself_leaves_no_stale_mask(llava, llava_inputs):
    seen: list[Tokens] = []
    handle = attach(llava, Host.of(llava).site("language.0"), lambda h, w: seen.append(w) or h)
    with pytest.raises(ValueError, match=r"[Ii]mage"):
        llava(llava_inputs["input_ids"], llava_inputs["pixel_values"][:1])
    llava.model.language_model(inputs_embeds=torch.randn(1, 5, 32))
    handle.remove()
    assert seen[-1].modality is None


@pytest.mark.parametrize("culprit", ["module", "root"])
def test_an_attachment_that_fails_half_way_is_undone(clip, monkeypatch, culprit):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    hooks, target = hooks_of(clip), Host.of(clip).site("joint")
    patched = clip.text_projection if culprit == "module" else clip
    name = "register_forward_hook" if culprit == "module" else "register_forward_pre_hook"
    monkeypatch.setattr(patched, name, refuse)
    with pytest.raises(RuntimeError, match="no"):
        attach(clip, target, nothing)
    assert hooks_of(clip) == hooks


def test_a_module_that_returns_no_tensor_is_named(clip):
    two = {"a": torch.zeros(1), "b": torch.zeros(1)}
    both = BaseModelOutputWithPooling(torch.zeros(1, 2, 3), torch.zeros(1, 3))
    for output in (two, both, (), ("x",), None, [torch.zeros(1)], []):
        with pytest.raises(VlmEditError, match=rf"CLIPModel returns a {type(output).__name__}"):
            hidden_of(output, clip)


def test_tuples_keep_their_type_and_their_other_members():
    pair = namedtuple("pair", "hidden weights")
    old, new, other = torch.zeros(2), torch.ones(2), torch.ones(3)
    assert replace_hidden(old, new) is new
    plain = replace_hidden((old, other, None), new)
    assert type(plain) is tuple
    assert plain[0] is new
    assert plain[1:] == (other, None)
    named = replace_hidden(pair(old, other), new)
    assert isinstance(named, pair)
    assert named.hidden is new
    assert named.weights is other
    assert hidden_of(pair(old, other), nn.Linear(1, 1)) is old


def test_outputs_by_name_have_what_the_tap_names_or_the_only_tensor():
    old, new, other = torch.zeros(2, 3), torch.ones(2, 3), torch.ones(5)
    pooled = BaseModelOutputWithPooling(last_hidden_state=other, pooler_output=old)
    edited = replace_hidden(pooled, new, "pooler_output")
    assert type(edited) is type(pooled)
    assert edited.pooler_output is new
    assert edited.last_hidden_state is other
    assert pooled.pooler_output is old
    assert hidden_of(pooled, nn.Linear(1, 1), "pooler_output") is old
    alone = BaseModelOutput(last_hidden_state=old)
    assert hidden_of(alone, nn.Linear(1, 1)) is old
    assert replace_hidden(alone, new).last_hidden_state is new
    assert replace_hidden({"it": old}, new) == {"it": new}


def test_a_list_of_images_is_edited_end_to_end_and_given_back_as_it_was_cut():
    parts = [torch.randn(3, 2), torch.randn(1, 2)]
    whole = hidden_of(parts, nn.Linear(1, 1))
    assert torch.equal(whole, torch.cat(parts))
    back = replace_hidden(parts, whole * 2)
    assert [torch.equal(b, 2 * p) for b, p in zip(back, parts, strict=True)] == [True, True]


class Streams(nn.Module):
    """A layer with residual streams of each token, [B, S, n, D], or first of all, [n, B, S, D]."""

    def __init__(self, first=False, count=3):
        super().__init__()
        self.block, self.first, self.count = nn.Identity(), first, count

    def forward(self, input_ids, attention_mask=None, pixel_values=None):  # noqa: ARG002
        torch.manual_seed(0)
        states = torch.randn(*input_ids.shape, self.count, 4)
        if not self.first:
            return self.block(states)
        return self.block(states.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)


ADAPTER = Adapter.of({"block": ("block", "mixed", 4)}, image_token=7)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
def test_every_residual_stream_of_a_chosen_token_is_edited(tokens, first):
    host = Host.of(Streams(first), adapter=ADAPTER)
    ids = torch.tensor([[0, 7, 7, 5], [7, 5, 6, 8]])
    inputs = {"attention_mask": (ids != 0).long(), "pixel_values": torch.zeros(1)}
    patch = Patch("block", Dictionary.identity(4), Clamp([1], 9.0), tokens=tokens)
    before = host.model(ids, **inputs)
    with patch.attach(host):
        after = host.model(ids, **inputs)
    real = ids != 0
    chosen = {"image": ids == 7, "text+special": (ids != 7) & real, "all": real}[tokens]
    assert torch.equal((before != after).any(-1), chosen.unsqueeze(-1).expand(2, 4, 3))
    assert torch.allclose(after[chosen][..., 1], torch.tensor(9.0))


def test_streams_rows_and_tokens_of_one_number_are_refused():
    host = Host.of(Streams(first=True), adapter=ADAPTER)
    patch = Patch("block", Dictionary.identity(4), Clamp([1], 9.0), tokens="image")
    ids = torch.tensor([[7, 5, 5], [5, 7, 5], [5, 5, 7]])
    with pytest.raises(VlmEditError, match=r"nobody can tell which axis"), patch.attach(host):
        host.model(ids, pixel_values=torch.zeros(1))


@pytest.mark.parametrize("name", ["joint", "text.0", "vision.0"])
def test_a_host_that_is_dropped_while_patched_is_freed(clip_inputs, name):
    host = make_clip()
    attach(host, Host.of(host).site(name), nothing)
    host(**clip_inputs)
    gone = weakref.ref(host.text_projection), weakref.ref(host)
    del host
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@torch.no_grad()
def test_attaching_in_one_thread_while_another_runs_the_host_does_no_harm(llava, llava_inputs):
    before = llava(**llava_inputs).logits
    hooks = hooks_of(llava)
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                assert torch.equal(llava(**llava_inputs).logits, before)
        except BaseException as error:
            errors.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    for _ in range(60):
        handles = [attach(llava, Host.of(llava).site(f"language.{i}"), nothing) for i in range(3)]
        for handle in handles:
            handle.remove()
    stop.set()
    runner.join()
    assert not errors
    assert hooks_of(llava) == hooks


@torch.no_grad()
def test_an_attachment_is_not_lost_when_another_thread_removes_the_last_one(clip):
    taps = Host.of(clip).site("text.0")
    hooks = hooks_of(clip)
    lost = []

    def churn() -> None:
        for _ in range(300):
            handle = attach(clip, taps, nothing)
            if not taps.taps[0].module._forward_hooks:
                lost.append(1)
            handle.remove()

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert hooks_of(clip) == hooks


@torch.no_grad()
def test_two_threads_with_different_inputs_see_their_own_masks(llava, llava_inputs):
    masks: dict[str, list[torch.Tensor]] = {"a": [], "b": []}

    def keep(hidden: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        masks[threading.current_thread().name].append(tokens.mask("image"))
        return hidden

    def run(row: int) -> None:
        for _ in range(10):
            llava(**{k: v[row : row + 1] for k, v in llava_inputs.items()})

    handle = attach(llava, Host.of(llava).site("language.1"), keep)
    threads = [threading.Thread(target=run, args=(i,), name="ab"[i]) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    for i, name in enumerate("ab"):
        assert len(masks[name]) == 10
        assert all(torch.equal(m, llava_inputs["input_ids"][i : i + 1] == 60) for m in masks[name])


@torch.no_grad()
def test_a_patch_acts_on_a_host_that_was_compiled_and_run_before(clip, clip_inputs):
    compiled = torch.compile(clip, backend="eager")
    plain = compiled(**clip_inputs).logits_per_image
    handle = attach(compiled, Host.of(compiled).site("vision.1"), add_noise)
    edited = compiled(**clip_inputs).logits_per_image
    assert torch.equal(edited, clip(**clip_inputs).logits_per_image)
    assert not torch.allclose(edited, plain)
    handle.remove()
    assert torch.equal(compiled(**clip_inputs).logits_per_image, plain)
