import numpy as np
import pytest
import torch

import planted as planted_room
from planted import planted_pairs
from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import modality_dominance

TRUTH = torch.tensor([0.0, 0.1, 0.5, 0.5, 0.8, 1.0])


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rate", [0.02, 0.4, 1.0])
def test_scores_and_rates_are_those_planted(noise: float, paired: bool, rate: float) -> None:
    n = 20_000
    planted = planted_pairs(n, TRUTH, rate, noise, paired=paired, seed=3)
    found = modality_dominance(planted.image, planted.text)
    spread = 5 * np.sqrt(0.25 / (rate * n))
    np.testing.assert_allclose(found.scores, TRUTH, atol=spread)
    np.testing.assert_allclose(found.active / n, rate, atol=5 * np.sqrt(rate / n))
    assert found.scores[0] == 0 and found.scores[5] == 1


def test_noise_is_the_share_of_the_widest_spread() -> None:
    found = modality_dominance(*_codes(planted_pairs(40_000, TRUTH, 1.0, noise=0.3)))
    sums, squares = found.ratios[:2].double() / 2**41 / 40_000
    widest = (TRUTH * (1 - TRUTH)).double()
    np.testing.assert_allclose(squares - sums**2, 0.3 * widest, atol=0.003)


def test_unpaired_features_fire_in_image_and_text_independently() -> None:
    n, truth = 40_000, torch.tensor([0.2, 0.5, 0.7])
    planted = planted_pairs(n, truth, 0.4, 0.3, paired=torch.tensor([False, False, True]))
    found = modality_dominance(*_codes(planted))
    chance = found.image_active.double() * found.text_active / n
    assert found.both_active[:2].tolist() == pytest.approx(chance[:2].tolist(), rel=0.05)
    assert found.both_active[2] > 2 * chance[2]


def test_strength_is_the_mean_mass_of_active_pairs() -> None:
    planted = planted_pairs(20_000, TRUTH, 0.5, strength=3.0)
    found = modality_dominance(*_codes(planted))
    np.testing.assert_allclose(found.masses[:2].sum(0) / found.active, 3.0, rtol=0.05)


def test_pairs_drawn_in_many_parts_follow_each_other(monkeypatch) -> None:
    monkeypatch.setattr(planted_room, "_CELLS", 60)
    planted = planted_pairs(95, TRUTH, 1.0)
    assert planted.text.rows.tolist() == sorted(planted.text.rows.tolist())
    assert set(planted.text.rows.tolist()) == set(range(95))
    found = modality_dominance(*_codes(planted))
    assert found.active.tolist() == [95] * 6


def test_a_seed_plants_the_same_codes_and_another_seed_others() -> None:
    one, same, other = (planted_pairs(50, TRUTH, 0.5, seed=seed).image for seed in (1, 1, 2))
    assert torch.equal(one.dense(), same.dense())
    assert not torch.equal(one.dense(), other.dense())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dominance": torch.tensor([1.2])}, "dominance within"),
        ({"rate": 0.0}, "rate within"),
        ({"rate": torch.ones(3)}, r"one rate or \[6\]"),
        ({"noise": 1.5}, "noise within"),
        ({"strength": 0.0}, "strength above 0"),
        ({"n_pairs": 0}, "one pair or more"),
    ],
)
def test_what_cannot_be_planted_is_refused(options, message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        planted_pairs(**{"n_pairs": 5, "dominance": TRUTH, **options})


def _codes(planted):
    return planted.image, planted.text
