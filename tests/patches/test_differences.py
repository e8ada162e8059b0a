"""What two patches have not in common is told, all of it, and nothing else."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Clamp, Patch, Scale, load_patch
from vlm_edit.edits import Blend
from vlm_edit.patches.comparing import differences

DICTIONARY = random_dictionary(12)


def at(rules, tokens="all", dictionary=DICTIONARY, site="joint", **options):
    return Patch(site, dictionary, rules, tokens, **options)


def told(first, second):
    return [tuple(found) for found in differences(first, second)]


def test_a_patch_and_its_file_are_the_same(clip, tmp_path):
    patch = at([Ablate([3, 7]), Scale([9], 2.0)]) + at(Clamp([1], 2.0), "text")
    patch.save(tmp_path / "p", clip)
    back = load_patch(tmp_path / "p")
    assert told(back, load_patch(tmp_path / "p")) == []
    assert [(d.where, d.what) for d in differences(patch, back)] == [("host", "known")]


CASES = [
    (at(Ablate([1]), "image"), ("joint", "tokens", "all tokens", "image tokens")),
    (at(Ablate([1]), steps=(0, 4)), ("joint", "tokens", "all tokens", "all tokens, decode steps")),
    (at(Ablate([1, 2])), ("joint", "features of rule 1", "none besides", "also 2")),
    (at(Ablate([1], strength=0.5)), ("joint", "rule 1", "ablate", "ablate, strength 0.5")),
    (at(Scale([1], 3.0)), ("joint", "rule 1", "ablate", "scale, factor 3")),
    (at([Ablate([1]), Scale([1], 3.0)]), ("joint", "rule 2", "-", "scale, factor 3")),
    (at(Ablate([1]), schedule=[1.0, 0.5]), ("joint", "more", "-", "schedule (1.0, 0.5)")),
    (at(Ablate([1]), info={"why": "x"}), ("info", "why", "-", "x")),
    (at(Ablate([1])) + at(Scale([1], 3.0)), ("joint (2)", "edit", "-", "scale, factor 3: 1")),
]


@pytest.mark.parametrize(("other", "expected"), CASES, ids=[case[1][1] for case in CASES])
def test_one_thing_that_differs_is_told_and_no_other(other, expected):
    ((where, what, first, second),) = told(at(Ablate([1])), other)
    assert (where, what, first) == expected[:3] and second.startswith(expected[3])
    ((_, _, back, forth),) = told(other, at(Ablate([1])))
    assert (back, forth) == (second, first)


def test_another_dictionary_and_its_weights_are_told():
    other = at(Ablate([1, 3]), dictionary=random_dictionary(12, seed=1))
    found = told(at(Ablate([1, 3])), other)
    assert [what for _, what, *_ in found] == [
        *("dictionary", "decoder rows", "encoder columns", "encoder bias", "subtract"),
    ]
    assert DICTIONARY.digest() in found[0][2]


def test_a_weight_of_a_shared_feature_is_compared_though_others_differ():
    decoder = DICTIONARY.decoder.clone()
    decoder[3, 0] += 0.25
    other = at(Ablate([3, 5]), dictionary=replace(DICTIONARY, decoder=decoder))
    found = told(at(Ablate([1, 3])), other)
    assert ("joint", "features of rule 1", "also 1", "also 5") in found
    assert ("joint", "decoder rows", "its own", "off by 0.25 at most") in found


def test_encoders_of_another_kind_or_size_are_told():
    topk = at(Ablate([1]), dictionary=random_dictionary(12, activation="topk"))
    whats = [what for _, what, *_ in told(at(Ablate([1])), topk)]
    assert "activation" in whats and "k" in whats
    larger = at(Ablate([1]), dictionary=random_dictionary(12, n_features=50))
    found = [d for d in told(at(Ablate([1])), larger) if d[1] == "dictionary's size"]
    assert found == [("joint", "dictionary's size", "40 features, 12 wide", "50 features, 12 wide")]


def test_a_site_that_only_one_of_them_edits_is_told():
    other = at(Ablate([1]), dictionary=random_dictionary(24), site="vision.0")
    found = told(at(Ablate([2])), at(Ablate([2])) + other)
    assert found == [("vision.0", "edit", "-", "ablate: 1")]


def test_hosts_are_compared_by_kind_width_name_and_weights(clip, tmp_path):
    at(Ablate([1])).save(tmp_path / "p", clip)
    patch = load_patch(tmp_path / "p")

    def host(change):
        changed = copy.deepcopy(dict(patch.host))
        change(changed)
        return [what for _, what, *_ in told(patch, Patch.joined(patch.bindings, changed))]

    assert host(dict) == []
    assert host(lambda h: h.update(architecture="X")) == ["architecture"]
    assert host(lambda h: h.update(model_type="x")) == ["model_type"]
    assert host(lambda h: h["sites"]["joint"].update(width=13)) == ["width of joint"]
    weights = patch.host["sites"]["joint"]["weights"]
    other = {path: [v + 1 for v in values] for path, values in weights.items()}
    assert host(lambda h: h["sites"]["joint"].update(weights=other)) == ["weights at joint"]


def test_the_order_in_which_features_are_named_decides_nothing():
    assert told(at(Scale([3, 1], 0.5)), at(Scale([1, 3], 0.5))) == []
    assert told(at(Blend([3, 1], [1.0, 2.0])), at(Blend([1, 3], [2.0, 1.0]))) == []
    assert told(at(Blend([3, 1], [1.0, 2.0])), at(Blend([1, 3], [1.0, 2.0]))) == [
        ("joint", "values of rule 1", "its own", "others")
    ]


@settings(max_examples=50, deadline=None)
@given(
    picked=st.lists(
        st.lists(st.integers(0, 39), min_size=1, max_size=4, unique=True), min_size=2, max_size=2
    ),
    factors=st.lists(st.sampled_from([0.5, 2.0]), min_size=2, max_size=2),
)
def test_no_difference_is_told_exactly_where_two_edits_act_alike(picked, factors):
    one, two = (at(Scale(f, x)) for f, x in zip(picked, factors, strict=True))
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 3
    alike = torch.allclose(*(p.bindings[0].splice(x) for p in (one, two)), atol=1e-6)
    assert (told(one, two) == []) == alike
