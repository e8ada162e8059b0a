import math

import numpy as np
import pytest
import torch
from scipy import stats

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.selection import (
    by_answers,
    by_difference,
    by_direction,
    contrast,
    rank_test,
    standardised_difference,
)


def sparse_codes(n: int, m: int, seed: int, share: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, m, generator=generator, dtype=torch.float64).mul(8).round() / 2
    return codes * (torch.rand(n, m, generator=generator) < share)


def planted(n: int = 40, m: int = 60, carriers: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of two sets; the first features fire more in the positive, the next five less."""
    positive, negative = sparse_codes(n, m, 1), sparse_codes(n + 7, m, 2)
    positive[:, :carriers] += 2 + torch.arange(carriers)
    negative[:, carriers : 2 * carriers] += 3
    return positive, negative


# Figures


def test_the_rank_test_is_scipys_with_ties() -> None:
    positive, negative = sparse_codes(23, 12, 3), sparse_codes(31, 12, 4)
    positive[:, 0] = negative[:, 0] = 0.0
    for two_sided, told in ((False, "greater"), (True, "two-sided")):
        p = rank_test(positive, negative, two_sided)
        expected = stats.mannwhitneyu(
            positive.numpy(), negative.numpy(), alternative=told, method="asymptotic"
        ).pvalue
        assert p[0].isnan()
        np.testing.assert_allclose(p[1:], expected[1:], rtol=1e-9)


def test_equal_ranks_have_a_two_sided_chance_of_one() -> None:
    positive, negative = torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [3.0]])
    assert rank_test(positive, negative, two_sided=True).tolist() == [1.0]


def test_the_standardised_difference_is_that_of_means_over_the_spread_of_all() -> None:
    positive, negative = sparse_codes(23, 12, 3), sparse_codes(31, 12, 4)
    p, n = positive.numpy(), negative.numpy()
    expected = (p.mean(0) - n.mean(0)) / np.concatenate([p, n]).std(0)
    np.testing.assert_allclose(standardised_difference(positive, negative), expected, rtol=1e-12)


def test_a_feature_that_does_not_vary_differs_by_nothing_and_is_no_test() -> None:
    positive, negative = torch.full((7, 2), 0.1), torch.full((10, 2), 0.1)
    positive[:, 1] = negative[:, 1] = 0
    assert standardised_difference(positive, negative).tolist() == [0.0, 0.0]
    assert rank_test(positive, negative).isnan().all()
    assert by_difference(positive, negative, alpha=None) == []


def test_dense_and_sparse_codes_and_any_cut_give_the_same(monkeypatch) -> None:
    positive, negative = planted()
    whole = rank_test(positive, negative), standardised_difference(positive, negative)
    monkeypatch.setattr(contrast, "_CELLS", 300)  # three features at a time
    sparse = SparseCodes.of(positive), SparseCodes.of(negative)
    assert torch.equal(rank_test(*sparse), whole[0])
    assert torch.equal(standardised_difference(*sparse), whole[1])


# By difference


def test_planted_features_are_found_strongest_first() -> None:
    positive, negative = planted()
    found = by_difference(positive, negative)
    assert sorted(found) == [0, 1, 2, 3, 4]
    strength = standardised_difference(positive, negative)[found].tolist()
    assert strength == sorted(strength, reverse=True)
    assert by_difference(positive, negative, 2) == found[:2]
    assert sorted(by_difference(negative, positive)) == [5, 6, 7, 8, 9]


def test_the_rate_of_false_discoveries_is_kept_where_nothing_differs() -> None:
    draws = [
        by_difference(sparse_codes(20, 50, s), sparse_codes(20, 50, 99 + s)) for s in range(40)
    ]
    # 40 data sets without an effect: each finds any with chance .05 at most
    assert sum(bool(found) for found in draws) <= 6


def test_a_stricter_rate_finds_less_and_no_test_all_that_is_above_zero() -> None:
    positive, negative = sparse_codes(20, 50, 7), sparse_codes(20, 50, 8)
    positive[:, 0] += 0.5
    every = by_difference(positive, negative, alpha=None)
    assert (
        sorted(every) == (standardised_difference(positive, negative) > 0).nonzero()[:, 0].tolist()
    )
    p = rank_test(positive, negative).numpy()
    for alpha in (0.01, 0.6):
        passes = stats.false_discovery_control(p) <= alpha
        assert by_difference(positive, negative, alpha=alpha) == [k for k in every if passes[k]]


def test_one_side_alone_is_tested() -> None:
    positive = torch.tensor([[2.0], [6.0], [7.0], [8.0], [9.0]])
    negative = torch.tensor([[0.0], [1.0], [3.0], [4.0], [5.0]])
    sides = [
        stats.mannwhitneyu(
            positive[:, 0], negative[:, 0], alternative=told, method="asymptotic"
        ).pvalue
        for told in ("greater", "two-sided")
    ]
    alpha = float(sum(sides) / 2)  # passed on one side, not on both
    assert by_difference(positive, negative, alpha=alpha) == [0]
    assert by_direction(positive, negative, torch.ones(1, 1), torch.ones(1), alpha=alpha) == []


def test_what_does_not_vary_is_not_chosen_for_the_rounding_of_its_mean() -> None:
    for count in range(2, 40):
        same = torch.full((count, 1), 0.1, dtype=torch.float64)
        assert by_difference(same, same[:2].repeat(5, 1), alpha=None) == []


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(
        VlmEditError, match="codes of 3 features cannot be compared with codes of 4"
    ):
        by_difference(torch.ones(3, 3), torch.ones(3, 4))
    with pytest.raises(VlmEditError, match="1 negative examples: it takes at least 2"):
        by_difference(torch.ones(3, 3), torch.ones(1, 3))
    with pytest.raises(VlmEditError, match="0 positive examples"):
        rank_test(torch.ones(0, 3), torch.ones(3, 3))
    with pytest.raises(VlmEditError, match="most is 0"):
        by_difference(*planted(), most=0)


# By direction


def test_the_score_along_a_direction_is_the_formulas() -> None:
    positive, negative = planted()
    generator = torch.Generator().manual_seed(0)
    decoder, way = torch.randn(60, 8, generator=generator), torch.randn(8, generator=generator)
    rows, a = decoder.double().numpy(), way.double().numpy()
    cosine = rows @ a / np.linalg.norm(rows, axis=1) / np.linalg.norm(a)
    score = (positive.numpy().mean(0) - negative.numpy().mean(0)) * cosine
    expected = [k for k in np.argsort(-score) if score[k] > 0]
    assert by_direction(positive, negative, decoder, way, alpha=None) == expected
    p = stats.mannwhitneyu(positive.numpy(), negative.numpy(), method="asymptotic").pvalue
    passes = stats.false_discovery_control(p) <= 0.05
    found = by_direction(positive, negative, decoder, way)
    assert found == [k for k in expected if passes[k]]
    assert any(k >= 5 for k in found) and any(k < 5 for k in found)
    assert by_direction(positive, negative, decoder, way, 1) == found[:1]


def test_a_feature_that_writes_elsewhere_is_left_out() -> None:
    positive, negative = torch.ones(9, 3), torch.zeros(9, 3)
    decoder = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]])
    assert by_direction(positive, negative, decoder, torch.tensor([0.1, 0.0])) == [0]
    assert by_direction(negative, positive, decoder, torch.tensor([0.1, 0.0])) == [2]


def test_a_decoder_or_direction_of_another_size_is_refused() -> None:
    codes = torch.ones(3, 4), torch.ones(3, 4)
    for decoder, way in (
        (torch.ones(5, 2), torch.ones(2)),
        (torch.ones(4, 2), torch.ones(3)),
        (torch.ones(4, 1, 2), torch.ones(1, 2)),
    ):
        with pytest.raises(VlmEditError, match="codes of 4 features and a direction of"):
            by_direction(*codes, decoder, way)


# By answers


def test_features_of_right_answers_are_those_of_the_difference_of_firing() -> None:
    generator = torch.Generator().manual_seed(3)
    correct = torch.rand(120, generator=generator) < 0.6
    chance = torch.linspace(0, 0.9, 30)
    codes = (torch.rand(120, 30, generator=generator) < chance).double()
    codes[:, 3] = torch.where(correct, 2.0, 0.0)
    codes[:, 4] = torch.where(correct & (torch.rand(120, generator=generator) < 0.5), 0.1, 0.0)
    codes[:, 5] = torch.where(correct, 0.0, -1.0)  # signed codes fire, too
    fires, right = codes.numpy() != 0, correct.numpy()
    gained = fires[right].mean(0) - fires[~right].mean(0)
    expected = sorted(np.flatnonzero(gained > 0), key=lambda k: (-gained[k], k))
    assert by_answers(codes, correct, alpha=None) == expected
    for of, sign in (("correct", 1), ("incorrect", -1)):
        p = []
        for k in range(30):
            there, all_ = fires[right if sign > 0 else ~right, k].sum(), fires[:, k].sum()
            yes = (right if sign > 0 else ~right).sum()
            table = [[there, all_ - there], [yes - there, 120 - yes - all_ + there]]
            p.append(stats.fisher_exact(table, "greater").pvalue if all_ else math.nan)
        tests = [k for k in range(30) if not math.isnan(p[k])]
        adjusted = stats.false_discovery_control([p[k] for k in tests])
        passes = {k for k, q in zip(tests, adjusted, strict=True) if q <= 0.05}
        order = sorted(passes, key=lambda k: (-sign * gained[k], k))
        assert by_answers(SparseCodes.of(codes), correct, of=of) == order
    assert by_answers(codes, correct)[0] == 3 and by_answers(codes, correct, of="incorrect") == [5]
    assert by_answers(codes, correct, 1, alpha=None) == [3]


def test_dead_features_are_no_tests() -> None:
    correct = torch.tensor([True] * 5 + [False] * 5)
    codes = torch.zeros(10, 400)
    codes[:5, 0] = 1  # p = .004: passes alone, not beside 399 tests
    assert by_answers(codes, correct) == [0]
    codes[0, 1:] = 1
    assert by_answers(codes, correct) == []


def test_answers_that_cannot_be_compared_are_refused() -> None:
    codes = torch.ones(4, 2)
    with pytest.raises(VlmEditError, match=r"correct must be \[4\] bool"):
        by_answers(codes, torch.ones(4))
    with pytest.raises(VlmEditError, match=r"got \(3,\) torch.bool"):
        by_answers(codes, torch.ones(3, dtype=torch.bool))
    for same in (torch.ones, torch.zeros):
        with pytest.raises(VlmEditError, match="all 4 answers are alike"):
            by_answers(codes, same(4, dtype=torch.bool))
    with pytest.raises(VlmEditError, match="of is 'right'"):
        by_answers(codes, torch.tensor([True, False] * 2), of="right")
