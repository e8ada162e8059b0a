"""Images, and not pairs, are the sample: intervals, tests and classes with several captions."""

import itertools
import math

import pytest
import torch
from captions import KINDS, captioned
from scipy.stats import t as student

from results import calibration
from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import (
    Dominance,
    DominanceAccumulator,
    modality_dominance,
    null_histogram,
)
from vlm_edit.measures.dominance.images import drawn

COUNTS = (1, 3, 2, 5, 1, 4, 2, 2)


def drawn_codes(seed: int = 0, features: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return codes of images with uneven numbers of captions, not one below the other."""
    generator = torch.Generator().manual_seed(seed)
    images = [i for i, count in enumerate(COUNTS * 5) for _ in range(count)]
    images = [images[i] * 7 - 40 for i in torch.randperm(len(images), generator=generator)]
    names = sorted(set(images))
    seen = torch.rand(len(names), features, generator=generator)
    seen = seen * (torch.rand(seen.shape, generator=generator) < 0.5)
    image = seen[[names.index(i) for i in images]]
    text = torch.rand(len(images), features, generator=generator)
    return image, text * (torch.rand(text.shape, generator=generator) < 0.4), images


def by_hand(image: torch.Tensor, text: torch.Tensor, images: list[int], zeros: str, level: float):
    """Compute the interval of one feature pair by pair, by the formula of a ratio of sums."""
    pairs = [(float(a), float(b), i) for a, b, i in zip(image, text, images, strict=True)]
    numbers = {i: [] for i in images}
    for a, b, i in pairs:
        if a + b > 0:
            numbers[i].append(a / (a + b))
        elif zeros == "half":
            numbers[i].append(0.5)
    groups = [some for some in numbers.values() if some]
    every = list(itertools.chain(*groups))
    n, g, mean = len(every), len(groups), sum(every) / len(every)
    spread = sum((sum(some) - mean * len(some)) ** 2 for some in groups) * g / (g - 1)
    size = sum(len(some) ** 2 for some in groups) / n
    z = 1.959963984540054 if level == 0.95 else 1.6448536269514722
    many = n / size
    share = (mean * many + z**2 / 2) / (many + z**2)
    weight = share * (1 - share)
    most = mean * (1 - mean) * many * g / (g - 1)
    h = float(student.ppf(0.5 + level / 2, g - 1)) ** 2 / many
    h *= (spread / size**2 + weight) / (most + weight)
    half = math.sqrt(h * mean * (1 - mean) + h * h / 4)
    return (mean + h / 2 - half) / (1 + h), (mean + h / 2 + half) / (1 + h)


@pytest.mark.parametrize("zeros", ["skip", "half"])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_are_those_of_a_ratio_of_sums_over_images(zeros, level) -> None:
    image, text, images = drawn_codes()
    low, high = modality_dominance(image, text, zeros, images=images).intervals(level)
    for k in range(image.shape[1]):
        expected = by_hand(image[:, k], text[:, k], images, zeros, level)
        assert (float(low[k]), float(high[k])) == pytest.approx(expected, abs=2e-5)


def test_epsilon_counts_images_too() -> None:
    image, text, images = drawn_codes()
    found = modality_dominance(image, text, "epsilon", images=images)
    none = modality_dominance(image, text, "epsilon")
    width, narrow = (d.intervals()[1] - d.intervals()[0] for d in (found, none))
    assert bool((width > narrow).all())


def test_the_scores_are_those_of_all_captions() -> None:
    image, text, images = drawn_codes()
    for zeros in ("skip", "half", "epsilon"):
        found, plain = (modality_dominance(image, text, zeros, images=i) for i in (images, None))
        assert torch.equal(found.scores, plain.scores) and torch.equal(found.counts, plain.counts)
        assert (found.n_pairs, found.images) == (len(images), 40)


def test_tests_and_cofiring_are_of_one_caption_of_each_image() -> None:
    image, text, images = drawn_codes()
    found = modality_dominance(image, text, images=images)
    # Some choice of one caption each gives all of it; the draw itself is found by its counts.
    choices = [drawn_pairs(images, seed) for seed in range(200)]
    alone = [modality_dominance(image[rows], text[rows]) for rows in choices]
    assert found.drawn is not None
    assert int(found.drawn[0].sum()) == int(alone[0].counts[0].sum())  # images do not depend on it
    rows = chosen_rows(images, 0)
    same = modality_dominance(image[rows], text[rows])
    for one, other in (
        (found.swap_test(), same.swap_test()),
        (found.cofiring_test(), same.cofiring_test()),
        (torch.stack(found.cofiring()), torch.stack(same.cofiring())),
        (torch.tensor(null_histogram(found, 10)), torch.tensor(null_histogram(same, 10))),
    ):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    assert found.expected_classes(draws=20) == same.expected_classes(draws=20)


def drawn_pairs(images: list[int], seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for row in torch.randperm(len(images), generator=generator).tolist():
        rows[images[row]] = row
    return sorted(rows.values())


def chosen_rows(images: list[int], seed: int) -> list[int]:
    """Return which pairs are drawn, told by a feature that every text has at another strength."""
    strength = torch.arange(1.0, len(images) + 1)[:, None]
    accumulator = DominanceAccumulator(1, seed=seed)
    accumulator.update(torch.zeros(len(images), 1), strength, images)
    assert accumulator._drawn is not None
    total = float(accumulator._drawn._masses[1, 0])
    rows = []
    for row in range(len(images)):  # without each, is it missed?
        less = strength.clone()
        less[row] = 0
        again = DominanceAccumulator(1, seed=seed)
        again.update(torch.zeros(len(images), 1), less, images)
        assert again._drawn is not None
        if float(again._drawn._masses[1, 0]) < total:
            rows.append(row)
    assert len(rows) == len(set(images)) == len({images[row] for row in rows})
    return rows


def test_another_seed_draws_other_captions_and_each_as_often() -> None:
    images = [i // 5 for i in range(5000)]
    places = torch.stack([drawn(images, seed) % 5 for seed in range(40)])
    assert len(places.unique(dim=0)) == 40
    counts = places.flatten().bincount()
    assert bool(((counts - 8000).abs() < 5 * math.sqrt(8000 * 0.8)).all())


def test_nothing_changes_where_every_image_comes_once() -> None:
    image, text, _ = drawn_codes()
    plain = modality_dominance(image, text)
    named = modality_dominance(image, text, images=torch.randperm(len(image)) - 9)
    for one, other in zip(plain.intervals(), named.intervals(), strict=True):
        assert torch.equal(one, other)
    assert named.n_images is None and named.images == len(image)
    assert plain.expected_classes(draws=5) == named.expected_classes(draws=5)


@pytest.mark.parametrize("cuts", [(1,), (7,), (30,), (3, 9, 30)])
def test_cuts_merges_and_saved_states_change_no_bit(cuts: tuple[int, ...]) -> None:
    image, text, images = drawn_codes()
    names = sorted(set(images))
    whole = DominanceAccumulator(image.shape[1])
    whole.update(image, text, images)
    parts = []
    for first, last in itertools.pairwise((0, *cuts, len(names))):
        rows = [i for i, name in enumerate(images) if name in names[first:last]]
        part = DominanceAccumulator(image.shape[1])
        part.update(image[rows], text[rows], [images[i] for i in rows])
        again = DominanceAccumulator(image.shape[1])
        again.load_state_dict(part.state_dict())
        parts.append(again)
    running = DominanceAccumulator(image.shape[1])
    for first, last in itertools.pairwise((0, *cuts, len(names))):
        rows = [i for i, name in enumerate(images) if name in names[first:last]]
        running.update(image[rows], text[rows], [images[i] for i in rows])
    for part in parts[1:]:
        parts[0].merge(part)
    for found in (parts[0].compute(), running.compute()):
        expect_equal(found, whole.compute())


def expect_equal(one: Dominance, other: Dominance) -> None:
    for a, b in zip(one.intervals(), other.intervals(), strict=True):
        assert torch.equal(a, b)
    assert one.classes() == other.classes() and one.images == other.images
    assert torch.equal(one.levels, other.levels) and torch.equal(one.scores, other.scores)
    assert one.captions == other.captions
    assert one.drawn is not None and other.drawn is not None
    assert torch.equal(one.drawn, other.drawn)


def test_five_captions_that_say_the_same_say_no_more_than_one() -> None:
    image, text, _ = drawn_codes(features=40)
    once = modality_dominance(image, text)
    five = modality_dominance(
        *(codes.repeat_interleave(5, 0) for codes in (image, text)),
        images=torch.arange(len(image)).repeat_interleave(5),
    )
    assert torch.allclose(once.scores, five.scores, equal_nan=True)
    assert torch.equal(once.swap_test(), five.swap_test())
    assert torch.equal(once.cofiring_test(), five.cofiring_test())
    for a, b in zip(once.intervals(), five.intervals(), strict=True):
        assert torch.allclose(a, b, atol=1e-8)
    assert once.classes() == five.classes()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([0, 0], "a whole number for each of 3 pairs"),
        (torch.zeros(3), "float32"),
        (torch.zeros(3, dtype=torch.bool), "bool"),
    ],
)
def test_images_that_are_no_numbers_of_pairs_are_refused(images, text: str) -> None:
    with pytest.raises(VlmEditError, match=text):
        modality_dominance(torch.ones(3, 2), torch.ones(3, 2), images=images)


def test_more_captions_of_an_image_than_sums_can_hold_leave_everything_as_it_was() -> None:
    accumulator = DominanceAccumulator(2)
    accumulator.update(torch.ones(4, 2), torch.ones(4, 2), [0, 0, 1, 1])
    before = accumulator.state_dict()
    many = 100_000
    with pytest.raises(VlmEditError, match="100000 captions"):
        accumulator.update(torch.ones(many, 2), torch.ones(many, 2), torch.zeros(many).long())
    after = accumulator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_the_simulated_rates_hold(captions: int) -> None:
    simulations = 100
    truths = torch.tensor([[calibration.truth(kind)] for kind in KINDS], dtype=torch.float64)
    found = calibration.covered(truths, captions, simulations)
    assert found["coverage"] >= 0.94
    assert found["coverage, worst kind"] >= 0.92 - 3 * found["its error"]
    found = calibration.rejected(captions, simulations)
    error = math.sqrt(0.06 * 0.94 / simulations)
    assert found["any dominant"] <= 0.07 + 2.5 * error
    assert found["any paired"] <= 0.07 + 2.5 * error
    assert found["false discoveries"] <= 0.06 and found["found"] > 0.95
    found = calibration.labelled(captions, simulations)
    assert found["on the cut, interval"] <= 0.06
    # The rule of before calls it dominant in many samples.
    assert found["on the cut, significant"] > 0.1


def test_pairs_taken_as_the_sample_would_not_hold() -> None:
    truth, right = calibration.truth(KINDS[2]), []
    for seed in range(40):
        image, text = captioned(KINDS[2], 20, 200, 5, seed)
        low, high = modality_dominance(image, text).intervals()
        right.append(((low <= truth) & (truth <= high)).double().mean())
    assert float(torch.stack(right).mean()) < 0.85
