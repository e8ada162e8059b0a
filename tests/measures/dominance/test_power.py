"""Whether so many pairs give a label as often as is said."""

import math

import pytest
import torch

from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import Dominance, how_many_pairs, modality_dominance


def tossed(score: float, active: int, features: int, seed: int = 0) -> Dominance:
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(active, features, generator=generator) < score).float()
    return modality_dominance(image, 1 - image)


def exact(score: float, active: int = 1000) -> Dominance:
    image = (torch.arange(active)[:, None] < active * score).float()
    return modality_dominance(image, 1 - image)


@pytest.mark.parametrize("power", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("score", [0.15, 0.25, 0.5, 0.7, 0.8])
def test_so_many_active_pairs_give_the_label_by_interval(score: float, power: float) -> None:
    needed = math.ceil(float(how_many_pairs(exact(score), power).active))
    kind = "cross" if score == 0.5 else "vision" if score > 0.5 else "language"
    got = len(tossed(score, needed, 2000).classes()[kind]) / 2000
    # Of few pairs the score has few values, and the power leaps.
    assert abs(got - power) < (0.08 if needed >= 30 else 0.2)


@pytest.mark.parametrize(("score", "needed"), [(0.8, 27), (0.7, 68), (0.6, 260)])
def test_the_swap_test_needs_what_the_review_found_by_simulation(score, needed) -> None:
    found = float(how_many_pairs(exact(score), rule="significant").active)
    assert abs(found - needed) < 0.06 * needed
    p = tossed(score, round(found), 2000).swap_test()
    assert abs(float((p <= 0.02).double().mean()) - 0.8) < 0.08


def test_continuous_ratios_need_fewer_pairs_than_all_or_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    share = 0.7 + 0.2 * (torch.rand(400, 1, generator=generator) - 0.5)
    smooth = modality_dominance(share, 1 - share)
    for rule in ("interval", "significant"):
        few, many = (how_many_pairs(d, rule=rule) for d in (smooth, exact(0.7)))  # type: ignore[arg-type]
        assert float(few.active) < 0.2 * float(many.active)


def test_pairs_are_active_ones_over_the_rate() -> None:
    image = (torch.arange(1000)[:, None] < 80).float()
    text = (torch.arange(1000)[:, None] < 100).float() - image
    needed = how_many_pairs(modality_dominance(image, text))
    assert float(needed.pairs) == pytest.approx(10 * float(needed.active))
    # Five alike captions of each image say as much as one: as many images are needed.
    five = modality_dominance(
        *(codes.repeat_interleave(5, 0) for codes in (image, text)),
        images=torch.arange(1000).repeat_interleave(5),
    )
    assert float(how_many_pairs(five).pairs) == pytest.approx(float(needed.pairs), rel=1e-4)


def test_a_score_on_a_cut_and_a_dead_feature_need_more_than_can_be_had() -> None:
    image = torch.cat([(torch.arange(100)[:, None] < n).float() for n in (60, 40, 95)], 1)
    found = modality_dominance(
        torch.cat([image, torch.zeros(100, 1)], 1), torch.cat([1 - image, torch.zeros(100, 1)], 1)
    )
    needed = how_many_pairs(found)
    assert needed.pairs.isinf().tolist() == [True, True, False, True]
    assert needed.decided.tolist() == [False, False, True, False]
    assert "3 of 4 features are undecided by 100 images" in str(needed)
    assert "3 lie on a cut or are dead" in str(needed)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"power": 1.0}, "a power lies between"),
        ({"power": 0.2}, "a power lies between"),
        ({"rule": "sd"}, "no rule 'sd' that pairs could prove"),
        ({"alpha": 0.7}, "the error of a label"),
    ],
)
def test_other_questions_are_refused(options, text: str) -> None:
    with pytest.raises(VlmEditError, match=text):
        how_many_pairs(exact(0.7), **options)
