"""A patch in the host's weights gives what the attached one does, and is undone to the bit."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import make_clip, make_llava, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlm_edit import (
    Ablate,
    Adapter,
    Clamp,
    Dictionary,
    Host,
    Keep,
    Patch,
    Project,
    Scale,
    Steer,
    VlmEditError,
)
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Blend, Cap, Detect, Rule, Splice
from vlm_edit.host import TapRule
from vlm_edit.patches.baking import linear_of


def state(host):
    return {name: value.clone() for name, value in host.state_dict().items()}


def same(host, before):
    return all(torch.equal(value, before[name]) for name, value in host.state_dict().items())


def outputs(host, inputs):
    with torch.no_grad():
        return host(**inputs)


def check(patch, host, inputs, read, adapter=None):
    """Attached, baked, and undone; how much the edit moved."""
    before = state(host)
    plain = read(outputs(host, inputs))
    with patch.attach(Host.of(host, adapter=adapter)):
        attached = read(outputs(host, inputs))
    baked = patch.bake(Host.of(host, adapter=adapter))
    found = read(outputs(host, inputs))
    torch.testing.assert_close(found, attached, rtol=1e-4, atol=1e-5)
    assert {k for k, v in host.state_dict().items() if not torch.equal(v, before[k])} == {
        *baked.weights
    }
    baked.undo()
    baked.undo()
    assert same(host, before)
    assert float((attached - plain).abs().max()) > 1e-3


def joint(out):
    return torch.cat([out.image_embeds, out.text_embeds])


RULES = {
    "ablate": [Ablate([1, 5])],
    "partly": [Ablate([1], strength=0.5), Scale([2, 1], 3.0, strength=-0.5)],
    "keep": [Keep([0, 1, 2])],
    "project": [Project([3, 4])],
    "mixed": [Scale([3], 2.0), Project([3, 4], strength=0.7), Ablate([5])],
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tokens", ["all", "image", "text"])
def test_edits_of_raw_neurons_go_into_the_projections(clip, clip_inputs, name, tokens):
    patch = Patch("joint", Dictionary.identity(12), RULES[name], tokens)
    check(patch, clip, clip_inputs, joint)


def test_only_the_streams_own_projection_changes(clip):
    patch = Patch("joint", Dictionary.identity(12), Ablate([1]), "text")
    assert patch.bake(clip).weights == ("text_projection.weight",)


def test_a_span_of_any_dictionarys_directions_is_projected_out(clip, clip_inputs):
    for dictionary in (random_dictionary(12), random_dictionary(12, activation="topk")):
        check(Patch("joint", dictionary, Project([3, 9])), clip, clip_inputs, joint)


def test_several_edits_of_one_site_are_folded_in_their_order(clip, clip_inputs):
    neurons = Dictionary.identity(12)
    first = Patch("joint", neurons, Scale([0], 3.0))
    second = Patch("joint", random_dictionary(12), Project([1]), "image")
    check(first + second, clip, clip_inputs, joint)
    check(second + first, clip, clip_inputs, joint)


@pytest.mark.parametrize("site", ["vision.0", "vision.1", "text.1"])
def test_a_constant_goes_into_the_last_bias_of_a_layer(clip, clip_inputs, site):
    width = 24 if site.startswith("vision") else 16
    patch = Patch(site, random_dictionary(width), [Steer([3, 7], 1.5), Steer([3], -0.25)])
    check(patch, clip, clip_inputs, joint)


def test_a_projectors_output_takes_a_matrix_and_a_constant(llava, llava_inputs):
    neurons = Dictionary.identity(32)
    patch = Patch("projector", neurons, [Clamp([0, 3], 2.0), Scale([5], 0.5), Steer([7], 1.0)])
    check(patch, llava, llava_inputs, lambda out: out.logits)


def test_a_sequential_models_linear_is_baked_with_an_adapter_of_ones_own():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    adapter = Adapter.of({"joint": ("2", "image", 5)})
    patch = Patch("joint", Dictionary.identity(5), [Clamp([1], 3.0), Steer([0], 1.0)])
    check(patch, host, {"input": torch.randn(6, 3)}, lambda out: out, adapter)


def test_a_host_in_half_precision_is_baked_to_its_rounding(clip, clip_inputs):
    inputs = clip_inputs | {"pixel_values": clip_inputs["pixel_values"].bfloat16()}
    host, before = clip.bfloat16(), None
    patch = Patch("joint", Dictionary.identity(12), Ablate([1]))
    before = state(host)
    with patch.attach(host):
        attached = joint(outputs(host, inputs))
    with patch.bake(host):
        torch.testing.assert_close(joint(outputs(host, inputs)), attached, rtol=2e-2, atol=2e-2)
        assert host.visual_projection.weight.dtype == torch.bfloat16
    assert same(host, before)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_the_linear_map_of_an_edit_is_what_the_splice_does(seed, data):
    g = torch.Generator().manual_seed(seed)
    encoder = Encoder(
        torch.randn(5, 8, generator=g),
        torch.randn(8, generator=g),
        "identity",
        subtract=torch.randn(5, generator=g),
        centers={s: torch.randn(5, generator=g) for s in ("image", "text")},
    )
    dictionary = Dictionary(encoder, torch.randn(8, 5, generator=g), torch.randn(5, generator=g))
    features = st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)
    number = st.floats(-2, 2, width=32)
    kinds = [
        lambda f, s: Ablate(f, strength=s),
        lambda f, s: Scale(f, data.draw(number), strength=s),
        lambda f, s: Clamp(f, data.draw(number), strength=s),
        lambda f, s: Steer(f, data.draw(number), strength=s),
        lambda f, s: Keep(f, strength=s),
        lambda f, s: Blend(f, [data.draw(number) for _ in f], strength=s),
        lambda f, s: Project(f, strength=s),
    ]
    drawn = st.lists(st.tuples(st.sampled_from(kinds), features, number), min_size=1, max_size=4)
    splice = Splice.of(dictionary, [make(f, s) for make, f, s in data.draw(drawn)])
    x = torch.randn(7, 5, generator=g)
    matrix, shift = linear_of(splice, "image")
    found = (x.double() if matrix is None else x.double() @ matrix) + shift
    wanted = splice(x, stream="image").double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max() + 1))


@dataclass(frozen=True)
class Own(Rule):
    """A rule of a user's."""

    kind = "own"

    def target(self, code):
        """The square."""
        return code * code


