"""Whether intervals and tests hold what they promise, on planted features."""

import math

import pytest
import torch
from scipy.stats import binom

from planted import planted_pairs
from vlm_edit.ground.statistics import benjamini_hochberg
from vlm_edit.measures.dominance import Dominance, modality_dominance

ALPHA = 0.05


def measured(n: int, truth: torch.Tensor, **options) -> Dominance:
    planted = planted_pairs(n, truth, **options)
    return modality_dominance(planted.image, planted.text)


def coverage(n: int, truth: float, noise: float, features: int = 4000) -> float:
    means = torch.full((features,), truth)
    low, high = measured(n, means, rate=1.0, noise=noise, seed=n).intervals()
    return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).double().mean())


@pytest.mark.parametrize("n", [5, 10, 30, 100, 1000])
@pytest.mark.parametrize("truth", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3, 1.0])
def test_intervals_cover_the_truth_as_often_as_they_say(n, truth, noise) -> None:
    features = 4000 if n < 1000 else 1000
    # Shares of few pairs have few values: no interval of theirs covers 95 % at every truth.
    least = 0.925 if noise == 1 else 0.935
    spread = 3.5 * math.sqrt(0.05 * 0.95 / features)
    assert coverage(n, truth, noise, features) >= least - spread


def test_intervals_of_many_pairs_are_no_wider_than_they_need_be() -> None:
    for noise in (0.1, 0.3, 1.0):
        assert coverage(1000, 0.7, noise, 1500) <= 0.97


@pytest.mark.parametrize("noise", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("n", [8, 40, 200, 1500])
def test_p_of_the_swap_test_is_uniform_or_larger_where_modality_has_no_effect(n, noise) -> None:
    features = 3000 if n < 1000 else 800
    truth = torch.full((features,), 0.5)
    p = measured(n, truth, rate=0.8, noise=noise, seed=n + 1).swap_test()
    for level in (0.01, 0.05, 0.2, 0.5):
        passed = int((p <= level).sum())
        assert passed <= binom.ppf(0.9995, features, level)
    assert int((p <= 0.2).sum()) > 0.05 * features


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.005, 0.05, 0.5])
def test_false_discoveries_stay_below_the_rate_asked_for_and_power_is_there(rate) -> None:
    truth = torch.cat([torch.full((400,), 0.5), torch.full((50,), 0.75), torch.full((50,), 0.2)])
    shares, found = [], []
    for seed in range(12):
        p = measured(2000, truth, rate=rate, noise=0.3, seed=seed).swap_test()
        passed = benjamini_hochberg(p, ALPHA)
        shares.append(int(passed[:400].sum()) / max(1, int(passed.sum())))
        found.append(float(passed[400:].double().mean()))
    assert sum(shares) / 12 <= ALPHA + 0.015
    assert sum(found) / 12 > (0.1 if rate == 0.005 else 0.95)


def test_unpaired_features_pass_the_cofiring_test_no_more_than_by_chance() -> None:
    truth, rate = torch.rand(3000) * 0.8 + 0.1, torch.logspace(-2.5, -0.1, 3000)
    p = measured(1000, truth, rate=rate, noise=0.3, paired=False).cofiring_test()
    for level in (0.01, 0.05, 0.2):
        assert int((p <= level).sum()) <= binom.ppf(0.9995, 3000, level)
    assert int(measured(1000, truth, rate=rate, paired=False).paired().sum()) <= 3
    both = torch.arange(3000) < 1500
    found = measured(1000, truth, rate=rate, noise=0.3, paired=both)
    assert float(found.paired()[:1500].double().mean()) > 0.9
    assert int(found.paired()[1500:].sum()) <= 0.07 * int(found.paired().sum())
