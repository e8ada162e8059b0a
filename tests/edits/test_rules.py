"""Rules on codes: what they make of a code, and what they refuse to be."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Clamp, Keep, Project, Scale, Steer, VlmEditError
from vlm_edit.edits import Blend, Cap, Detect, Rule, rule_from_dict

number = st.sampled_from([-2.5, -1.0, 0.0, 0.75, 3.0])  # not floats: most of those are tiny
features = st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True)
strengths = st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0])


@st.composite
def rules(draw):
    chosen, strength = draw(features), draw(strengths)
    kind = draw(st.sampled_from([Ablate, Blend, Cap, Clamp, Keep, Scale, Steer]))
    rest = () if kind in (Ablate, Keep) else (draw(number),)
    if kind is Blend:
        rest = ([draw(number) for _ in chosen],)
    return kind(chosen, *rest, strength=strength)


def expected(rule, code):
    """Each rule in float64, from its docstring's formula."""
    code = code.double()
    target = {
        Ablate: lambda: code * 0,
        Blend: lambda: torch.tensor(rule.reference).double().expand_as(code),
        Cap: lambda: torch.minimum(code, torch.tensor(rule.most).double()),
        Keep: lambda: code * 0,  # of those it is given, which are all others
        Scale: lambda: rule.factor * code,
        Clamp: lambda: torch.zeros_like(code) + rule.value,
        Steer: lambda: code + rule.amount,
    }[type(rule)]()
    return (1 - rule.strength) * code + rule.strength * target


@settings(max_examples=80, deadline=None)
@given(rules(), st.integers(0, 99))
def test_a_rule_does_what_its_formula_says(rule, seed):
    code = torch.randn(3, len(rule.features), generator=torch.Generator().manual_seed(seed))
    kept = code.clone()
    torch.testing.assert_close(rule(code), expected(rule, code).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(code, kept)
    if rule.strength == 0:
        assert torch.equal(rule(code), code)


@settings(max_examples=60, deadline=None)
@given(rules())
def test_a_rule_survives_json(rule):
    back = rule_from_dict(json.loads(json.dumps(rule.to_dict())))
    assert back == rule
    assert type(back) is type(rule)


def test_the_number_of_a_rule_comes_second_and_its_strength_by_name_only():
    assert Scale([1], 0.5) == Scale([1], factor=0.5, strength=1.0)
    assert Clamp([1], 4.0).value == 4.0
    assert Steer([1], -2.0, strength=0.5).amount == -2.0
    for rule in (Scale, Clamp, Steer):
        with pytest.raises((TypeError, VlmEditError)):
            rule([1])  # a rule that would do nothing
        with pytest.raises(TypeError):
            rule([1], 1.0, 1.0)


@pytest.mark.parametrize(
    "listed",
    [
        [3, 1],
        (3, 1),
        np.array([3, 1]),
        torch.tensor([3, 1]),
        iter([3, 1]),
        [np.int64(3), torch.tensor(1)],
    ],
)
def test_features_may_come_as_any_sequence_of_whole_numbers(listed):
    assert Ablate(listed).features == (3, 1)
    assert Ablate(range(2)).features == (0, 1)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "at least one feature: features is empty"),
        ([1, 2, 1], "feature 1 is listed more than once"),
        ([4, -2], "feature -2 is negative"),
        ([1.0], r"must be whole numbers, got \[1.0\]"),
        (["1"], "must be whole numbers"),
        (3.0, "must be whole numbers, got 3.0"),
        ("3", "must be whole numbers, got '3'"),
        (None, "must be whole numbers, got None"),
        (torch.tensor(3.0), "must be whole numbers"),
        (True, "is a mask; give the numbers"),
        (-3, "feature -3 is negative"),
        ([True, False], "is a mask; give the numbers"),
        (torch.tensor([True, False]), "is a mask; give the numbers"),
        (np.array([False, True]), "is a mask; give the numbers"),
    ],
)
def test_features_that_are_not_numbers_of_features_are_refused(listed, message):
    with pytest.raises(VlmEditError, match=f"Ablate.*{message}"):
        Ablate(listed)


@pytest.mark.parametrize("one", [5, np.int64(5), np.array(5), torch.tensor(5), torch.tensor([5])])
@pytest.mark.parametrize(
    "make",
    [
        *(Ablate, Keep, Project, lambda f: Scale(f, 2.0), lambda f: Clamp(f, 2.0)),
        *(lambda f: Steer(f, 2.0), lambda f: Cap(f, 2.0), lambda f: Blend(f, [2.0])),
        lambda f: Detect(f, [1.0]),
    ],
)
def test_a_single_feature_may_be_a_number(make, one):
    assert make(one) == make([5])
    assert make(one).features == (5,)