NEURONS = Dictionary.identity(12)
CENTRED = replace(
    NEURONS,
    encoder=replace(NEURONS.encoder, centers={s: torch.ones(12) for s in ("image", "text")}),
)
REFUSED = [
    (lambda: Patch("joint", random_dictionary(12), Ablate([1])), "activation relu is not linea"),
    (lambda: Patch("joint", random_dictionary(12, activation="topk"), Ablate([1])), "topk is n"),
    (lambda: Patch("joint", Dictionary.identity(12, "layer_norm"), Ablate([1])), "norm layer_n"),
    (lambda: Patch("joint", Dictionary.identity(12, "layer_norm"), Steer([1], 1.0)), "'s norm"),
    (
        lambda: Patch(
            "joint", replace(NEURONS, encoder=replace(NEURONS.encoder, soft_cap=1.0)), Ablate([1])
        ),
        "soft_cap is not linear",
    ),
    (lambda: Patch("joint", NEURONS, Cap([1], 1.0)), "the rule Cap is not linear"),
    (lambda: Patch("joint", NEURONS, Detect([1], [0.0] * 12)), "the rule Detect is not linear"),
    (lambda: Patch("joint", NEURONS, Steer([1], 1.0, relative=True)), "the rule Push is not l"),
    (lambda: Patch("joint", NEURONS, Own([1])), "the rule Own is not linear"),
    (lambda: Patch("joint", NEURONS, Ablate([1]), gate=0.5), "a gate looks at each token"),
    (lambda: Patch("joint", NEURONS, Clamp([1], 1.0)), "has no bias, and the edit adds a const"),
    (lambda: Patch("joint", NEURONS, Ablate([1]), phase="prompt"), "some tokens only"),
    (lambda: Patch("joint", NEURONS, Ablate([1]), schedule=[1.0, 0.5]), "it has a schedule"),
    (
        lambda: Patch("text.0", Dictionary.identity(16), Ablate([1])),
        "is only added to the site's output, and the edit is more than a constant",
    ),
    (
        lambda: Patch("text.0", random_dictionary(16), Steer([1], 1.0), positions=[-1]),
        r"some tokens only \(all tokens, positions -1\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_exact_is_refused_with_the_reason_and_nothing_changes(clip, make, message):
    fits = Patch("joint", NEURONS, Ablate([3]))  # also where an edit before it would fit
    before = state(clip)
    for patch in (make(), fits + make()):
        with pytest.raises(VlmEditError, match=f"cannot be baked: .*{message}.*attach the patch"):
            patch.bake(clip)
        assert same(clip, before)


def test_a_center_of_each_stream_is_folded_where_streams_have_modules_of_their_own(clip):
    with pytest.raises(VlmEditError, match="adds a constant"):  # the center is one
        Patch("joint", CENTRED, Ablate([1])).bake(clip)
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(3, 12))
    patch = Patch("joint", CENTRED, Ablate([1]))
    pure, mixed = (Adapter.of({"joint": ("0", stream, 12)}) for stream in ("text", "mixed"))
    check(patch, host, {"input": torch.randn(6, 3)}, lambda out: out, pure)
    with pytest.raises(VlmEditError, match="centres each stream apart, and both pass here"):
        patch.bake(Host.of(host, adapter=mixed))


def test_layers_whose_end_no_adapter_tells_are_refused(llava):
    patch = Patch("language.0", random_dictionary(32), Steer([1], 1.0))
    with pytest.raises(VlmEditError, match=r"LlamaDecoderLayer, and its adapter .*TapRule.ends"):
        patch.bake(llava)


def test_tokens_of_one_stream_in_a_shared_sequence_are_refused():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(3, 12))
    patch = Patch("joint", NEURONS, Ablate([1]), "image")
    with pytest.raises(VlmEditError, match=r"some tokens only \(image tokens\)"):
        patch.bake(Host.of(host, adapter=Adapter.of({"joint": ("0", "mixed", 12)})))


