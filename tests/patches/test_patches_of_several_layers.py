"""Patches of crosscoders and cross-layer transcoders: one code, where each feature writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from random_transcoders import LAYERS, M, adding_in_place, by_hand, logits, made

from vlm_edit import Ablate, Clamp, Dictionary, Patch, Scale, Steer, VlmEditError, load_patch
from vlm_edit.edits import Detect, Rule
from vlm_edit.hooks import record

EARLY, LATE = list(range(6)), list(range(6, M))
STREAM = "language.0+language.1"


@pytest.fixture
def causal():
    """A weakly causal crosscoder: all features read layer 0, and write it and layer 1."""
    return made(parts=2, ends=("", ""), unread={1: list(range(M))})


def by_one_code(host, crosscoder, change, mask):
    """Change both layers by the code of the first as it was; the logits are returned by a call."""
    encoder, kept = crosscoder.inner.encoder, {}
    handles = []
    for layer in range(2):

        def hook(_module, _args, output, layer=layer):
            if layer == 0:
                kept["x"] = output.double()
            codes = kept["x"] @ encoder.weight[:32].double() + encoder.bias.double()
            block = crosscoder.inner.decoder[:, layer * 32 : layer * 32 + 32].double()
            moved = output.double() + change(codes.relu()) @ block
            return torch.where(mask[..., None], moved.float(), output)

        handles.append(host.get_submodule(f"{LAYERS}.{layer}").register_forward_hook(hook))
    return handles


@pytest.mark.parametrize("tokens", ["all", "image"])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("rule", [Ablate([2, 7]), Clamp([2, 7], 3.0)])
def test_later_layers_are_changed_by_the_code_of_before_the_edit(
    llava, llava_inputs, causal, tokens, stored, rule, tmp_path
):
    """Not by that of the state that the edit's own first layer left."""
    mask = llava_inputs["attention_mask"].bool()
    if tokens == "image":
        mask = mask & (llava_inputs["input_ids"] == 60)

    def change(codes):
        own = torch.zeros_like(codes)
        own[..., [2, 7]] = rule(codes[..., [2, 7]]) - codes[..., [2, 7]]
        return own

    handles = by_one_code(llava, causal, change, mask)
    expected = logits(llava, llava_inputs)
    for handle in handles:
        handle.remove()
    patch = Patch(STREAM, causal, rule, tokens=tokens)
    if stored:
        patch.save(tmp_path / "patch.safetensors", llava)
        patch = load_patch(tmp_path / "patch.safetensors")
    with patch.attach(llava):
        torch.testing.assert_close(logits(llava, llava_inputs), expected, atol=1e-5, rtol=1e-4)


def test_edits_of_one_patch_act_in_their_order_each_by_one_code(llava, llava_inputs, causal):
    """As patches attached one behind the other do, whatever stands first."""
    other = made(seed=1, parts=2, ends=("", ""), unread={1: list(range(M))})
    plain = Patch("language.0", Dictionary.identity(32), Scale(range(8), -2.0))
    parts = [
        Patch(STREAM, causal, Ablate([2])),
        Patch(STREAM, other, Ablate([2])),
        Patch(STREAM, other, Ablate([2])),
        Patch(STREAM, other, Ablate([2]), tokens="image"),
        plain,
        Patch(STREAM, causal, Ablate([2])),
        Patch(STREAM, causal.writing(0), Ablate([3])),
        Patch(STREAM, causal.writing(1), Ablate([3])),
    ]
    # The dictionary of both is one, and what it reads for the second is what the first writes.
    later = causal.writing(1)
    parts += [Patch(site, later, Ablate([4])) for site in (STREAM, "language.1+language.2")]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + part
    attached = [part.attach(llava) for part in parts]
    expected = logits(llava, llava_inputs)
    for one in attached:
        one.remove()
    with joined.attach(llava):
        assert torch.equal(logits(llava, llava_inputs), expected)


