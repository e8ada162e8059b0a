import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Dictionary, VlmEditError, zoo
from vlm_edit.edits import Splice
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.controls import (
    activity,
    activity_matched,
    activity_paired,
    deletion_curve,
    deletion_norms,
    norm_matched,
    random_features,
    turned,
)

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32 - 1)


def sparse_codes(n: int, m: int, seed: int, share: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, m, generator=generator)
    return codes * (torch.rand(n, m, generator=generator) < share)


# Which features


@UNHURRIED
@given(st.integers(0, 30), st.integers(1, 4), seeds)
def test_random_features_are_as_many_and_live_and_each_once(size, draws, seed) -> None:
    live = list(range(3, 93, 3))
    drawn = random_features(range(size), live, draws, seed)
    assert len(drawn) == draws
    for features in drawn:
        assert len(features) == len(set(features)) == size and features == sorted(features)
        assert set(features) <= set(live)


def test_every_live_feature_is_drawn_equally_often() -> None:
    drawn = random_features([0, 1], range(10), draws=5000)
    counts = np.bincount([k for features in drawn for k in features], minlength=10)
    # binomial, 5000 draws with chance .2: sd 28
    assert abs(counts - 1000).max() < 4 * 28.3
    assert drawn[0] != drawn[1]


@UNHURRIED
@given(seeds)
def test_features_matched_by_activity_stop_where_the_goal_is_reached(seed) -> None:
    rng = np.random.default_rng(seed)
    values = torch.tensor(rng.exponential(size=30))
    goal = float(values[:6].sum())
    for features in activity_matched(range(6), range(6, 30), values, 3, seed % 1000):
        sums = [float(values[features].sum() - values[k]) for k in features]
        assert float(values[features].sum()) >= goal or len(features) == 24
        assert min(sums) < goal  # without the last taken it was not reached


def test_matched_features_are_as_active_as_those_they_match() -> None:
    values = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    (chosen,) = activity_matched([1, 2], [1, 2, 3, 4, 5], values, draws=1)
    assert float(values[chosen].sum()) == 2.0


def test_features_that_never_reach_the_goal_are_all_taken() -> None:
    assert activity_matched([0], [1, 2], torch.tensor([9.0, 1.0, 1.0]), draws=1) == [[1, 2]]
    codes = torch.tensor([[9.0, 1.0, 1.0]])
    assert norm_matched([0], [1, 2], codes, torch.eye(3), draws=1) == [[1, 2]]


def test_features_matched_by_norm_move_the_states_as_far_as_the_given_ones() -> None:
    codes, decoder = sparse_codes(200, 300, seed=1), torch.randn(300, 16)
    goal = float(deletion_norms(codes, decoder, range(60)).mean())
    drawn = norm_matched(range(60), range(60, 300), codes, decoder, draws=4, seed=3)
    assert len({tuple(features) for features in drawn}) == 4
    for features in drawn:
        assert float(deletion_norms(codes, decoder, features).mean()) == pytest.approx(
            goal, rel=0.02
        )
        assert min(features) >= 60


def test_of_the_sets_around_the_crossing_the_nearer_one_is_taken() -> None:
    # Orthogonal rows, all active in the one example: c features move it by sqrt(c).
    decoder = torch.eye(20)
    for squared, expected in ((4.0, 4), (6.4, 6), (6.6, 7)):  # halfway in norm: 6.49
        codes = torch.ones(1, 20)
        codes[0, 0] = squared**0.5
        (features,) = norm_matched([0], range(1, 20), codes, decoder, draws=1)
        assert len(features) == expected, squared


def test_nothing_is_matched_by_nothing() -> None:
    codes = torch.tensor([[0.0, 0.0, 1.0]])
    assert norm_matched([], [0, 1, 2], codes, torch.eye(3), draws=3) == [[], [], []]
    assert norm_matched([0], [0, 1, 2], codes, torch.eye(3), draws=3) == [[], [], []]