def tied_modules(clip):
    clip.text_projection = nn.Linear(24, 12, bias=False)
    clip.text_projection.weight = clip.visual_projection.weight


def tied_storage(clip):
    clip.other = nn.Parameter(clip.visual_projection.weight.detach()[2:5])


def tied_module(clip):
    clip.again = clip.visual_projection


@pytest.mark.parametrize("tie", [tied_modules, tied_storage, tied_module])
def test_tied_weights_are_refused(clip, tie):
    tie(clip)
    before = state(clip)
    with pytest.raises(VlmEditError, match="visual_projection.weight is tied: "):
        Patch("joint", NEURONS, Ablate([1]), "image").bake(clip)
    assert same(clip, before)


class Subclass(nn.Linear):
    """As quantisers make."""


def test_modules_that_are_no_plain_linear_are_refused(clip):
    clip.visual_projection = Subclass(24, 12, bias=False)
    with pytest.raises(VlmEditError, match="visual_projection is a Subclass"):
        Patch("joint", NEURONS, Ablate([1])).bake(clip)


def test_parametrised_and_absent_weights_are_refused(clip):
    patch = Patch("joint", NEURONS, Ablate([1]), "image")
    meta = copy.deepcopy(clip)
    meta.visual_projection.to("meta")
    with pytest.raises(VlmEditError, match="quantised, offloaded or sharded"):
        patch.bake(meta)
    nn.utils.parametrizations.weight_norm(clip.visual_projection)
    with pytest.raises(VlmEditError, match="cannot be baked"):
        patch.bake(clip)


def test_a_failed_write_leaves_every_weight_as_it_was(clip, monkeypatch):
    before, written = state(clip), []
    copy_ = torch.Tensor.copy_

    def fails(self, other):
        written.append(self)
        if len(written) == 2:
            raise RuntimeError("disk on fire")
        return copy_(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", fails)
    with pytest.raises(VlmEditError, match=r"text_projection.weight cannot be written: disk on fi"):
        Patch("joint", NEURONS, Ablate([1])).bake(clip)
    assert same(clip, before)


def test_bakes_are_undone_in_their_reverse_order_only(clip):
    before = state(clip)
    first = Patch("joint", NEURONS, Ablate([1])).bake(clip)
    second = Patch("joint", NEURONS, Scale([2], 2.0)).bake(clip, check_host=False)
    between = state(clip)
    with pytest.raises(VlmEditError, match="has changed since the patch was baked"):
        first.undo()
    assert same(clip, between)
    second.undo()
    first.undo()
    assert same(clip, before)


def test_an_exception_inside_the_block_undoes_it_too(clip):
    before = state(clip)
    with pytest.raises(KeyError), Patch("joint", NEURONS, Ablate([1])).bake(clip):
        assert not same(clip, before)
        raise KeyError
    assert same(clip, before)


def test_another_host_is_refused_before_anything_is_written(clip, tmp_path):
    Patch("joint", NEURONS, Ablate([1])).save(tmp_path / "p", clip)
    from vlm_edit import load_patch

    patch = load_patch(tmp_path / "p")
    other = make_clip()
    with torch.no_grad():
        other.visual_projection.weight.add_(1.0)
    before = state(other)
    with pytest.raises(VlmEditError, match="check_host=False"):
        patch.bake(other)
    assert same(other, before)
    patch.bake(other, check_host=False)
    assert not same(other, before)


def test_a_baked_host_answers_as_the_patched_one_generates(llava, llava_inputs):
    patch = Patch("projector", Dictionary.identity(32), [Clamp([0], 4.0), Ablate([5, 6])])
    options = {**llava_inputs, "max_new_tokens": 6, "do_sample": False}
    plain = make_llava().generate(**options)
    with patch.attach(llava):
        attached = llava.generate(**options)
    patch.bake(llava)
    assert torch.equal(llava.generate(**options), attached)
    assert attached.shape == plain.shape


def test_ends_that_are_one_text_and_not_candidates_are_refused():
    with pytest.raises(VlmEditError, match=r'candidates too: write \("\+mlp.fc2",\)'):
        TapRule(("layers.{i}",), "image", ends="+mlp.fc2")