def test_features_of_several_layers_act_where_they_write(llava, llava_inputs):
    """As a cross-layer transcoder: 0 to 5 read layer 0 and write both, the others layer 1 alone."""
    zeros = {"unread": {1: EARLY, 0: LATE}, "unwritten": {0: LATE}}
    transcoder = made(parts=2, **zeros)
    site, e = "language.0.mlp_out+language.1.mlp_out", transcoder.inner.encoder
    patch = Patch(site, transcoder, Ablate([2, 8]))
    assert [binding.reads for binding in patch.bindings] == [
        ("language.0.mlp_in",),
        ("language.0.mlp_in", "language.1.mlp_in"),
    ]
    kept = {}

    def change(layer, x, y):
        kept[layer] = x
        done = torch.cat([kept.get(i, torch.zeros_like(x)) for i in range(2)], -1).double()
        codes = (done @ e.weight.double() + e.bias.double()).relu()[..., [2, 8]]
        block = transcoder.inner.decoder[[2, 8], layer * 32 : layer * 32 + 32].double()
        real = llava_inputs["attention_mask"].bool()[..., None]
        return torch.where(real, (y.double() - codes @ block).float(), y)

    handles = by_hand(llava, [0, 1], change)
    expected = logits(llava, llava_inputs)
    for handle in handles:
        handle.remove()
    with patch.attach(llava) as attached:
        edited = logits(llava, llava_inputs)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-4)
    assert [report.site for report in attached.report().sites] == site.split("+")


def test_a_crosscoder_that_reads_all_layers_acts_at_the_last(llava, llava_inputs):
    both, site = made(parts=2, ends=("", "")), "language.0+language.1"
    with pytest.raises(VlmEditError, match=r"transcoder.writing\(-1\) writes at the last place"):
        Patch(site, both, Ablate([2]))
    assert [b.site for b in Patch(site, both, Steer([2], 1.0)).bindings] == site.split("+")
    patch = Patch(site, both.writing(-1), Ablate([2]))
    assert patch.bindings[0].reads == ("language.0", "language.1")
    with record(llava, "language.0", "language.1") as before:
        logits(llava, llava_inputs)
    with patch.attach(llava), record(llava, "language.1") as after:
        logits(llava, llava_inputs)
    states = [capture.hidden.double() for capture in before.captures]
    e = both.inner.encoder
    codes = (torch.cat(states, -1) @ e.weight.double() + e.bias.double()).relu()[..., [2]]
    expected = states[1] - codes @ both.inner.decoder[[2], 32:].double()
    real = llava_inputs["attention_mask"].bool()
    torch.testing.assert_close(
        after.captures[0].hidden[real].double(), expected[real], atol=1e-5, rtol=1e-4
    )


@dataclass(frozen=True)
class Swap(Rule):
    """A rule of one's own, whose features depend on each other."""

    kind: ClassVar[str] = "swap of several layers"

    def target(self, code):
        return code.flip(-1)


def test_a_rule_that_mixes_features_needs_all_their_codes_at_each_place():
    zeros = {"unread": {1: EARLY, 0: LATE}, "unwritten": {0: LATE}}
    transcoder, site = made(parts=2, **zeros), "language.0.mlp_out+language.1.mlp_out"
    with pytest.raises(VlmEditError, match="their codes are not known by then"):
        Patch(site, transcoder, Swap([2, 8]))
    last = Patch(site, transcoder.writing(-1), Swap([2, 8]))
    assert last.bindings[0].reads == ("language.0.mlp_in", "language.1.mlp_in")
    assert len(Patch(site, transcoder, Swap([2, 3])).bindings) == 2


def test_a_vector_is_put_where_a_feature_of_several_layers_fires(llava, llava_inputs, causal):
    vector = [5.0] * 32
    with pytest.raises(VlmEditError, match="vector has 64 numbers, .* 32"):
        Patch(STREAM, causal, Detect([2], [5.0] * 64))
    with record(llava, "language.0") as before:
        logits(llava, llava_inputs)
    patch = Patch(STREAM, causal, Detect([2], vector))
    with patch.attach(llava), record(llava, "language.0", "language.1") as after:
        logits(llava, llava_inputs)
    e, real = causal.inner.encoder, llava_inputs["attention_mask"].bool()
    fires = (before.captures[0].hidden @ e.weight[:32, 2] + e.bias[2] > 0) & real
    assert 0 < int(fires.sum()) < int(real.sum())
    for capture in after.captures:
        there = ((capture.hidden - 5.0).abs() < 1e-4).all(-1)
        assert torch.equal(there, fires)


@torch.no_grad()
def test_what_was_read_stays_what_it_was_where_the_host_adds_in_place(llava, llava_inputs):
    patch = Patch(STREAM, made(parts=2, ends=("", "")).writing(-1), Ablate([2]))
    with patch.attach(llava):
        expected = logits(llava, llava_inputs)
    with adding_in_place(llava, 1), patch.attach(llava):
        torch.testing.assert_close(logits(llava, llava_inputs), expected)