def test_sets_that_match_parts_of_a_class_are_nested() -> None:
    codes, decoder = sparse_codes(100, 200, seed=2), torch.randn(200, 8)
    part = norm_matched(range(10), range(50, 200), codes, decoder, draws=3)
    whole = norm_matched(range(50), range(50, 200), codes, decoder, draws=3)
    assert all(set(a) < set(b) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: random_features([1, 2], [1]), "2 features are to be matched, and there are 1"),
        (lambda: random_features([1], [1], draws=0), "draws is 0"),
        (lambda: activity_matched([9], [0], torch.ones(3)), "feature 9 is not there"),
        (lambda: activity_matched([0], [-1], torch.ones(3)), "feature -1 is not there"),
        (lambda: activity_matched([0], [], torch.ones(3)), "there are 0 to choose from"),
        (lambda: norm_matched([3], [0], torch.ones(1, 3), torch.eye(3)), "features 0 to 2"),
        (lambda: deletion_norms(torch.ones(1, 3), torch.eye(2), [0]), "decoder of as many rows"),
        (lambda: deletion_norms(torch.ones(1, 3), torch.eye(3), [3]), "feature 3 is not there"),
    ],
)
def test_what_cannot_be_matched_is_refused(call, said) -> None:
    with pytest.raises(VlmEditError, match=said):
        call()


# How far a deletion moves


@UNHURRIED
@given(st.integers(1, 20), st.integers(1, 12), seeds)
def test_the_norm_of_a_deletion_is_that_of_the_splice(n, size, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    dictionary, x = zoo.load_dictionary("joint"), torch.randn(n, 192, generator=generator)
    features = torch.randperm(dictionary.n_features, generator=generator)[:size].tolist()
    moved = Splice.of(dictionary, [Ablate(features)])(x, stream="image") - x
    codes = dictionary.encode(x, "image")
    _, scale = dictionary.encoder.normalise(x)
    expected = moved.norm(dim=1) / (1 if scale is None else scale.squeeze(1))
    for given_codes in (codes, SparseCodes.of(codes)):
        found = deletion_norms(given_codes, dictionary.decoder, features)
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-5)


def test_the_norm_is_the_same_when_summed_in_parts(monkeypatch) -> None:
    codes, decoder = sparse_codes(40, 30, seed=3), torch.randn(30, 5)
    whole = deletion_norms(codes, decoder, range(0, 30, 2))
    monkeypatch.setattr("vlm_edit.measures.controls.features._SCRATCH", 1)
    torch.testing.assert_close(deletion_norms(codes, decoder, range(0, 30, 2)), whole)


def test_activity_is_the_mean_of_absolute_codes_and_nan_of_none() -> None:
    codes = sparse_codes(50, 9, seed=4)
    torch.testing.assert_close(activity(codes), codes.double().abs().mean(0))
    torch.testing.assert_close(activity(SparseCodes.of(codes)), codes.double().abs().mean(0))
    assert bool(activity(torch.zeros(0, 3)).isnan().all())


def test_turned_rows_change_each_state_by_as_much_in_another_direction() -> None:
    dictionary, x = zoo.load_dictionary("joint"), torch.randn(5, 192) * 5
    one, other, third = (
        Splice.of(d, [Ablate(range(200))])(x, stream="image") - x
        for d in (dictionary, turned(dictionary, 1), turned(dictionary, 2))
    )
    torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1))
    for a, b in ((one, other), (one, third), (other, third)):
        assert torch.nn.functional.cosine_similarity(a, b, dim=1).abs().max() < 0.5
    assert torch.equal(turned(dictionary, 1).decoder, turned(dictionary, 1).decoder)


# Deletion curves


