"""Rules on the hidden state, and gates, against their formulas written out token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splice import D, M, make, naive

from vlm_edit import Ablate, Dictionary, Keep, Project, Scale, Steer, VlmEditError
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Detect, Splice

some = st.lists(st.integers(0, M - 1), min_size=1, max_size=4, unique=True)
strengths = st.sampled_from([0.0, 0.5, 1.0, -1.0])
vector = [0.5, -1.0, 2.0, 0.0, 1.0, -0.5]
moves = st.one_of(
    st.builds(Project, some, strength=strengths),
    st.builds(Steer, some, st.sampled_from([-0.5, 0.25]), relative=st.just(True)),
    st.builds(
        Detect,
        some,
        st.just(vector),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from(["add", "replace"]),
        strength=strengths,
    ),
)
codes_rules = st.one_of(st.builds(Ablate, some), st.builds(Scale, some, st.just(3.0)))


def by_hand(dictionary, rules, hidden):
    """Each rule after the other, in float64, one token at a time; codes are read once."""
    edited = []
    for x in hidden.double():
        code, scale = dictionary.encoder(x.float())
        code, scale = code.double(), 1.0 if scale is None else scale.double()
        rows = dictionary.decoder.double()
        for rule in rules:
            chosen = list(rule.features)
            if isinstance(rule, Project):
                inverse = torch.linalg.pinv(rows[chosen], rtol=1e-6)
                x = x - rule.strength * (x @ inverse @ rows[chosen])
            elif isinstance(rule, Detect):
                to = torch.tensor(rule.vector).double()
                if bool((code[chosen] > rule.threshold).any()):
                    x = x + rule.strength * (to if rule.mode == "add" else to - x)
            elif isinstance(rule, Steer):
                d = rows[chosen].sum(0)
                x = x + rule.strength * rule.amount * x.norm() * d / d.norm()
            else:
                before = code.clone()
                code[chosen] = rule(code[chosen].float()).double()
                x = x + (code - before) @ rows * scale
        edited.append(x)
    return torch.stack(edited).to(hidden.dtype)


@settings(max_examples=80, deadline=None)
@given(
    activation=st.sampled_from(["relu", "topk", "identity"]),
    norm=st.sampled_from(["none", "constant_norm_rescale"]),
    rules=st.lists(st.one_of(moves, codes_rules), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_moves_and_rules_on_codes_act_in_their_order(activation, norm, rules, seed):
    dictionary = make(activation, norm, False, seed)
    hidden = torch.randn(5, D, generator=torch.Generator().manual_seed(seed))
    kept = hidden.clone()
    found = Splice.of(dictionary, rules)(hidden)
    torch.testing.assert_close(found, by_hand(dictionary, rules, hidden), rtol=1e-3, atol=1e-3)
    assert torch.equal(hidden, kept)


def test_what_is_projected_out_is_gone_whether_it_fired_or_not():
    dictionary = make("relu", "layer_norm", False, 0)
    splice = Splice.of(dictionary, [Project([3, 7, 11])])
    hidden = torch.randn(2, 5, D)
    edited = splice(hidden)
    rows = dictionary.decoder[[3, 7, 11]]
    torch.testing.assert_close(edited @ rows.T, torch.zeros(2, 5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(splice(edited), edited, atol=1e-5, rtol=1e-5)
    across = hidden - edited
    assert float((across * edited).sum(-1).abs().max()) < 1e-4  # the rest is untouched


def test_directions_that_depend_on_each_other_are_projected_once():
    dictionary = make("relu", "none", False, 0)
    dictionary.decoder[4] = 2 * dictionary.decoder[3]
    dictionary.decoder[5] = 0
    hidden = torch.randn(5, D)
    one, three = (Splice.of(dictionary, [Project(f)])(hidden) for f in ([3], [3, 4, 5]))
    torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


def test_an_edit_of_moves_alone_encodes_nothing(monkeypatch):
    monkeypatch.setattr(Encoder, "__call__", lambda *_: pytest.fail("encoded"))
    for rule in (Project([1]), Steer([1], 0.5, relative=True)):
        splice = Splice.of(make("topk", "layer_norm", False, 0), [rule])
        assert splice(torch.randn(2, D)).shape == (2, D)
        with pytest.raises(VlmEditError, match="width 5 meet a dictionary of width 6"):
            splice(torch.randn(2, D - 1))


def test_a_push_goes_as_far_as_it_says():
    splice = Splice.of(make("relu", "none", False, 0), [Steer([1, 2], -0.25, relative=True)])
    hidden = torch.randn(3, D) * torch.tensor([[0.1], [1.0], [50.0]])
    moved = (splice(hidden) - hidden).norm(dim=1)
    torch.testing.assert_close(moved, 0.25 * hidden.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_directions_that_cancel_each_other_steer_nowhere():
    dictionary = make("relu", "none", False, 0)
    dictionary.decoder[4] = -dictionary.decoder[3]
    with pytest.raises(VlmEditError, match=r"directions of features \(3, 4\) cancel each other"):
        Splice.of(dictionary, [Steer([3, 4], 0.1, relative=True)])


def test_a_vector_of_another_width_is_refused():
    with pytest.raises(VlmEditError, match="vector has 2 numbers, the dictionary's activations 6"):
        Splice.of(make("relu", "none", False, 0), [Detect([1], [1.0, 2.0])])


def test_what_a_detector_replaces_is_the_vector_in_the_host_s_dtype():
    dictionary = make("relu", "none", False, 0)
    hidden = torch.randn(50, D).half()
    fires = (dictionary.encode(hidden)[:, [2, 9]] > 0.4).any(1)
    assert 0 < int(fires.sum()) < 50
    edited = Splice.of(dictionary, [Detect([2, 9], vector, 0.4)])(hidden)
    assert torch.equal(edited[~fires], hidden[~fires])
    torch.testing.assert_close(edited[fires], torch.tensor(vector).half().expand(fires.sum(), -1))


def test_gradients_pass_through_moves():
    dictionary = make("relu", "none", False, 0)
    rules = [Scale([1], 2.0), Project([3]), Detect([5], vector, mode="add")]
    gradients = []
    for way in (Splice.of(dictionary, rules), lambda x: by_hand(dictionary, rules, x)):
        x = torch.randn(4, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
        way(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


# Gates


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("centers", [False, True])
def test_a_gate_leaves_tokens_alone_that_the_dictionary_does_not_explain(activation, norm, centers):
    dictionary = make(activation, norm, centers, 0)
    hidden = torch.randn(60, D, generator=torch.Generator().manual_seed(3))
    x = dictionary.normalise(hidden)
    if centers:
        x = x - dictionary.encoder.centers["text"]
    left = (x - dictionary.decode(dictionary.encode(hidden, "text"))).square().sum(1)
    explained = 1 - left / (x - dictionary.decoder_bias).square().sum(1)
    least = float(explained.sort().values[29:31].mean())  # between two tokens, not at one
    rules = [Scale([1, 2, 5], 4.0), Keep(range(12))]
    found = Splice.of(dictionary, rules, gate=least)(hidden, stream="text")
    whole = Splice.of(dictionary, rules)(hidden, stream="text")
    opens = explained >= least
    assert 20 < int(opens.sum()) < 40
    assert torch.equal(found[~opens], hidden[~opens])
    torch.testing.assert_close(found[opens], whole[opens], rtol=1e-4, atol=1e-4)


def test_a_gate_that_is_always_open_changes_nothing_about_the_edit():
    dictionary = make("topk", "none", False, 0)
    hidden = torch.randn(9, D)
    rules = [Ablate([1, 2, 3, 4])]
    found = Splice.of(dictionary, rules, gate=-1e9)(hidden)
    torch.testing.assert_close(found, naive(dictionary, rules, hidden), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("least", [1.5, float("nan"), "half", True])
def test_a_gate_that_nothing_could_pass_is_refused(least):
    with pytest.raises(VlmEditError, match="it is the share of a token"):
        Splice.of(make("relu", "none", False, 0), [Ablate([1])], gate=least)


def test_a_gate_of_all_opens_for_tokens_that_are_explained_wholly_and_for_no_other():
    dictionary = Dictionary(Encoder(torch.eye(3), torch.zeros(3)), torch.eye(3), torch.zeros(3))
    hidden = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, -3.0]])  # ReLU does not explain below zero
    found = Splice.of(dictionary, [Ablate([1])], gate=1.0)(hidden)
    assert found.tolist() == [[1.0, 0.0, 3.0], [1.0, 2.0, -3.0]]
