import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import (
    CLASSES,
    Dominance,
    DominanceAccumulator,
    GapAccumulator,
    Zeros,
    modality_dominance,
    modality_gap,
)
from vlm_edit.measures.dominance.accumulator import _MOST_PAIRS

CONVENTIONS: tuple[Zeros, ...] = ("skip", "half", "epsilon")

seeds = st.integers(0, 2**32 - 1)

# Tests run beside other work: how long an example takes says nothing.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sparse(n: int, m: int, seed: int, density: float = 0.3) -> torch.Tensor:
    """Signed codes, most of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, m, generator=generator)
    return values * (torch.rand(n, m, generator=generator) < density)


def by_hand(image: torch.Tensor, text: torch.Tensor, zeros: str) -> list[float]:
    """The definition, one pair and one feature at a time."""
    scores = []
    for k in range(image.shape[1]):
        ratios = []
        for i in range(len(image)):
            a, b = abs(float(image[i, k])), abs(float(text[i, k]))
            if zeros == "epsilon":
                ratios.append(a / (a + b + 1e-6))
            elif a + b > 0:
                ratios.append(a / (a + b))
            elif zeros == "half":
                ratios.append(0.5)
        alive = bool(image[:, k].any() or text[:, k].any())
        scores.append(sum(ratios) / len(ratios) if alive else math.nan)
    return scores


def identical(a: Dominance, b: Dominance) -> bool:
    """Whether two results agree in every bit."""
    names = ("active", "image_active", "text_active", "both_active")
    return (
        a.n_pairs == b.n_pairs
        and a.zeros == b.zeros
        and a.scores.numpy().tobytes() == b.scores.numpy().tobytes()
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
    )


# The score


@pytest.mark.parametrize("zeros", CONVENTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_score_is_the_definition(zeros: Zeros, dtype: torch.dtype) -> None:
    image, text = sparse(60, 7, 1).to(dtype), sparse(60, 7, 2).to(dtype)
    image[:, 3] = text[:, 3] = 0
    image[:, 4] = 0
    text[:, 5] = 0
    found = modality_dominance(image, text, zeros)
    # Each ratio is off by 2**-42 at most.
    np.testing.assert_allclose(found.scores, by_hand(image, text, zeros), rtol=0, atol=2.4e-13)
    assert found.scores.dtype == torch.float64


def test_a_ratio_is_rounded_to_the_nearest_step_of_the_sum() -> None:
    image, text = torch.arange(1.0, 30.0)[None], torch.ones(1, 29)
    exact = [a / (a + 1) for a in range(1, 30)]
    found = modality_dominance(image, text).scores
    np.testing.assert_allclose(found, exact, rtol=0, atol=2**-42 + 1e-15)


def test_the_counts_are_of_pairs_not_of_streams() -> None:
    image, text = sparse(80, 5, 3), sparse(80, 5, 4)
    found = modality_dominance(image, text)
    for k in range(5):
        a, b = image[:, k] != 0, text[:, k] != 0
        counts = (found.active[k], found.image_active[k], found.text_active[k])
        assert counts == (int((a | b).sum()), int(a.sum()), int(b.sum()))
        assert found.both_active[k] == int((a & b).sum())
    assert found.n_pairs == 80


@pytest.mark.parametrize(("zeros", "score"), [("skip", 0.2), ("half", 0.485), ("epsilon", 0.01)])
def test_zeros_decide_for_equal_mass_at_unequal_rates(zeros: Zeros, score: float) -> None:
    """The image fires on 1 % of pairs with 4, the text on another 4 % with 1."""
    image, text = torch.zeros(1000, 1), torch.zeros(1000, 1)
    image[:10], text[10:50] = 4.0, 1.0
    found = modality_dominance(image, text, zeros)
    assert float(found.scores) == pytest.approx(score, abs=1e-5)
    assert int(found.active) == 50


def test_a_feature_of_one_stream_scores_exactly_one_or_zero() -> None:
    image, text = sparse(50, 2, 5), torch.zeros(50, 2)
    image[:, 1], text[:, 1] = 0, sparse(50, 1, 6)[:, 0]
    assert modality_dominance(image, text).scores.tolist() == [1.0, 0.0]


def test_a_feature_that_never_fires_is_nan_under_every_convention() -> None:
    for zeros in CONVENTIONS:
        found = modality_dominance(torch.zeros(4, 1), torch.zeros(4, 1), zeros)
        assert found.scores.isnan().all()
        assert found.dead.all()


def test_tiny_and_huge_codes_do_not_lose_their_ratio() -> None:
    image = torch.tensor([[1e-44, 3e38, 1e-30]])
    text = torch.tensor([[1e-44, 1e38, 1e-30]])
    scores = modality_dominance(image, text).scores
    np.testing.assert_allclose(scores, [0.5, 0.75, 0.5], atol=1e-7)


# Properties


@st.composite
def cut_points(draw: st.DrawFn, n: int = 40) -> list[int]:
    inner = draw(st.lists(st.integers(0, n), max_size=6))
    return [0, *sorted(inner), n]


@settings(UNHURRIED, max_examples=40)
@given(seeds, cut_points(), st.sampled_from(CONVENTIONS), st.randoms(use_true_random=False))
def test_any_cut_and_any_merge_order_gives_equal_bits(seed, cuts, zeros, random) -> None:
    image, text = sparse(40, 6, seed), sparse(40, 6, seed ^ 1)
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        part = DominanceAccumulator(6, zeros)
        part.update(image[start:end], text[start:end])
        parts.append(part)
    random.shuffle(parts)
    first, *others = parts
    for other in others:
        first.merge(other)
    assert identical(first.compute(), modality_dominance(image, text, zeros))


@settings(UNHURRIED, max_examples=25)
@given(seeds, st.sampled_from(CONVENTIONS))
def test_the_order_of_pairs_changes_no_bit(seed, zeros) -> None:
    image, text = sparse(30, 5, seed), sparse(30, 5, seed ^ 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    assert identical(
        modality_dominance(image[order], text[order], zeros),
        modality_dominance(image, text, zeros),
    )


@settings(UNHURRIED, max_examples=25)
@given(seeds, st.sampled_from(("skip", "half")))
def test_swapping_image_and_text_gives_one_minus_the_score(seed, zeros) -> None:
    image, text = sparse(30, 5, seed), sparse(30, 5, seed ^ 1)
    one, other = modality_dominance(image, text, zeros), modality_dominance(text, image, zeros)
    np.testing.assert_allclose(one.scores, 1 - other.scores, rtol=0, atol=1e-12)
    assert torch.equal(one.image_active, other.text_active)


@settings(UNHURRIED, max_examples=25)
@given(seeds, st.floats(1e-6, 1e6), st.sampled_from(("skip", "half")))
def test_the_scale_and_the_sign_of_codes_change_nothing(seed, factor, zeros) -> None:
    image, text = sparse(30, 5, seed).double(), sparse(30, 5, seed ^ 1).double()
    scaled = modality_dominance(-factor * image, factor * text, zeros)
    plain = modality_dominance(image, text, zeros)
    np.testing.assert_allclose(scaled.scores, plain.scores, rtol=0, atol=1e-12)


@settings(UNHURRIED, max_examples=25)
@given(seeds)
def test_scores_lie_between_zero_and_one(seed) -> None:
    image, text = sparse(9, 6, seed, 0.7), sparse(9, 6, seed ^ 1, 0.1)
    for zeros in CONVENTIONS:
        scores = modality_dominance(image, text, zeros).scores
        alive = scores[~scores.isnan()]
        assert bool(((alive >= 0) & (alive <= 1)).all())


# Classes


def test_classes_are_cut_at_mean_and_standard_deviation_of_live_features() -> None:
    image, text = sparse(50, 40, 7), sparse(50, 40, 8)
    image[:, :6], text[:, 6:12] = 0, 0
    image[:, 12] = text[:, 12] = 0
    found = modality_dominance(image, text)
    live = found.scores[found.scores == found.scores].numpy()
    mu, sd = live.mean(), live.std(ddof=1)
    assert found.mean == pytest.approx(mu, abs=1e-12)
    assert found.sd == pytest.approx(sd, abs=1e-12)
    expected = {name: [] for name in CLASSES}
    for k, score in enumerate(found.scores.tolist()):
        name = "vision" if score > mu + sd else "language" if score < mu - sd else "cross"
        expected["dead" if math.isnan(score) else name].append(k)
    assert found.classes("sd") == expected
    assert all(members for name, members in expected.items() if name != "undecided")


def test_fixed_cuts_include_their_ends_in_cross() -> None:
    image = torch.tensor([[0.0, 2.0, 1.0, 3.0, 9.0, 0.0]])
    text = torch.tensor([[5.0, 3.0, 1.0, 2.0, 1.0, 0.0]])
    found = modality_dominance(image, text)
    low, high = float(found.scores[1]), float(found.scores[3])
    expected = {"vision": [4], "language": [0], "cross": [1, 2, 3]}
    expected |= {"undecided": [], "dead": [5]}
    assert found.classes("fixed", low, high) == expected
    assert found.classes("fixed")["dead"] == [5]


def test_data_without_any_effect_of_modality_still_find_a_sixth_on_each_side() -> None:
    image, text = sparse(400, 512, 9, 0.2), sparse(400, 512, 10, 0.2)
    found = modality_dominance(image, text)
    shares = {name: len(members) / 512 for name, members in found.classes("sd").items()}
    assert shares["vision"] == pytest.approx(0.16, abs=0.04)
    assert shares["cross"] == pytest.approx(0.67, abs=0.06)
    assert shares["language"] == pytest.approx(0.17, abs=0.04)
    assert len(found.classes("fixed")["cross"]) > 500


def test_a_split_dictionary_has_no_language_class_by_sd_but_has_one_by_fixed_cuts() -> None:
    image, text = torch.zeros(10, 20), torch.zeros(10, 20)
    image[:, :10], text[:, 10:] = 1.0, 1.0
    found = modality_dominance(image, text)
    assert found.cuts("sd")[0] < 0
    assert found.classes("sd")["language"] == []
    assert found.classes("fixed")["language"] == list(range(10, 20))


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.4), (-0.1, 0.6), (0.4, 1.1)])
def test_cuts_that_do_not_rise_within_zero_and_one_are_refused(low: float, high: float) -> None:
    found = modality_dominance(torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(VlmEditError, match=f"low={low}, high={high}"):
        found.cuts("fixed", low, high)


def test_an_unknown_rule_for_classes_lists_the_known() -> None:
    found = modality_dominance(torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(VlmEditError, match=r"'quantile'.*'sd', 'fixed'"):
        found.classes("quantile")  # type: ignore[arg-type]


@pytest.mark.parametrize("live", [0, 1])
def test_one_live_feature_or_none_has_no_spread_and_no_warning(live: int) -> None:
    image = torch.tensor([[float(live), 0.0]])
    found = modality_dominance(image, torch.zeros(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(found.sd)
        members = found.classes("fixed")
    assert len(members["dead"]) == 2 - live
    assert len(members["vision"]) == live


# Co-firing


def test_cofiring_is_the_share_over_matched_and_over_all_unmatched_pairs() -> None:
    n, m = 30, 4
    image, text = sparse(n, m, 11) != 0, sparse(n, m, 12) != 0
    text[:15, 0] = image[:15, 0]
    matched, shuffled = modality_dominance(image.float(), text.float()).cofiring()
    for k in range(m):
        both = either = wrong_both = wrong_either = 0
        for i in range(n):
            for j in range(n):
                a, b = bool(image[i, k]), bool(text[j, k])
                if i == j:
                    both, either = both + (a and b), either + (a or b)
                else:
                    wrong_both, wrong_either = wrong_both + (a and b), wrong_either + (a or b)
        assert float(matched[k]) == pytest.approx(both / either, abs=1e-12)
        assert float(shuffled[k]) == pytest.approx(wrong_both / wrong_either, abs=1e-12)
    assert matched[0] > 2 * shuffled[0]


def test_the_score_does_not_see_the_pairing_but_cofiring_does() -> None:
    topic = sparse(200, 50, 13, 0.1).abs()
    image, text = topic, topic * (1 + 0.1 * sparse(200, 50, 14, 1.0).abs())
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    paired, unpaired = modality_dominance(image, text), modality_dominance(image, text[order])
    assert paired.classes("fixed")["cross"] == list(range(50))
    assert len(unpaired.classes("fixed")["cross"]) > 40
    matched, shuffled = paired.cofiring()
    assert bool((matched > 5 * shuffled).all())
    matched, shuffled = unpaired.cofiring()
    assert float(matched.mean()) == pytest.approx(float(shuffled.mean()), rel=0.3)


def test_cofiring_of_dead_features_is_nan() -> None:
    matched, shuffled = modality_dominance(torch.zeros(3, 1), torch.zeros(3, 1)).cofiring()
    assert matched.isnan().all()
    assert shuffled.isnan().all()


def test_cofiring_of_one_pair_has_nothing_to_shuffle() -> None:
    matched, shuffled = modality_dominance(torch.ones(1, 1), torch.ones(1, 1)).cofiring()
    assert matched.tolist() == [1.0]
    assert shuffled.isnan().all()


# What is refused


@pytest.mark.parametrize(
    ("image", "text"),
    [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4, 2), (4, 2)), ((4, 1, 3), (4, 1, 3)), ((3,), (3,))],
)
def test_codes_of_other_shapes_are_refused(image: tuple[int, ...], text: tuple[int, ...]) -> None:
    with pytest.raises(VlmEditError, match=r"must both be \[n, 3\]"):
        DominanceAccumulator(3).update(torch.ones(image), torch.ones(text))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stream", ["image", "text"])
def test_codes_that_are_not_finite_are_refused_and_leave_no_trace(value: float, stream) -> None:
    accumulator = DominanceAccumulator(2)
    accumulator.update(torch.ones(1, 2), torch.ones(1, 2))
    bad = torch.tensor([[1.0, value]])
    codes = (bad, torch.ones(1, 2)) if stream == "image" else (torch.ones(1, 2), bad)
    with pytest.raises(VlmEditError, match="NaN or infinity"):
        accumulator.update(*codes)
    assert accumulator.compute().n_pairs == 1
    assert accumulator.compute().scores.tolist() == [0.5, 0.5]


def test_an_unknown_convention_lists_the_known() -> None:
    with pytest.raises(VlmEditError, match=r"'drop'.*'skip', 'half', 'epsilon'"):
        modality_dominance(torch.ones(1, 1), torch.ones(1, 1), "drop")  # type: ignore[arg-type]


def test_no_pairs_have_no_score() -> None:
    with pytest.raises(VlmEditError, match="no pairs measured"):
        modality_dominance(torch.ones(0, 3), torch.ones(0, 3))


def test_accumulators_of_other_features_or_conventions_do_not_merge() -> None:
    for other in (DominanceAccumulator(4), DominanceAccumulator(3, "half")):
        with pytest.raises(VlmEditError, match="differ"):
            DominanceAccumulator(3).merge(other)


def test_sums_are_exact_up_to_the_limit_and_refused_beyond_by_update_and_by_merge() -> None:
    full = DominanceAccumulator(1)
    full.update(torch.ones(1, 1).expand(_MOST_PAIRS, 1), torch.zeros(1, 1).expand(_MOST_PAIRS, 1))
    assert full.compute().scores.tolist() == [1.0]
    with pytest.raises(VlmEditError, match="more than 2097152 pairs"):
        full.update(torch.ones(1, 1), torch.ones(1, 1))
    one = DominanceAccumulator(1)
    one.update(torch.ones(1, 1), torch.ones(1, 1))
    for first, second in ((full, one), (one, full)):
        with pytest.raises(VlmEditError, match="more than 2097152 pairs"):
            first.merge(second)
    assert full.compute().scores.tolist() == [1.0]


def test_a_result_does_not_change_with_later_updates() -> None:
    accumulator = DominanceAccumulator(1)
    accumulator.update(torch.ones(1, 1), torch.zeros(1, 1))
    early = accumulator.compute()
    accumulator.update(torch.ones(1, 1), torch.ones(1, 1))
    assert early.image_active.tolist() == [1]
    assert early.text_active.tolist() == [0]
    assert early.active.tolist() == [1]
    assert early.scores.tolist() == [1.0]


# The gap


def test_the_gap_is_the_distance_of_the_centroids_of_normalised_embeddings() -> None:
    image, text = sparse(20, 6, 15, 1.0) + 0.5, sparse(20, 6, 16, 1.0)
    means = [
        np.mean([row / np.linalg.norm(row) for row in batch.double().numpy()], axis=0)
        for batch in (image, text)
    ]
    assert modality_gap(image, text) == pytest.approx(np.linalg.norm(means[0] - means[1]), abs=1e-9)


@settings(UNHURRIED, max_examples=20)
@given(seeds, cut_points(), st.randoms(use_true_random=False))
def test_the_gap_does_not_depend_on_the_cut(seed, cuts, random) -> None:
    image, text = sparse(40, 6, seed, 1.0), sparse(40, 6, seed ^ 1, 1.0)
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        part = GapAccumulator()
        part.update(image[start:end], text[start:end])
        parts.append(part)
    random.shuffle(parts)
    first, *others = parts
    for other in others:
        first.merge(other)
    assert first.compute() == pytest.approx(modality_gap(image, text), abs=1e-12)


def test_the_gap_of_the_same_embeddings_is_zero_and_of_opposite_ones_two() -> None:
    image = torch.tensor([[3.0, 0.0], [0.5, 0.0]])
    assert modality_gap(image, 7 * image) == pytest.approx(0.0, abs=1e-12)
    assert modality_gap(image, -image) == pytest.approx(2.0, abs=1e-12)


def test_centroids_are_the_means_of_the_normalised_embeddings() -> None:
    accumulator = GapAccumulator()
    accumulator.update(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[0.0, -1.0]] * 2))
    centroids = accumulator.centroids()
    assert centroids["image"].tolist() == [0.5, 0.5]
    assert centroids["text"].tolist() == [0.0, -1.0]


def test_the_gap_of_no_embeddings_is_an_error() -> None:
    with pytest.raises(VlmEditError, match="no embeddings"):
        GapAccumulator().compute()
    with pytest.raises(VlmEditError, match="no embeddings"):
        modality_gap(torch.ones(0, 3), torch.ones(0, 3))


@pytest.mark.parametrize("text", [(2, 4), (4, 3)])
def test_the_gap_of_embeddings_of_other_shapes_is_refused(text: tuple[int, int]) -> None:
    with pytest.raises(VlmEditError, match=r"\(4, 4\)"):
        modality_gap(torch.ones(4, 4), torch.ones(text))