def planted(n: int = 200, m: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, decoder and labels: the first ten features are the label's."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(n, m, generator=generator)
    label = torch.randint(2, (n,), generator=generator)
    codes[:, :10] += label[:, None] * torch.linspace(2, 0.5, 10)
    decoder = torch.linalg.qr(torch.randn(m, m, generator=generator))[0]
    return codes, decoder, label


def reader(codes: torch.Tensor, label: torch.Tensor):
    calls: list[list[int]] = []

    def read(deleted: list[int]) -> torch.Tensor:
        calls.append(deleted)
        kept = codes.clone()
        kept[:, deleted] = 0
        total = kept.sum(1)
        return (total > total.median()) == label.bool()

    return read, calls


def test_a_class_that_carries_the_metric_falls_faster_than_both_controls() -> None:
    codes, decoder, label = planted()
    read, _ = reader(codes, label)
    curve = deletion_curve(read, range(10), range(60), codes, decoder, draws=4)
    for control in ("size", "norm"):
        area = curve.area(control)
        assert 0.05 < area.low < area.value < area.high
    assert set(curve.controls) == {"size", "norm"}
    assert curve.controls["size"].shape == (4, 6, 200)


def test_a_random_class_is_no_different_from_its_controls() -> None:
    codes, decoder, label = planted()
    read, _ = reader(codes, label)
    curve = deletion_curve(read, range(20, 30), range(10, 60), codes, decoder, draws=6)
    for control in ("size", "norm"):
        area = curve.area(control)
        assert area.low < 0 < area.high


def test_features_are_deleted_strongest_first_and_controls_match_at_every_step() -> None:
    codes, decoder, label = planted()
    codes[:, 4] *= -50  # by |code|
    read, calls = reader(codes, label)
    fractions = (0, 0.1, 0.5, 1)
    curve = deletion_curve(read, range(10), range(60), codes, decoder, fractions=fractions, draws=2)
    by_strength = codes.abs().mean(0)[:10].argsort(descending=True).tolist()
    assert curve.counts == (0, 1, 5, 10) and by_strength[0] == 4
    for count in curve.counts:
        assert sorted(by_strength[:count]) in calls
    assert curve.control_counts["size"].tolist() == [[0, 1, 5, 10]] * 2
    for draw in range(2):
        for i, count in enumerate(curve.counts):
            matched = norm_matched(by_strength[:count], range(60), codes, decoder, draws=2)[draw]
            assert curve.control_counts["norm"][draw, i] == len(matched)
            assert torch.equal(curve.controls["norm"][draw, i], read(matched).double())


def test_random_sets_of_a_draw_grow() -> None:
    codes, _, label = planted()
    read, calls = reader(codes, label)
    deletion_curve(read, range(10), range(10, 60), codes, fractions=(0, 0.5, 1), draws=1)
    half, whole = (set(c) for c in calls if c and min(c) >= 10)
    assert half < whole and (len(half), len(whole)) == (5, 10)


def test_the_metric_is_asked_once_per_set() -> None:
    codes, decoder, label = planted()
    read, calls = reader(codes, label)
    deletion_curve(read, range(10), range(60), codes, decoder, draws=3)
    assert len({tuple(c) for c in calls}) == len(calls)
    assert calls[0] == []


def test_without_a_decoder_there_is_no_control_by_norm() -> None:
    codes, _, label = planted()
    read, _ = reader(codes, label)
    curve = deletion_curve(read, range(10), range(60), SparseCodes.of(codes))
    assert list(curve.controls) == ["size"]
    with pytest.raises(VlmEditError, match=r"no control 'norm': there are \['size'\]"):
        curve.area("norm")


def test_the_area_is_numpys_trapezoid_of_the_mean_curves_over_the_whole_width() -> None:
    codes, decoder, label = planted()
    read, _ = reader(codes, label)
    fractions = (0.2, 0.3, 0.8)
    curve = deletion_curve(read, range(10), range(60), codes, decoder, fractions=fractions)
    ahead = (curve.controls["norm"].mean(2).mean(0) - curve.values.mean(1)).numpy()
    expected = sum(
        (b - a) * (ahead[i] + ahead[i + 1]) / 2
        for i, (a, b) in enumerate(zip(fractions, fractions[1:], strict=False))
    )
    assert curve.area("norm").value == pytest.approx(expected / 0.6, abs=1e-12)


def test_the_interval_of_the_area_covers_what_cases_and_draws_vary() -> None:
    codes, decoder, label = planted()
    read, _ = reader(codes, label)
    curve = deletion_curve(read, range(10), range(60), codes, decoder, draws=8)
    ahead = (curve.controls["size"] - curve.values).numpy()
    x = np.array(curve.fractions)
    areas = ((ahead[:, 1:] + ahead[:, :-1]) / 2 * np.diff(x)[None, :, None]).sum(1)
    rng = np.random.default_rng(5)
    drawn = [
        areas[np.ix_(rng.integers(0, 8, 8), rng.integers(0, 200, 200))].mean() for _ in range(3000)
    ]
    found = curve.area("size")
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01
    )
    assert found.n == 200


