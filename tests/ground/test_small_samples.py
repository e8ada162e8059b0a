"""Intervals of few cases and of cases in groups, held to how often they hold the truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm, t, ttest_1samp, ttest_rel
from torch import Tensor

from vlm_edit import VlmEditError
from vlm_edit.ground.statistics import (
    Estimate,
    auc,
    auc_difference,
    auc_estimate,
    drawn_difference,
    mean_difference,
    mean_estimate,
    proportion,
    ratio_estimate,
    share_difference,
)

DRAWS = 100


class Drawn:
    """Random numbers of one seed, float64."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


def held(estimate: Callable[[], Estimate], truth: float, draws: int = DRAWS) -> float:
    """The share of draws whose interval holds the truth."""
    return sum(e.low <= truth <= e.high for e in (estimate() for _ in range(draws))) / draws


def least(coverage: float, draws: int = DRAWS) -> float:
    """What a method of this coverage stays above in all but one of a thousand simulations."""
    return coverage - 3.1 * math.sqrt(coverage * (1 - coverage) / draws)


# Means


@pytest.mark.parametrize("n", [4, 5, 6, 10, 30])
def test_intervals_of_a_mean_hold_the_truth_from_four_values_on(n: int) -> None:
    drawn = Drawn(n)
    assert held(lambda: mean_estimate(drawn.uniform(n)), 0.5, 400) > least(0.94, 400)
    assert held(lambda: mean_estimate(drawn.normal(n)), 0.0, 400) > least(0.95, 400)


def test_skewed_values_widen_the_interval_where_their_tail_lies() -> None:
    values = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.2, 2.5], dtype=torch.float64)
    found = mean_estimate(values)
    plain = ttest_1samp(values.numpy(), 0).confidence_interval()
    assert found.low == pytest.approx(plain.low)
    assert found.high > plain.high + 0.5


