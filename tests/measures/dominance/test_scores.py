import math

import numpy as np
import pytest
import torch
from scipy.stats import t
from sklearn.metrics import mutual_info_score

from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import Zeros, modality_dominance


def some(n: int, m: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < 0.4)


@pytest.mark.parametrize("n", [2, 5, 30, 400])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_where_all_ratios_are_one_the_interval_is_wilsons_with_students_t(n, level) -> None:
    found = modality_dominance(torch.ones(n, 1), torch.zeros(n, 1))
    low, high = found.intervals(level)
    z = t.ppf((1 + level) / 2, n - 1)
    assert float(low) == pytest.approx(n / (n + z * z), abs=1e-5)
    assert float(high) == 1.0


def test_intervals_hold_their_score_and_narrow_with_more_pairs_and_less_spread() -> None:
    wide, narrow = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.6], [0.4]])
    widths = []
    for ratios in (wide.repeat(10, 1), wide.repeat(100, 1), narrow.repeat(100, 1)):
        found = modality_dominance(ratios, 1 - ratios)
        low, high = found.intervals()
        assert low < found.scores < high
        widths.append(float(high - low))
    assert widths[0] > 2.5 * widths[1] > 10 * widths[2] > 0


def test_intervals_without_pairs_and_with_one_promise_nothing() -> None:
    found = modality_dominance(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    low, high = found.intervals()
    assert low[[0, 2]].tolist() == [0.0, 0.0]
    assert high[[0, 2]].tolist() == [1.0, 1.0]
    assert low[1].isnan() and high[1].isnan()
    with pytest.raises(VlmEditError, match="got 95"):
        found.intervals(95)


@pytest.mark.parametrize("zeros", ["skip", "half", "epsilon"])
def test_a_feature_that_never_fires_has_no_interval_under_any_convention(zeros: Zeros) -> None:
    image, text = torch.zeros(20, 2), torch.zeros(20, 2)
    image[:9, 0] = text[5:, 0] = 1.0
    low, high = modality_dominance(image, text, zeros).intervals()
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True]


def test_the_modality_score_is_the_ratio_of_means() -> None:
    image, text = some(30, 4, 1), some(30, 4, 2)
    image[:, 3] = text[:, 3] = 0
    found = modality_dominance(image, text)
    for energy, power in ((False, 1), (True, 2)):
        a, b = (x.double().abs() ** power for x in (image, text))
        expected = (a.mean(0) / (a.mean(0) + b.mean(0))).tolist()
        assert found.modality_score(energy).tolist() == pytest.approx(expected, nan_ok=True)
    assert found.modality_score()[3].isnan()


def test_mutual_information_is_sklearns_in_bits() -> None:
    image, text = some(50, 3, 3), some(50, 3, 4)
    text[:, 1], image[:, 2] = 0, 1.0
    found = modality_dominance(image, text).mutual_information()
    modality = [0] * 50 + [1] * 50
    for k in range(3):
        active = torch.cat([image[:, k], text[:, k]]) != 0
        expected = mutual_info_score(active.numpy(), modality) / math.log(2)
        assert float(found[k]) == pytest.approx(expected, abs=1e-12)


def test_correlation_is_pearsons_of_the_absolute_codes() -> None:
    image, text = some(50, 4, 5), some(50, 4, 6)
    text[:, 1] = -2 * image[:, 1]
    image[:, 2], text[:, 3] = 0.3, 0
    found = modality_dominance(image, text).correlation()
    for k in range(2):
        a, b = image[:, k].double().abs(), text[:, k].double().abs()
        assert float(found[k]) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert found[2:].isnan().all()


def test_what_rounding_leaves_of_a_constant_is_no_variance() -> None:
    values = torch.linspace(0.1, 0.9, 50, dtype=torch.float64).repeat(997, 1)
    text = torch.rand(997, 50)
    assert modality_dominance(values, text).correlation().isnan().all()
    assert modality_dominance(text, values).correlation().isnan().all()


@pytest.mark.parametrize("zeros", ["skip", "half", "epsilon"])
def test_a_score_lies_in_its_own_interval_under_every_convention(zeros: Zeros) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.rand(400, 30, generator=generator) * (torch.rand(400, 30, generator=generator) < 0.2)
        for _ in range(2)
    )
    found = modality_dominance(image, text * torch.linspace(0, 1, 30), zeros)
    low, high = found.intervals()
    assert bool(((low <= found.scores) & (found.scores <= high)).all())
    if zeros == "half":
        ratio = image / (image + text * torch.linspace(0, 1, 30))
        every = ratio.nan_to_num(0.5).double()
        by_hand = every.std(0) / 20 * 1.96
        torch.testing.assert_close((high - low) / 2, by_hand, rtol=0.1, atol=0)