@pytest.mark.parametrize("values", [[3, 4.5], (3, 4.5), np.array([3, 4.5]), torch.tensor([3, 4.5])])
def test_clamp_takes_a_value_for_each_feature(values):
    rule = Clamp([7, 2], values)
    assert rule.value == (3.0, 4.5)
    assert rule(torch.zeros(2, 2)).tolist() == [[3.0, 4.5]] * 2
    half = Clamp([7, 2], values, strength=0.5)
    assert half(torch.tensor([1.0, 0.5])).tolist() == [2.0, 2.5]
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(VlmEditError, match="value has 2 values for 3 features: give one for each"):
        Clamp([1, 2, 3], values)


class Quantiles:
    """What Clamp asks a measurement."""

    def quantile(self, features, level):
        return [level * k for k in features]


def test_clamp_keeps_the_values_that_a_quantile_has():
    assert Clamp([4, 2], quantile=0.5, of=Quantiles()) == Clamp([4, 2], [2.0, 1.0])


@pytest.mark.parametrize(
    ("value", "options"),
    [
        *((None, {}), (2.0, {"quantile": 0.9}), (None, {"quantile": 0.9})),
        *((None, {"of": Quantiles()}), (2.0, {"quantile": 0.9, "of": Quantiles()})),
    ],
)
def test_clamp_takes_a_value_or_a_quantile_of_something(value, options):
    with pytest.raises(VlmEditError, match="needs a value, or a quantile and what was measured"):
        Clamp([1], value, **options)
    with pytest.raises(VlmEditError, match="of is a Tensor; give a Measurement"):
        Clamp([1], quantile=0.9, of=torch.ones(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, 10**400, "1", None, True])
def test_numbers_that_are_not_finite_in_float32_are_refused(value):
    for make in (lambda: Scale([0], value), lambda: Ablate([0], strength=value)):
        with pytest.raises(VlmEditError, match=r"(factor|strength) must be a finite number, got"):
            make()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "unknown rule None; known rules: ablate, blend, cap, clamp, detect, keep, "),
        ({"kind": "delete"}, "unknown rule 'delete'"),
        ({"kind": ["ablate"]}, r"unknown rule \['ablate'\]"),
        ({"kind": "ablate", "features": [1]}, r"has the fields \['features', 'strength'\]"),
        ({"kind": "ablate", "features": [1], "strength": 1.0, "x": 1}, "the file has .*'x'"),
        ({"kind": "ablate", "features": [True], "strength": 1.0}, "is a mask"),
    ],
)
def test_a_stored_rule_that_is_not_exactly_one_of_ours_is_refused(values, message):
    with pytest.raises(VlmEditError, match=message):
        rule_from_dict(values)


def test_a_rule_without_a_target_has_none():
    with pytest.raises(NotImplementedError):
        Rule([0])(torch.ones(1))


@pytest.mark.parametrize(
    "rule",
    [
        Project([3, 1], strength=0.5),
        Detect([2], [1.0, -2.0], threshold=0.5, mode="add"),
        Steer([1, 2], 0.25, relative=True),
        Blend(torch.tensor([4, 2]), torch.tensor([0.5, 1.5])),
    ],
)
def test_rules_with_other_fields_survive_json_too(rule):
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_stored_rule_of_before_a_field_was_there_does_without_it():
    old = {"kind": "steer", "features": [1], "strength": 1.0, "amount": 2.0}
    assert rule_from_dict(old) == Steer([1], 2.0)


def test_keep_touches_all_others():
    assert Keep([4, 0]).touches(6) == (1, 2, 3, 5)
    assert Ablate([4, 0]).touches(6) == (4, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blend([1, 2], [1.0]), "reference has 1 values for 2 features"),
        (lambda: Blend([1, 2], [1.0] * 3), "reference has 3 values for 2 features"),
        (lambda: Blend([1], "4"), "reference must be a list of numbers, got '4'"),
        (lambda: Blend([1], 4.0), "reference must be a list of numbers, got 4.0"),
        (lambda: Blend([1], [float("nan")]), "reference must be a finite number"),
        (lambda: Detect([1], [float("inf")]), "vector must be a finite number"),
        (lambda: Detect([1], [1.0], mode="drop"), "mode is 'drop'; use 'replace' or 'add'"),
        (lambda: Detect([1], [1.0], threshold="0"), "threshold must be a finite number"),
        (lambda: Steer([1], 1.0, relative=1), "relative must be True or False, got 1"),
        (lambda: Cap([1], None), "most must be a finite number, got None"),
    ],
)
def test_fields_that_mean_nothing_are_refused(make, message):
    with pytest.raises(VlmEditError, match=message):
        make()