def test_without_skew_the_interval_of_a_mean_is_students() -> None:
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) + 7
    found = mean_estimate(torch.tensor(values))
    interval = ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_halls_end_is_where_his_transformed_t_reaches_students() -> None:
    values = np.random.default_rng(3).exponential(size=12)
    n, mean, deviation = len(values), values.mean(), values.std(ddof=1)
    skew = ((values - mean) ** 3).mean() / deviation**3

    def transformed(truth: float) -> float:
        y = (mean - truth) / deviation
        return math.sqrt(n) * (y + skew * y**2 / 3 + skew**2 * y**3 / 27 + skew / 6 / n)

    high = mean_estimate(torch.tensor(values)).high
    assert transformed(high) == pytest.approx(-t.ppf(0.975, n - 1), rel=1e-4)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_hits_have_wilsons_interval_as_numbers_too_and_all_alike_one_of_some_width(n: int) -> None:
    for hits in (0, n // 2, n):
        values = torch.tensor([1.0] * hits + [0.0] * (n - hits))
        assert mean_estimate(values) == proportion(hits, n)
        assert mean_estimate(values.bool()) == proportion(hits, n)


def test_values_that_are_all_alike_leave_room_for_others_within_their_bounds() -> None:
    same, unmet = torch.full((10,), 0.3), proportion(0, 10).high
    found = mean_estimate(same)
    assert found.low == pytest.approx(0.3 - 0.3 * unmet, rel=1e-6)
    assert found.high == pytest.approx(0.3 + 0.7 * unmet, rel=1e-6)
    none = mean_estimate(torch.zeros(10), bounds=(-1.0, 1.0))
    assert (none.low, none.high) == pytest.approx((-unmet, unmet))
    assert math.isnan(mean_estimate(torch.full((10,), 7.0)).low)


def test_the_interval_ends_where_values_do() -> None:
    values = torch.tensor([0.99, 0.9, 0.1])
    assert mean_estimate(values).high > 1
    found = mean_estimate(values, bounds=(0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0)


def test_one_value_or_one_group_has_no_interval() -> None:
    one, together = torch.tensor([0.5]), torch.zeros(4, dtype=torch.long)
    four, both = torch.tensor([0.1, 0.2, 0.4, 0.5]), torch.tensor([True, False, True, False])
    for found in (
        mean_estimate(one),
        mean_estimate(torch.tensor([1.0])),
        mean_estimate(four, together),
        mean_estimate(both, together),
        ratio_estimate(one, one + 1),
        ratio_estimate(four, four + 1, together),
        drawn_difference(one[None], one[None]),
        auc_estimate(four, both, together),
        share_difference(both, ~both, together),
    ):
        assert math.isnan(found.low) and math.isnan(found.high)


def test_means_of_other_cases_differ_by_about_what_welch_says() -> None:
    drawn = Drawn(4)
    assert held(lambda: mean_difference(drawn.normal(5), drawn.normal(4)), 0.0, 300) > least(
        0.95, 300
    )
    one, two = drawn.normal(400), drawn.normal(300) * 2
    found = mean_difference(one, two)
    error = math.hypot(float(one.std()) / 20, float(two.std()) / math.sqrt(300))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.03)
    assert found.value == pytest.approx(float(one.mean() - two.mean()))


# Ratios


@pytest.mark.parametrize("n", [5, 10, 30])
def test_intervals_of_a_ratio_hold_the_truth_for_few_cases(n: int) -> None:
    drawn = Drawn(n)

    def draw() -> Estimate:
        below = 1 + drawn.uniform(n)
        return ratio_estimate(0.5 * below + 0.3 * drawn.normal(n), below)

    assert held(draw, 0.5, 300) > least(0.95, 300)


def test_a_ratio_whose_halves_go_together_is_told_closely() -> None:
    below = 0.1 + Drawn().uniform(50)
    apart = ratio_estimate(3 * below.flip(0), below)
    together = ratio_estimate(3 * below + 0.01 * Drawn(1).normal(50), below)
    assert together.value == pytest.approx(3, abs=0.01)
    assert together.high - together.low < 0.05 * (apart.high - apart.low)
    assert ratio_estimate(torch.zeros(9), torch.ones(9)).high == proportion(0, 9).high


# The area under the curve


@pytest.mark.parametrize("truth", [0.7, 0.9, 0.97])
@pytest.mark.parametrize(("yes", "no"), [(5, 45), (10, 90), (30, 270), (5, 5)])
def test_intervals_of_an_area_hold_the_truth_for_five_positives(truth, yes, no) -> None:
    drawn, positive = Drawn(yes), torch.arange(yes + no) < yes
    ahead = math.sqrt(2) * norm.ppf(truth) * positive
    share = held(lambda: auc_estimate(drawn.normal(yes + no) + ahead, positive), truth)
    assert share > least(0.95)


def test_the_ends_of_an_area_lie_as_many_standard_errors_away_as_the_level_asks() -> None:
    positive = torch.arange(40) < 15
    scores = Drawn(5).normal(40) + positive * 1.0
    found = auc_estimate(scores, positive)
    (yes, no), area = (scores[positive], scores[~positive]), found.value
    wins = (yes[:, None] > no).double()
    delong = float(wins.mean(1).var() / 15 + wins.mean(0).var() / 25)

    def hanley(a: float) -> float:
        q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
        return (a * (1 - a) + 14 * (q1 - a * a) + 24 * (q2 - a * a)) / (15 * 25)

    wider = max(1.0, delong / hanley(area))
    for end in (found.low, found.high):
        assert abs(end - area) / math.sqrt(hanley(end) * wider) == pytest.approx(1.96, rel=1e-3)


def test_an_area_of_one_or_none_is_not_taken_for_certain() -> None:
    positive = torch.tensor([False, False, True, True, True])
    best, worst = (auc_estimate(s * torch.arange(5.0), positive) for s in (1, -1))
    assert (best.value, best.high, worst.value, worst.low) == pytest.approx((1, 1, 0, 0))
    assert best.low == pytest.approx(1 - worst.high, abs=0.02)
    assert 0.3 < best.low < 0.7


@pytest.mark.parametrize(("yes", "no"), [(5, 45), (10, 90), (30, 100)])
def test_intervals_of_paired_areas_hold_their_difference(yes: int, no: int) -> None:
    drawn, positive = Drawn(yes), torch.arange(yes + no) < yes

    def draw() -> Estimate:
        one, other = drawn.normal(2, yes + no)
        other = 0.7 * one + math.sqrt(1 - 0.49) * other
        one, other = (
            x + math.sqrt(2) * norm.ppf(a) * positive for x, a in ((one, 0.8), (other, 0.7))
        )
        return auc_difference(one, other, positive)

    assert held(draw, 0.1, 200) > least(0.945, 200)


def test_scores_that_go_together_are_compared_more_closely_than_those_that_do_not() -> None:
    positive = torch.arange(60) < 20
    one, other = Drawn(6).normal(2, 60) + positive * 1.0
    close = auc_difference(one, one + 0.2 * other, positive)
    far = auc_difference(one, other, positive)
    assert close.high - close.low < 0.6 * (far.high - far.low)
    assert far.value == pytest.approx(auc(one, positive) - auc(other, positive))
    turned = auc_difference(other, one, positive)
    assert (turned.low, turned.high) == pytest.approx((-far.high, -far.low))


# The same cases under two treatments


def tango(one: int, two: int, n: int, gap: float) -> float:
    """The score of a difference by brute force: the likeliest share given it is searched for."""

    def unlikely(second: float) -> float:
        first, rest = second + gap, 1 - 2 * second - gap
        shares, counts = (first, second, rest), (one, two, n - one - two)
        return -sum(c * math.log(max(p, 1e-300)) for c, p in zip(counts, shares, strict=True))

    bounds = (max(0.0, -gap), (1 - gap) / 2)
    second = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (one - two - n * gap) / math.sqrt(n * (2 * second + gap - gap**2))


@pytest.mark.parametrize(("one", "two", "n"), [(8, 1, 48), (3, 3, 10), (0, 6, 20), (12, 7, 30)])
def test_the_ends_of_a_paired_difference_are_where_tangos_score_is_the_levels(one, two, n) -> None:
    first = torch.arange(n) < one
    second = (torch.arange(n) >= one) & (torch.arange(n) < one + two)
    found = share_difference(first, second)
    assert (found.value, found.n) == (pytest.approx((one - two) / n), n)
    assert tango(one, two, n, found.low) == pytest.approx(1.96, abs=2e-3)
    assert tango(one, two, n, found.high) == pytest.approx(-1.96, abs=2e-3)


@pytest.mark.parametrize("n", [5, 10, 30])
def test_intervals_of_a_paired_difference_hold_it_for_few_cases(n: int) -> None:
    drawn = Drawn(n)

    def draw() -> Estimate:
        luck = drawn.uniform(n)
        other = torch.where(drawn.uniform(n) < 0.7, luck, drawn.uniform(n))
        return share_difference(luck < 0.9, other < 0.7)

    assert held(draw, 0.2, 300) > least(0.95, 300)


def test_treatments_that_never_differ_are_not_taken_for_equal() -> None:
    hits = torch.arange(12) < 5
    found = share_difference(hits, hits)
    assert found.value == 0 and found.low == pytest.approx(-found.high) and found.high > 0.1


# Random draws


@pytest.mark.parametrize(("own", "other"), [(1, 5), (5, 5), (3, 3)])
@pytest.mark.parametrize("n", [8, 80])
def test_intervals_over_draws_hold_the_truth_for_few_draws(own: int, other: int, n: int) -> None:
    drawn = Drawn(own + n)

    def draw() -> Estimate:
        cases = drawn.normal(n) if own == 1 else drawn.normal(n) + 0.3 * drawn.normal(own, 1)
        one = cases + 0.5 * drawn.normal(own, n)
        return drawn_difference(one, 0.3 * drawn.normal(other, 1) + 0.5 * drawn.normal(other, n))

    assert held(draw, 0.0, 300) > least(0.945, 300)


def test_a_difference_of_single_draws_is_the_paired_t() -> None:
    one, two = (Drawn(seed).uniform(1, 20) for seed in (0, 1))
    found = drawn_difference(one, two)
    interval = ttest_rel(one[0].numpy(), two[0].numpy()).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)
    assert found.n == 20


