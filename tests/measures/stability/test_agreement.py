"""Agreement of two classifications, against counts made one by one."""

import math

import pytest
import torch

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.dominance import CLASSES, modality_dominance
from vlm_edit.measures.stability import agreement, class_numbers

GENERATOR = torch.Generator().manual_seed(0)


def test_figures_are_those_counted_feature_by_feature() -> None:
    one = torch.randint(0, 5, (300,), generator=GENERATOR)
    noise = torch.randint(0, 5, (300,), generator=GENERATOR)
    other = torch.where(torch.rand(300, generator=GENERATOR) < 0.5, one, noise)
    a, b = one.tolist(), other.tolist()
    same = sum(x == y for x, y in zip(a, b, strict=True)) / 300
    chance = sum(a.count(k) / 300 * b.count(k) / 300 for k in range(5))
    found = agreement(one, other)
    assert found.share == pytest.approx(same)
    assert found.kappa == pytest.approx((same - chance) / (1 - chance))
    for place, name in enumerate(CLASSES):
        mine, theirs = ({i for i, k in enumerate(side) if k == place} for side in (a, b))
        assert found.jaccard[name] == pytest.approx(len(mine & theirs) / len(mine | theirs))
    both = [(x, y) for x, y in zip(a, b, strict=True) if x < 3 and y < 3]
    assert found.decided == pytest.approx(len(both) / 300)
    assert found.conflicts == pytest.approx(sum(x != y for x, y in both) / len(both))


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    one, other = (torch.randint(0, 3, (50,), generator=GENERATOR) for _ in range(2))
    assert agreement(one, other).kappa == pytest.approx(metrics.cohen_kappa_score(one, other))


def test_what_nothing_can_be_said_of_is_nan() -> None:
    alike = agreement(torch.full((4,), 3), torch.full((4,), 3))
    assert alike.share == 1
    assert math.isnan(alike.kappa) and math.isnan(alike.conflicts)
    assert math.isnan(alike.jaccard["vision"]) and alike.jaccard["undecided"] == 1


def test_numbers_of_classes_are_their_places() -> None:
    dominance = modality_dominance(torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[0.0, 1, 1, 0]]))
    assert class_numbers(dominance, "fixed").tolist() == [0, 1, 2, 4]


def test_classes_of_other_features_are_refused() -> None:
    with pytest.raises(VlmEditError, match=r"two \[m\]"):
        agreement(torch.zeros(3).long(), torch.zeros(4).long())
    with pytest.raises(VlmEditError, match=r"two \[m\]"):
        agreement(torch.zeros(0).long(), torch.zeros(0).long())
