"""Metrics of bias, each beside its formula worked out case by case."""

import math
import random
from collections.abc import Callable

import pytest
import torch

from vlm_edit import VlmEditError
from vlm_edit.tasks.bias.metrics import (
    accuracy_by_group,
    accuracy_gap,
    balanced_accuracy,
    worst_group,
)
from vlm_edit.tasks.bias.skews import (
    chance_skew,
    kl_at,
    max_skew,
    ndkl,
    retrieval_skew,
    shares,
)

WANTED = {"a": 0.5, "b": 0.3, "c": 0.2}


def ranking(seed: int, n: int = 40) -> list[str]:
    return random.Random(seed).choices(list(WANTED), list(WANTED.values()), k=n)


def kl_by_hand(first: list[str], wanted: dict[str, float]) -> float:
    total = 0.0
    for group, target in wanted.items():
        share = sum(g == group for g in first) / len(first)
        if share:
            total += share * math.log(share / target)
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 7, 40])
def test_skew_and_divergence_are_their_formulas(seed: int, k: int) -> None:
    ranked = ranking(seed)
    skews = []
    for group, target in WANTED.items():
        share = sum(g == group for g in ranked[:k]) / k
        skews.append(math.log(share / target) if share else -math.inf)
    assert max_skew(ranked, k, WANTED) == pytest.approx(max(skews))
    assert kl_at(ranked, k, WANTED) == pytest.approx(kl_by_hand(ranked[:k], WANTED))


@pytest.mark.parametrize("seed", range(4))
def test_ndkl_is_the_discounted_mean_over_all_depths(seed: int) -> None:
    ranked = ranking(seed)
    above = sum(kl_by_hand(ranked[:i], WANTED) / math.log2(i + 1) for i in range(1, 41))
    below = sum(1 / math.log2(i + 1) for i in range(1, 41))
    assert ndkl(ranked, WANTED) == pytest.approx(above / below)


def test_a_list_with_the_wanted_shares_has_no_skew() -> None:
    ranked = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    assert max_skew(ranked, 10, WANTED) == pytest.approx(0)
    assert kl_at(ranked, 10, WANTED) == pytest.approx(0)
    assert ndkl(ranked, WANTED) > 0  # its first half is all a


def test_what_each_query_finds_is_ranked_by_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, groups = torch.randn(6, 40, generator=generator), ranking(9)
    found = retrieval_skew(similarity, groups, k=10)
    target = shares(groups)
    by_hand = []
    for row in similarity.tolist():
        order = sorted(range(40), key=lambda i: -row[i])
        by_hand.append(max_skew([groups[i] for i in order], 10, target))
    assert found["MaxSkew"].tolist() == pytest.approx(by_hand)
    ranked = [sorted(range(40), key=lambda i: -row[i])[:10] for row in similarity.tolist()]
    for name, figure in (
        ("KL", lambda r: kl_at(r, 10, target)),
        ("NDKL", lambda r: ndkl(r, target)),
    ):
        told = [figure([groups[i] for i in row]) for row in ranked]
        assert found[name].tolist() == pytest.approx(told)
    assert {len(values) for values in found.values()} == {6}


def test_the_worst_group_and_the_gap_are_those_of_the_counts() -> None:
    right = torch.tensor([True] * 9 + [False] + [True] * 3 + [False] * 3 + [True] * 4)
    groups = ["x"] * 10 + ["y"] * 6 + ["z"] * 4
    by_group = accuracy_by_group(right, groups)
    assert {g: (e.value, e.n) for g, e in by_group.items()} == {
        "x": (0.9, 10),
        "y": (0.5, 6),
        "z": (1.0, 4),
    }
    assert worst_group(right, groups) == ("y", by_group["y"])
    assert accuracy_gap(right, groups).value == pytest.approx(0.5)
    assert balanced_accuracy(right, groups).value == pytest.approx((0.9 + 0.5 + 1.0) / 3)


def test_the_interval_of_a_gap_is_the_bootstrap_of_the_cases() -> None:
    right = torch.tensor([True] * 30 + [False] * 10 + [True] * 20 + [False] * 20)
    groups = ["x"] * 40 + ["y"] * 40
    found = accuracy_gap(right, groups)
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(4000):
        x = right[:40][torch.randint(40, (40,), generator=generator)].float().mean()
        y = right[40:][torch.randint(40, (40,), generator=generator)].float().mean()
        drawn.append(float((x - y).abs()))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(2)
    groups, held = ["x"] * 60 + ["y"] * 60, 0
    for _ in range(200):
        chance = torch.tensor([0.8] * 60 + [0.5] * 60)
        right = torch.rand(120, generator=generator) < chance
        found = balanced_accuracy(right, groups)
        held += found.low <= 0.65 <= found.high
    assert 180 <= held <= 199


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: max_skew(["a"], 2, {"a": 1.0}), "k is 2: 1 cases"),
        (lambda: max_skew(["d"], 1, WANTED), "no share is wanted of group 'd'"),
        (lambda: ndkl(["a"], {"a": 0.5}), "sum to 1"),
        (lambda: kl_at(["a"], 1, {"a": 1.0, "b": 0.0}), "above 0"),
        (lambda: shares([]), "no cases"),
        (lambda: accuracy_gap(torch.ones(2), ["a", "b"]), "a group for each case"),
        (lambda: worst_group(torch.ones(1, dtype=torch.bool), ["a", "b"]), "a group for each"),
        (lambda: retrieval_skew(torch.ones(1, 3), ["a", "b"], 1), r"\[q, 2\]"),
        (lambda: retrieval_skew(torch.ones(1, 2), ["a", "b"], 3), "k is 3: 2 images"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(call: Callable[[], object], words: str) -> None:
    with pytest.raises(VlmEditError, match=words):
        call()


# Chance


def test_skews_by_chance_are_those_of_the_same_groups_dealt_again() -> None:
    generator = torch.Generator().manual_seed(3)
    similarity, groups = torch.rand(5, 30, generator=generator), ["a"] * 12 + ["b"] * 15 + ["c"] * 3
    found = chance_skew(similarity, groups, k=8, draws=4, seed=7)
    dealer = torch.Generator().manual_seed(7)
    for draw in range(4):
        dealt = [groups[i] for i in torch.randperm(30, generator=dealer).tolist()]
        for name, values in retrieval_skew(similarity, dealt, k=8).items():
            assert found[name][draw].tolist() == pytest.approx(values.tolist(), abs=1e-12)


def test_a_skew_that_is_there_lies_above_chance_and_none_within_it() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = ["a", "b"] * 60
    noise = torch.rand(40, 120, generator=generator)
    leaning = noise + torch.tensor([0.3 * (g == "a") for g in groups])
    for similarity, above in ((noise, False), (leaning, True)):
        chance = chance_skew(similarity, groups, k=20, draws=200)["MaxSkew"].mean(1)
        skew = float(retrieval_skew(similarity, groups, k=20)["MaxSkew"].mean())
        low, high = chance.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        assert (skew > high) is above and skew > low
        assert float(chance.min()) > 0


def test_chance_of_no_draw_is_refused() -> None:
    with pytest.raises(VlmEditError, match="draws is 0"):
        chance_skew(torch.ones(1, 2), ["a", "b"], 1, draws=0)