def test_where_cases_are_alike_the_interval_is_that_of_the_draws() -> None:
    draws = np.array([0.2, 0.4, 0.9])
    found = drawn_difference(torch.tensor(draws)[:, None].expand(3, 50), torch.zeros(1, 50))
    interval = ttest_1samp(draws, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)
    same = drawn_difference(torch.ones(1, 9), torch.ones(1, 9))
    assert (same.low, same.high) == pytest.approx((-proportion(0, 9).high, proportion(0, 9).high))


# Cases in groups


@pytest.mark.parametrize("images", [5, 10, 30])
def test_captions_of_one_image_count_as_what_they_tell_together(images: int) -> None:
    drawn, groups = Drawn(images), torch.arange(images).repeat_interleave(5)

    def values() -> Tensor:
        return drawn.normal(images).repeat_interleave(5) + drawn.normal(5 * images)

    assert held(lambda: mean_estimate(values(), groups), 0.0, 300) > least(0.95, 300)
    assert held(lambda: mean_estimate(values()), 0.0, 300) < 0.85
    share = norm.cdf(0.8 / math.sqrt(2))
    assert held(lambda: mean_estimate(values() < 0.8, groups), share, 300) > least(0.95, 300)
    below = torch.full((5 * images,), 2.0)
    assert held(lambda: ratio_estimate(2 + values(), below, groups), 1.0, 300) > least(0.95, 300)
    plain = torch.zeros(1, 5 * images)
    assert held(lambda: drawn_difference(values()[None], plain, groups), 0.0, 300) > least(
        0.95, 300
    )