def test_the_rows_hold_the_means_with_draws_from_lowest_to_highest() -> None:
    codes, decoder, label = planted()
    read, _ = reader(codes, label)
    curve = deletion_curve(read, range(10), range(60), codes, decoder, draws=3)
    row = curve.rows()[-1]
    assert (row["fraction"], row["features"]) == (1.0, 10)
    assert row["class"].value == pytest.approx(float(curve.values[-1].mean()))
    assert row["class"].low < row["class"].value < row["class"].high
    means = curve.controls["size"][:, -1].mean(1)
    told = (row["size"].low, row["size"].value, row["size"].high, row["size"].n)
    assert told == pytest.approx((float(means.min()), float(means.mean()), float(means.max()), 3))
    assert row["size features"] == 10
    lines = str(curve).splitlines()
    assert lines[0].split() == ["fraction", "features", "class", "size", "norm"]
    assert len(lines) == 1 + 6 + 2 and str(row["class"]) in lines[6]
    assert lines[-1].startswith("area between norm and class: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": []}, "the class has no feature"),
        ({"fractions": (0,)}, "fractions must rise"),
        ({"fractions": (0, 0.5, 0.5)}, "fractions must rise"),
        ({"fractions": (0, 1.1)}, "fractions must rise"),
        ({"fractions": (-0.1, 1)}, "fractions must rise"),
        ({"draws": 0}, "draws is 0"),
        ({"live": [0]}, "2 features are to be matched"),
        ({"features": [0, 9]}, "feature 9 is not there"),
        ({"metric": lambda deleted: [1.0] * (len(deleted) + 1)}, "of the same cases each time"),
        ({"metric": lambda _: 1.0}, "one value per case"),
        ({"metric": lambda _: []}, "one value per case"),
        ({"metric": lambda _: [math.nan]}, "not finite with 0 features deleted"),
    ],
)
def test_a_curve_of_nothing_or_of_changing_cases_is_refused(change, said) -> None:
    asked = {
        "metric": lambda _: [1.0, 0.0],
        "features": [0, 1],
        "live": [0, 1, 2],
        "codes": torch.ones(2, 4),
    }
    with pytest.raises(VlmEditError, match=said):
        deletion_curve(**{**asked, **change})


def test_a_dictionary_of_neurons_can_be_turned_too() -> None:
    neurons = Dictionary.identity(4)
    assert not torch.allclose(turned(neurons, 0).decoder, neurons.decoder, atol=0.1)


def test_each_given_feature_is_matched_by_one_of_those_nearest_in_activity() -> None:
    generator = torch.Generator().manual_seed(3)
    strength = torch.rand(200, generator=generator).double()
    chosen = torch.randperm(200, generator=generator)[:12].tolist()
    live = [k for k in range(200) if k % 7]
    drawn = activity_paired(chosen, live, strength, seed=5, nearest=4)
    left = [k for k in live if k not in chosen]
    for feature, other in zip(chosen, drawn, strict=True):
        apart = sorted(abs(float(strength[k] - strength[feature])) for k in left)
        assert abs(float(strength[other] - strength[feature])) <= apart[3]
        left.remove(other)  # which fails where one is drawn twice, or is a given one
    assert drawn == activity_paired(chosen, live, strength, seed=5, nearest=4)
    assert drawn != activity_paired(chosen, live, strength, seed=6, nearest=4)


def test_features_without_enough_others_cannot_be_matched_one_by_one() -> None:
    with pytest.raises(VlmEditError, match="2 features are to be matched, and there are 1"):
        activity_paired([0, 1], range(3), torch.ones(3))
    with pytest.raises(VlmEditError, match="feature 3 is not there"):
        activity_paired([0], range(4), torch.ones(3))
    with pytest.raises(VlmEditError, match="nearest is 0"):
        activity_paired([0], range(3), torch.ones(3), nearest=0)
