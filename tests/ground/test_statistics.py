import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, t
from sklearn.metrics import roc_auc_score

from vlm_edit import VlmEditError
from vlm_edit.ground.statistics import (
    Estimate,
    adjusted_p,
    auc,
    auc_estimate,
    auc_p,
    benjamini_hochberg,
    drawn_difference,
    holm,
    mcnemar,
    mean_estimate,
    proportion,
    ratio_estimate,
    t_quantile,
)

seeds = st.integers(0, 2**32 - 1)

# Tests run beside other work: how long an example takes says nothing.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# Shares


@settings(UNHURRIED, max_examples=60)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_is_wilsons(n: int, share: float) -> None:
    successes = round(share * n)
    found = proportion(successes, n)
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (found.value, found.n) == (successes / n, n)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("n", range(1, 60))
def test_the_interval_of_none_and_of_all_ends_exactly_at_zero_and_one(n: int) -> None:
    assert proportion(0, n).low == 0.0
    assert proportion(n, n).high == 1.0
    assert str(proportion(0, n)).startswith(".000 [.000, ")


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_a_share_of_nothing_is_refused(successes: int, n: int) -> None:
    with pytest.raises(VlmEditError, match=f"{successes} successes of {n} cases"):
        proportion(successes, n)


# The area under the curve


@settings(UNHURRIED, max_examples=60)
@given(seeds, st.integers(2, 40), st.integers(1, 8))
def test_the_area_under_the_curve_is_sklearns_with_ties_too(seed, n, levels) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n,), generator=generator) / 7
    positive = torch.rand(n, generator=generator) < 0.5
    positive[0], positive[1] = True, False
    expected = roc_auc_score(positive.numpy(), scores.numpy())
    assert auc(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_float32_scores_that_differ_in_the_last_bit_are_no_tie() -> None:
    scores = torch.tensor([1.0, 1.0 + 2**-23])
    assert auc(scores, torch.tensor([False, True])) == 1.0


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_the_area_without_positives_or_without_negatives_is_nan(positive: list[bool]) -> None:
    scores = torch.tensor([0.1, 0.2])
    assert math.isnan(auc(scores, torch.tensor(positive)))
    estimate = auc_estimate(scores, torch.tensor(positive))
    assert all(math.isnan(v) for v in (estimate.value, estimate.low, estimate.high))
    assert estimate.n == sum(positive)


def test_scores_that_are_nan_are_refused_since_they_have_no_rank() -> None:
    with pytest.raises(VlmEditError, match="1 of 3 scores are NaN"):
        auc(torch.tensor([0.1, math.nan, 0.3]), torch.tensor([True, True, False]))


@pytest.mark.parametrize("positive", [torch.tensor([0, 1, 1]), torch.tensor([True, False])])
def test_a_mask_that_is_not_one_of_the_scores_is_refused(positive: torch.Tensor) -> None:
    with pytest.raises(VlmEditError, match=r"must be \[3\] bool"):
        auc(torch.tensor([0.1, 0.2, 0.3]), positive)
    with pytest.raises(VlmEditError, match=r"must be \[3\] bool"):
        auc_estimate(torch.tensor([0.1, 0.2, 0.3]), positive)


# Means and ratios


def test_the_mean_of_hits_is_taken_of_booleans_too() -> None:
    found = mean_estimate(torch.tensor([True, False, True, True]))
    assert (found.value, found.n) == (0.75, 4)


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(VlmEditError, match="mean of no values"):
        mean_estimate(torch.zeros(0))


@pytest.mark.parametrize(("above", "below"), [(3, 2), (0, 0)])
def test_a_ratio_over_other_cases_or_none_is_refused(above: int, below: int) -> None:
    with pytest.raises(VlmEditError, match=f"{above} and {below} cases"):
        ratio_estimate(torch.ones(above), torch.ones(below))


# Many tests


@settings(UNHURRIED, max_examples=40)
@given(seeds, st.integers(1, 60))
def test_adjusted_p_values_are_scipys_and_nan_are_no_tests(seed, n) -> None:
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(n) ** 3, 2)
    mixed = np.full(n + 4, math.nan)
    kept = np.sort(rng.permutation(n + 4)[:n])
    mixed[kept] = p
    found = adjusted_p(torch.tensor(mixed))
    np.testing.assert_allclose(found[kept], false_discovery_control(p), rtol=1e-12)
    assert int(found.isnan().sum()) == 4
    passed = benjamini_hochberg(torch.tensor(mixed), 0.1)
    assert passed.tolist() == (found <= 0.1).tolist()


@settings(UNHURRIED, max_examples=40)
@given(seeds, st.integers(1, 30))
def test_holms_p_values_pass_what_stepping_down_by_hand_passes(seed, n) -> None:
    p = np.round(np.random.default_rng(seed).random(n) ** 3, 3)
    found = holm(torch.tensor([*p, math.nan]))
    assert math.isnan(float(found[-1]))
    for alpha in (0.01, 0.05, 0.3):
        passed, left = set(), n
        for k in np.argsort(p, kind="stable"):
            if p[k] > alpha / left:
                break
            passed.add(int(k))
            left -= 1
        assert {k for k in range(n) if float(found[k]) <= alpha} == passed


def test_no_tests_pass_nothing() -> None:
    assert not benjamini_hochberg(torch.full((3,), math.nan)).any()
    assert benjamini_hochberg(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5])