@pytest.mark.parametrize("images", [12, 30])
def test_areas_and_paired_shares_take_images_for_the_unit(images: int) -> None:
    drawn, groups = Drawn(images), torch.arange(images).repeat_interleave(5)
    positive = groups % 3 == 0
    ahead = 2 * norm.ppf(0.8) * positive

    def values() -> Tensor:
        return drawn.normal(images).repeat_interleave(5) + drawn.normal(5 * images)

    assert held(lambda: auc_estimate(values() + ahead, positive, groups), 0.8, 200) > least(
        0.95, 200
    )
    assert held(lambda: auc_estimate(values() + ahead, positive), 0.8, 200) < 0.9

    def gap(groups: Tensor | None) -> Estimate:
        return share_difference(values() < 0, values() < 0, groups)

    assert held(lambda: gap(groups), 0.0, 200) > least(0.95, 200)
    assert held(lambda: gap(None), 0.0, 200) < 0.9


def test_groups_of_one_case_change_nothing() -> None:
    values, own = Drawn().uniform(30), torch.randperm(30)
    positive, below = values > 0.4, values + 1
    assert mean_estimate(values, own).high == pytest.approx(mean_estimate(values).high)
    assert ratio_estimate(values, below, own).low == pytest.approx(
        ratio_estimate(values, below).low
    )
    pair = Drawn(3).uniform(2, 30)
    assert drawn_difference(pair[:1], pair[1:], own).low == pytest.approx(
        drawn_difference(pair[:1], pair[1:]).low
    )
    area, plain = auc_estimate(pair[0], positive, own), auc_estimate(pair[0], positive)
    assert area.value == plain.value and area.high - area.low >= plain.high - plain.low - 1e-9


@pytest.mark.parametrize("groups", [torch.zeros(3, dtype=torch.long), torch.zeros(4)])
def test_groups_of_other_cases_or_that_are_no_numbers_are_refused(groups: Tensor) -> None:
    with pytest.raises(VlmEditError, match=r"groups must be \[4\] whole numbers"):
        mean_estimate(torch.arange(4.0), groups)
