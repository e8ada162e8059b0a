"""The splice against the naive way: decode everything, twice, and add the reconstruction error."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Clamp, Dictionary, Keep, Scale, Steer, VlmEditError
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Blend, Cap, Rule, Splice
from vlm_edit.ground.modality import Mixed

pytestmark = pytest.mark.kernels

D, M = 6, 24


def make(activation, norm, centers, seed):
    g = torch.Generator().manual_seed(seed)
    encoder = Encoder(
        torch.randn(D, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        threshold=torch.rand(M, generator=g) if activation == "jumprelu" else None,
        k=6 if activation == "topk" else None,
        subtract=torch.randn(D, generator=g),
        norm=norm,
        centers={s: torch.randn(D, generator=g) for s in ("image", "text")} if centers else {},
    )
    return Dictionary(encoder, torch.randn(M, D, generator=g), torch.randn(D, generator=g))


def naive(dictionary, rules, hidden, mask=None, stream=None):
    """Full encode, full decode before and after, error kept; one token at a time for the mask."""
    x = hidden.float()
    codes, scale = dictionary.encoder(x, stream)
    scale = 1.0 if scale is None else scale
    after = codes.clone()
    for rule in rules:
        index = list(rule.touches(M))
        after[..., index] = rule(after[..., index])
    mean = x.mean(-1, keepdim=True) if dictionary.encoder.norm == "layer_norm" else 0.0
    back = lambda z: (z @ dictionary.decoder + dictionary.decoder_bias) * scale + mean  # noqa: E731
    edited = (back(after) + (x - back(codes))).to(hidden.dtype)
    if mask is None:
        return edited
    result = hidden.clone()
    for at in mask.nonzero().tolist():
        result[tuple(at)] = edited[tuple(at)]
    return result


number = st.sampled_from([-2.5, -1.0, 0.0, 0.5, 1.0, 3.0])
some = st.lists(st.integers(0, M - 1), min_size=1, max_size=5, unique=True)
rule = st.one_of(
    st.builds(Ablate, some, strength=number),
    st.builds(Scale, some, number, strength=number),
    st.builds(Clamp, some, number),
    st.builds(Steer, some, number),
    st.builds(Keep, some, strength=number),
    st.builds(Cap, some, number, strength=number),
    some.map(lambda chosen: Blend(chosen, [0.5 * k for k in range(len(chosen))])),
)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}


@settings(max_examples=120, deadline=None)
@given(
    activation=st.sampled_from(["relu", "jumprelu", "topk", "identity"]),
    norm=st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
    stream=st.sampled_from([None, "image", "text", "mixed"]),
    rules=st.lists(rule, min_size=1, max_size=3),
    dtype=st.sampled_from(list(TOLERANCE)),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_splice_equals_the_naive_way(activation, norm, stream, rules, dtype, masked, seed):
    g = torch.Generator().manual_seed(seed)
    dictionary = make(activation, norm, stream is not None, seed)
    hidden = (torch.randn(2, 5, D, generator=g) * 2).to(dtype)
    if stream == "mixed":
        stream = Mixed.of(image=torch.rand(2, 5, generator=g) > 0.5)
    mask = torch.rand(2, 5, generator=g) > 0.5 if masked else None
    kept = hidden.clone()
    edited = Splice.of(dictionary, rules)(hidden, mask, stream)
    expected = naive(dictionary, rules, hidden, mask, stream)
    assert edited.dtype == dtype
    assert torch.equal(hidden, kept)
    if mask is not None:
        assert torch.equal(edited[~mask], hidden[~mask])
    tolerance = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()) / 10)
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "identity"])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_gradients_equal_those_of_the_naive_way(activation, norm):
    dictionary = make(activation, norm, False, 0)
    rules = [Scale([1, 2, 3], 0.25), Steer([3, 7], 1.5), Ablate([4, 5])]
    splice = Splice.of(dictionary, rules)
    weight = torch.randn(3, 4, D)
    gradients = []
    for way in (splice, lambda x: naive(dictionary, rules, x)):
        x = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
        (way(x) * weight).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(gradients[0], weight)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_gradients_of_the_dictionarys_own_weights_equal_those_of_the_naive_way(activation, norm):
    """Whoever trains a dictionary through an edit goes by them."""
    rules = [Scale([1, 2, 3], 0.25), Ablate([4, 5])]
    x = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(1))
    stream = Mixed.of(image=torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) > 0.5)
    weight = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(3))
    gradients = []
    for way in (
        lambda d: Splice.of(d, rules)(x, None, stream),
        lambda d: naive(d, rules, x, None, stream),
    ):
        dictionary = make(activation, norm, True, 0)
        encoder = dictionary.encoder
        leaves = [encoder.weight, encoder.bias, encoder.subtract, dictionary.decoder]
        leaves += [encoder.centers["image"], encoder.centers["text"]]
        for leaf in leaves:
            leaf.requires_grad_()
        (way(dictionary) * weight).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        assert mine.any()


def test_gradients_of_tokens_outside_the_mask_pass_untouched():
    splice = Splice.of(make("relu", "layer_norm", False, 0), [Ablate(range(M))])
    x = torch.randn(1, 2, D, requires_grad=True)
    splice(x, torch.tensor([[True, False]])).sum().backward()
    assert torch.equal(x.grad[0, 1], torch.ones(D))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_changes_no_bit(activation, dtype):
    dictionary = random_dictionary(D, M, activation)
    hidden = torch.randn(3, 4, D, dtype=torch.float64).to(dtype)
    rules = [Ablate([1, 2], strength=0.0), Scale([2, 5], 9.0, strength=0.0)]
    assert torch.equal(Splice.of(dictionary, rules)(hidden), hidden)


def test_a_wider_host_keeps_its_digits():
    hidden = torch.randn(5, D, dtype=torch.float64)
    splice = Splice.of(make("relu", "none", False, 0), [Scale([0], 1.5)])
    change = splice(hidden) - hidden
    codes = make("relu", "none", False, 0).encode(hidden)
    expected = 0.5 * codes[:, :1].double() * make("relu", "none", False, 0).decoder[0].double()
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)
    untouched = codes[:, 0] == 0
    assert torch.equal(splice(hidden)[untouched], hidden[untouched])


def test_ablating_twice_is_ablating_both_at_once():
    dictionary = make("relu", "none", False, 3)
    hidden = torch.randn(7, D)
    both = Splice.of(dictionary, [Ablate([1, 4, 9])])(hidden)
    torch.testing.assert_close(
        Splice.of(dictionary, [Ablate([1, 4]), Ablate([4, 9])])(hidden), both
    )
    assert torch.equal(Splice.of(dictionary, [Ablate([1, 4, 9]), Ablate([4])])(hidden), both)


def test_rules_act_in_their_order():
    neurons = Dictionary.identity(2)
    one = torch.ones(1, 2)
    assert Splice.of(neurons, [Clamp([0], 2.0), Scale([0], 3.0)])(one).tolist() == [[6.0, 1.0]]
    assert Splice.of(neurons, [Scale([0], 3.0), Clamp([0], 2.0)])(one).tolist() == [[2.0, 1.0]]
    assert Splice.of(neurons, [Steer([1, 0], 1.0), Clamp([1], 5.0)])(one).tolist() == [[2.0, 5.0]]


def test_a_feature_keeps_its_number_whatever_the_order_it_is_named_in():
    dictionary = make("topk", "none", False, 0)
    hidden = torch.randn(4, D)
    rules = ([Ablate([9, 2, 17])], [Ablate([2, 9, 17])])
    assert torch.equal(*(Splice.of(dictionary, r)(hidden) for r in rules))


@dataclass(frozen=True)
class Each(Rule):
    """A rule of a user's own, with a value for each feature in the order they are named."""

    values: tuple[float, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        pass

    def target(self, code):
        return code + torch.tensor(self.values)


def test_a_rule_sees_its_features_in_the_order_it_names_them():
    splice = Splice.of(Dictionary.identity(3), [Each((2, 0), values=(20.0, 10.0))])
    assert splice(torch.zeros(1, 3)).tolist() == [[10.0, 0.0, 20.0]]


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_autocast_does_not_change_the_arithmetic(activation):
    splice = Splice.of(make(activation, "none", False, 0), [Scale(range(8), 3.0)])
    hidden = torch.randn(4, D)
    plain = splice(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(splice(hidden), plain)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_inference_mode_first_then_gradients(activation):
    with torch.inference_mode():
        dictionary = make(activation, "none", True, 0)
        splice = Splice.of(dictionary, [Ablate([1, 2]), Scale([2], 3.0)])
        splice(torch.randn(2, D), stream="text")
    x = torch.randn(2, D, requires_grad=True)
    splice(x, stream="text").sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_only_what_the_touched_features_need_is_kept(activation):
    part = Splice.of(make(activation, "none", False, 0), [Ablate([5]), Scale([2], 2.0)]).slice
    assert part.features == (2, 5)
    assert part.decoder.shape == (2, D)
    assert part.encoder.weight.shape == (D, 2 if activation == "relu" else M)


def test_an_edit_without_rules_or_of_a_missing_feature_is_refused():
    with pytest.raises(VlmEditError, match="at least one rule"):
        Splice.of(make("relu", "none", False, 0), [])
    with pytest.raises(VlmEditError, match=f"feature {M} is not in this dictionary"):
        Splice.of(make("relu", "none", False, 0), [Ablate([0, M])])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["weight", "bias", "threshold", "subtract", "image", "text", "decoder", "decoder_bias"]
)
def test_weights_that_would_turn_outputs_to_nan_are_refused(name, wrong):
    dictionary = make("jumprelu", "none", True, 0)
    encoder, gate = dictionary.encoder, 0.5 if name == "decoder_bias" else None
    spoiled = dictionary if name.startswith("decoder") else encoder
    tensor = encoder.centers.get(name)
    tensor = getattr(spoiled, name) if tensor is None else tensor
    at = (2,) * tensor.ndim  # of feature 2, where a tensor has features
    tensor[at] = wrong
    with pytest.raises(VlmEditError, match="of features 2 holds NaN or infinity: fetch the dic"):
        Splice.of(dictionary, [Ablate([2])], gate)


@pytest.mark.parametrize("activation", ["relu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steering_adds_one_vector_and_encodes_nothing(activation, dtype, monkeypatch):
    dictionary = make(activation, "none", False, 0)
    rules = [Steer([5, 1], 1.5, strength=2.0), Steer([3, 5], -0.25)]
    hidden = torch.randn(2, 3, D, dtype=torch.float64).to(dtype)
    expected = naive(dictionary, rules, hidden)
    monkeypatch.setattr(Encoder, "__call__", lambda *_: pytest.fail("encoded"))
    edited = Splice.of(dictionary, rules)(hidden)
    assert edited.dtype == dtype
    torch.testing.assert_close(edited, expected, rtol=TOLERANCE[torch.bfloat16] / 10, atol=0.05)
    added = 3.0 * dictionary.decoder[[5, 1]].sum(0) - 0.25 * dictionary.decoder[[3, 5]].sum(0)
    if dtype != torch.bfloat16:
        change = (edited - hidden).float()
        torch.testing.assert_close(change, added.expand_as(change), rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class SteerActive(Steer):
    """Adds only to features that are active."""

    def target(self, code):
        return torch.where(code > 0, code + self.amount, code)


def test_a_kind_of_steering_that_looks_at_the_code_is_shown_it():
    splice = Splice.of(Dictionary.identity(2), [SteerActive([0, 1], 2.0)])
    assert splice(torch.tensor([[1.0, -1.0]])).tolist() == [[3.0, -1.0]]


def test_steering_still_refuses_another_width():
    splice = Splice.of(make("relu", "none", False, 0), [Steer([0], 1.0)])
    with pytest.raises(VlmEditError, match="width 1 meet a dictionary of width 6"):
        splice(torch.zeros(2, 1))


def test_a_steered_token_of_a_normed_dictionary_moves_by_its_own_norm():
    splice = Splice.of(make("relu", "constant_norm_rescale", False, 0), [Steer([0], 1.0)])
    one = torch.randn(1, D)
    torch.testing.assert_close(splice(2 * one) - 2 * one, 2 * (splice(one) - one))


def test_keeping_every_feature_would_change_nothing_and_is_refused():
    with pytest.raises(VlmEditError, match=f"Keep names all {M} features"):
        Splice.of(make("relu", "none", False, 0), [Keep(range(M))])
    with pytest.raises(VlmEditError, match=f"feature {M} is not in this dictionary"):
        Splice.of(make("relu", "none", False, 0), [Keep([M])])


@pytest.mark.parametrize("activation", ["relu", "topk"])
@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
def test_of_an_edit_that_reads_no_code_no_encoder_is_kept(activation, norm):
    dictionary = make(activation, norm, False, 0)
    rules = [Steer([5, 1], 1.5, strength=2.0), Steer([3], -0.25)]
    splice = Splice.of(dictionary, rules)
    assert splice.slice.encoder.weight.shape == (D, 3)
    assert not splice.slice.encoder.weight.any()
    hidden = torch.randn(4, D)
    torch.testing.assert_close(splice(hidden), naive(dictionary, rules, hidden))


@pytest.mark.parametrize("touched", [[3], [0, 5, 9], list(range(M))])
def test_of_topk_only_rows_are_encoded_in_which_a_touched_feature_could_be_active(
    touched, monkeypatch
):
    dictionary = make("topk", "layer_norm", True, 0)
    hidden = torch.randn(4, 50, D, generator=torch.Generator().manual_seed(1))
    stream = Mixed.of(image=torch.rand(4, 50, generator=torch.Generator().manual_seed(2)) > 0.5)
    part = dictionary.slice(touched)
    codes = dictionary.encode(hidden, stream)[..., touched]
    encoded, plain = [], Encoder.contested

    def counted(encoder, x, *rest):
        encoded.append(x.shape[:-1].numel())
        return plain(encoder, x, *rest)

    monkeypatch.setattr(Encoder, "contested", counted)
    found, scale = part.codes(hidden, stream)
    torch.testing.assert_close(found, codes, rtol=1e-5, atol=1e-5)
    assert scale.shape == (4, 50, 1)
    assert len(encoded) == 1
    assert (codes > 0).any(-1).sum() <= encoded[0] < 200 or len(touched) == M
    encoded.clear()
    bias = dictionary.encoder.bias - 1e4
    off = Dictionary(
        Encoder(dictionary.encoder.weight, bias, "topk", k=6), dictionary.decoder, torch.zeros(D)
    )
    assert not off.slice(touched).codes(torch.randn(2, D))[0].any()
    assert not encoded


@pytest.mark.parametrize("touched", [[3], [11, 2]])
@pytest.mark.parametrize("rows", [(), (1,), (2, 40)])
def test_of_topk_a_feature_stays_if_it_is_among_the_k_largest(touched, rows):
    dictionary = make("topk", "none", True, 0)
    x = 3 * torch.randn(*rows, D, generator=torch.Generator().manual_seed(3))
    part = dictionary.slice(touched)
    for stream in ("image", "text"):
        expected = dictionary.encode(x, stream)[..., touched]
        found, _ = part.codes(x, stream)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (found == 0).equal(expected == 0)
    assert (expected > 0).any() or len(rows) < 2


def test_of_few_features_what_is_subtracted_is_folded_into_the_bias():
    for activation in ("relu", "jumprelu", "identity"):
        dictionary = make(activation, "none", True, 0)
        x = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(4))
        image = torch.rand(3, 7, generator=torch.Generator().manual_seed(5)) > 0.5
        part = dictionary.slice([4, 1])
        assert set(part._folded) == {"image", "text"}
        for stream in ("image", "text", Mixed.of(image=image)):
            expected = dictionary.encode(x, stream)[..., [4, 1]]
            assert expected.any()
            torch.testing.assert_close(part.codes(x, stream)[0], expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(VlmEditError, match="centres each stream apart"):
            part.codes(x)
    normed = make("relu", "layer_norm", True, 0).slice([4, 1])
    assert not normed._folded


def test_where_gradients_are_followed_topk_is_encoded_in_one_piece():
    part = make("topk", "none", False, 0).slice([1, 2, 3])
    x = torch.randn(6, D, requires_grad=True)
    part.codes(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_rule_that_is_called_in_a_way_of_its_own_is_called_so(strength):
    class Halved(Ablate):
        def __call__(self, code):
            return code / 2

    splice = Splice.of(Dictionary.identity(4), [Halved([1], strength=strength)])
    assert splice(torch.ones(1, 4)).tolist() == [[1.0, 0.5, 1.0, 1.0]]