def test_a_rate_of_false_discoveries_is_a_share(alpha) -> None:
    with pytest.raises(VlmEditError, match=f"alpha={alpha}"):
        benjamini_hochberg(torch.ones(1), alpha)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_quantiles_of_t_are_scipys(level: float) -> None:
    df = np.array([1, 2, 3, 4, 5, 7, 10, 30, 100, 1000, 1e5, 1e8, math.inf])
    np.testing.assert_allclose(
        t_quantile(level, torch.tensor(df)), t.ppf((1 + level) / 2, df), rtol=1e-5
    )


# How figures read


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, ".500"),
        (-0.25, "-.250"),
        (1.0, "1.000"),
        (12.3456, "12.346"),
        (10.05, "10.050"),
        (-10.0, "-10.000"),
        (-1e-9, ".000"),
        (0.9996, "1.000"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_a_figure_has_three_decimals_and_no_leading_zero(value: float, text: str) -> None:
    assert str(Estimate(value, value, value, 1)) == f"{text} [{text}, {text}]"


def test_a_figure_has_as_many_decimals_as_asked() -> None:
    assert Estimate(0.5, -0.04, 1.0, 1).text(1) == ".5 [.0, 1.0]"


# The same cases under two treatments


def treated(only_first: int, only_second: int, both: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether cases are right under each of two treatments, in an order that says nothing."""
    cases = [(True, False)] * only_first + [(False, True)] * only_second + [(True, True)] * both
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor(cases)[order].unbind(1)
    return first, second


@settings(UNHURRIED, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 30))
def test_the_paired_test_is_scipys_of_the_cases_that_differ(one: int, two: int, both: int) -> None:
    found = mcnemar(*treated(one, two, both))
    assert (found.only_first, found.only_second, found.n) == (one, two, one + two + both)
    expected = binomtest(one, one + two).pvalue if one + two else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("one", "two"), [(5, 1), (3, 3), (0, 7), (4, 2)])
def test_the_paired_test_counts_how_often_exchanged_cases_differ_as_much(one, two) -> None:
    first, second = treated(one, two, both=2)
    apart = first.int() - second.int()
    # Exchange the two treatments within any of the cases: every way is as likely by chance.
    sums = [abs(sum(s * int(a) for s, a in zip(signs, apart, strict=True)))
            for signs in product((1, -1), repeat=len(apart))]  # fmt: skip
    share = sum(s >= abs(int(apart.sum())) for s in sums) / len(sums)
    assert mcnemar(first, second).p == pytest.approx(share)


def test_the_paired_test_does_not_mind_which_treatment_comes_first() -> None:
    first, second = treated(9, 2, both=5)
    assert mcnemar(first, second).p == mcnemar(second, first).p
    assert mcnemar(first, first).p == 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool)),
    ],
)
def test_a_paired_test_of_other_cases_or_none_is_refused(first, second) -> None:
    with pytest.raises(VlmEditError, match="a paired test"):
        mcnemar(first, second)


# Means of random draws, of the same cases


@pytest.mark.parametrize("shape", [(2, 4), (5,), (0, 5)])
def test_a_difference_of_other_cases_or_of_no_draw_is_refused(shape) -> None:
    with pytest.raises(VlmEditError, match=r"draws|difference"):
        drawn_difference(torch.zeros(3, 5), torch.zeros(shape))


@settings(UNHURRIED, max_examples=60)
@given(seeds, st.booleans())
def test_the_p_of_an_area_is_below_a_fortieth_just_where_its_interval_lies_above_chance(
    seed: int, grouped: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.arange(40) < 15
    scores = torch.randn(40, generator=generator) + positive * 0.6
    groups = torch.arange(40) // 2 if grouped else None
    low, p = auc_estimate(scores, positive, groups).low, auc_p(scores, positive, groups)
    assert (p < 0.025 - 1e-6) == (low > 0.5 + 1e-6) or abs(p - 0.025) < 1e-4
    assert auc_p(scores, positive, groups, 0.6) > p
    assert (auc_p(-scores, positive, groups) > 0.5) == (p < 0.5)


def test_the_p_of_an_area_is_uniform_where_scores_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(60) < 20
    drawn = [auc_p(torch.rand(60, generator=generator), positive) for _ in range(2000)]
    below = [sum(p <= level for p in drawn) / len(drawn) for level in (0.01, 0.05, 0.5)]
    assert below[0] < 0.02 and 0.03 < below[1] < 0.065 and 0.45 < below[2] < 0.55


def test_the_p_of_an_area_of_captions_counts_images() -> None:
    """Ten captions of an image that say the same tell no more than one."""
    generator = torch.Generator().manual_seed(1)
    positive, images = (torch.arange(30) < 12), torch.arange(30)
    scores = torch.randn(30, generator=generator) + positive * 1.5
    alone = auc_p(scores, positive, images)
    tenfold = [x.repeat_interleave(10) for x in (scores, positive, images)]
    assert auc_p(*tenfold) == pytest.approx(alone, rel=0.3)
    assert auc_p(*tenfold[:2]) < alone / 10
    assert math.isnan(auc_p(scores, torch.ones(30, dtype=torch.bool)))
    assert math.isnan(auc_p(scores, positive, torch.zeros(30, dtype=torch.int64)))
    with pytest.raises(VlmEditError, match="chance is 1"):
        auc_p(scores, positive, chance=1.0)
