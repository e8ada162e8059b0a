import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, hypergeom

from vlm_edit.measures.dominance import modality_dominance
from vlm_edit.measures.dominance.flips import LEVELS, flip_p, flipped_sums, level_sums
from vlm_edit.measures.dominance.pairing import fisher_p


def histogram(levels: list[int]) -> torch.Tensor:
    counts = torch.tensor(levels, dtype=torch.int64) + LEVELS
    return counts.bincount(minlength=2 * LEVELS + 1)


def enumerated(levels: list[int]) -> float:
    flips = np.array(list(itertools.product((-1, 1), repeat=len(levels))))
    return float((np.abs(flips @ levels) >= abs(sum(levels))).mean())


def p_of(*features: list[int]) -> list[float]:
    table = torch.stack([histogram(levels) for levels in features])
    return flip_p(table, level_sums(table)[None])[0].tolist()


def test_the_swap_test_is_the_enumeration_of_all_exchanges() -> None:
    rng = np.random.default_rng(0)
    features = [rng.integers(-16, 17, rng.integers(1, 13)).tolist() for _ in range(60)]
    features += [[0], [0, 0, 5], [1], [-16] * 12, [16, -16], [3, 3, -3], [1, 2], [2, 4, 8, 16]]
    np.testing.assert_allclose(p_of(*features), [enumerated(f) for f in features], atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize(("heads", "tails"), [(3, 9), (60, 40), (130, 120), (40, 41), (200, 50)])
def test_equal_differences_make_it_the_sign_test(size: int, heads: int, tails: int) -> None:
    (p,) = p_of([size] * heads + [-size] * tails)
    assert p == pytest.approx(max(1e-12, binomtest(heads, heads + tails).pvalue), abs=1e-11)


def test_no_p_value_is_below_what_the_transform_can_tell() -> None:
    assert p_of([16] * 200, [16] * 5000) == [1e-12, 1e-12]


def test_many_pairs_are_judged_as_random_exchanges_judge_them() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 2.0):
        levels = np.clip(np.rint(rng.normal(shift, 9, 300)), -16, 16).astype(int)
        flips = rng.choice((-1, 1), (40_000, 300))
        drawn = (np.abs(flips @ levels) >= abs(levels.sum())).mean()
        assert p_of(levels.tolist())[0] == pytest.approx(drawn, abs=4 * math.sqrt(0.25 / 40_000))


@pytest.mark.parametrize("n", [300, 1000, 5000])
def test_beyond_the_exact_range_the_sign_test_is_never_undercut(n: int) -> None:
    heads = [n // 2 + round(z * math.sqrt(n) / 2) for z in np.arange(0, 6, 0.25)]
    found = np.array(p_of(*([16] * h + [-16] * (n - h) for h in heads)))
    exact = np.array([binomtest(h, n).pvalue for h in heads])
    assert (found >= exact * 0.985).all()
    assert (found <= exact * 1.3 + 1e-3).all()


def test_the_test_does_not_tell_image_from_text_and_sees_dead_features() -> None:
    image, text = torch.rand(20, 4), torch.rand(20, 4) * 0.4
    image[:, 3] = text[:, 3] = 0
    one, other = modality_dominance(image, text), modality_dominance(text, image)
    assert torch.equal(one.swap_test()[:3], other.swap_test()[:3])
    assert one.swap_test()[3].isnan()
    assert one.cofiring_test()[3].isnan()
    assert one.paired().tolist()[3] is False


def test_exchanges_at_random_have_the_spread_of_their_levels() -> None:
    table = torch.stack([histogram([16] * 50), histogram([3, -3, 7, 0]), histogram([])])
    sums = flipped_sums(table, 4000, 0)
    assert sums.double().mean(0).abs().tolist() == pytest.approx([0, 0, 0], abs=6)
    assert sums.double().var(0).tolist() == pytest.approx([256 * 50, 67, 0], rel=0.08)
    assert torch.equal(sums, flipped_sums(table, 4000, 0))
    assert not torch.equal(sums, flipped_sums(table, 4000, 1))


def test_the_cofiring_test_is_the_hypergeometric_tail() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 5, 40, 1000, 200_000):
        image, text = rng.integers(0, n + 1, 60), rng.integers(0, n + 1, 60)
        image[:20], text[:20] = image[:20] // 30, text[:20] // 30
        least, most = np.maximum(0, image + text - n), np.minimum(image, text)
        near = np.rint(image * text / n + rng.normal(0, 1, 60) * np.sqrt(n) / 4).astype(int)
        both = np.clip(np.where(rng.random(60) < 0.3, most, near), least, most)
        found = fisher_p(*(torch.tensor(x) for x in (both, image, text)), n)
        np.testing.assert_allclose(found, hypergeom.sf(both - 1, n, image, text), rtol=1e-6)
