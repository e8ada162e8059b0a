import pytest
import torch

from planted import planted_pairs
from vlm_edit import VlmEditError
from vlm_edit.measures.dominance import CLASSES, Dominance, modality_dominance


def measured(n: int, truth: torch.Tensor, **options) -> Dominance:
    planted = planted_pairs(n, truth, **options)
    return modality_dominance(planted.image, planted.text)


def test_significant_leaves_undecided_what_chance_could_have_moved() -> None:
    image, text = torch.zeros(40, 6), torch.zeros(40, 6)
    image[:40, 0] = text[:40, 1] = 1.0
    image[:3, 2] = text[:2, 3] = 1.0
    image[:, 4] = text[:, 4] = 1.0
    found = modality_dominance(image, text)
    assert found.classes("significant") == {
        "vision": [0],
        "language": [1],
        "cross": [4],
        "undecided": [2, 3],
        "dead": [5],
    }
    assert found.classes("significant", alpha=0.7)["undecided"] == []
    assert found.classes("fixed")["vision"] == [0, 2]


def test_classes_are_a_partition_under_every_rule_and_convention() -> None:
    planted = planted_pairs(300, torch.rand(60), rate=torch.linspace(0.001, 1, 60), noise=1.0)
    seen = modality_dominance(planted.image, planted.text, "epsilon")
    for zeros in ("skip", "half", "epsilon"):
        for rule in ("sd", "fixed", "significant"):
            members = seen.under(zeros).classes(rule)
            assert tuple(members) == CLASSES
            assert sorted(k for part in members.values() for k in part) == list(range(60))
            assert rule == "significant" or not members["undecided"]


def test_epsilon_never_calls_significant_what_leans_the_other_way() -> None:
    image, text = torch.zeros(1000, 1), torch.zeros(1000, 1)
    image[:50] = 1.0
    found = modality_dominance(image, text, "epsilon")
    assert float(found.scores) < 0.1
    assert found.classes("significant")["undecided"] == [0]


@pytest.mark.parametrize("rule", ["sd", "fixed", "significant"])
def test_expected_classes_are_those_of_data_without_an_effect(rule) -> None:
    expected = measured(400, torch.full((400,), 0.5), rate=0.05, noise=0.6, seed=1)
    chance = expected.expected_classes(rule, draws=100)
    outside = {name: 0 for name in CLASSES}
    for seed in range(2, 12):
        null = measured(400, torch.full((400,), 0.5), rate=0.05, noise=0.6, seed=seed)
        for name, members in null.classes(rule).items():
            span = max(8.0, chance[name].high - chance[name].low)
            outside[name] += abs(len(members) - chance[name].value) > span
    assert not any(count > 1 for count in outside.values())
    assert sum(chance[name].value for name in CLASSES) == pytest.approx(400)


def test_mean_and_sd_find_a_sixth_on_each_side_where_nothing_is() -> None:
    found = measured(500, torch.full((600,), 0.5), rate=0.2, noise=0.5)
    chance = found.expected_classes("sd", draws=50)
    shares = [chance[name].value / 600 for name in ("vision", "cross", "language")]
    assert shares == pytest.approx([0.16, 0.68, 0.16], abs=0.02)
    strict = found.expected_classes("significant", draws=50)
    assert strict["vision"].value + strict["language"].value < 0.2
    assert chance == found.expected_classes("sd", draws=50)
    with pytest.raises(VlmEditError, match="draws=0"):
        found.expected_classes(draws=0)


def test_dead_features_take_no_part_in_what_chance_finds() -> None:
    planted = planted_pairs(300, torch.full((200,), 0.5), rate=0.1, noise=0.5)
    codes = [part.dense() for part in (planted.image, planted.text)]
    padded = [torch.cat([part, torch.zeros(300, 400)], 1) for part in codes]
    alone = modality_dominance(*codes).expected_classes("sd", draws=20)
    among = modality_dominance(*padded).expected_classes("sd", draws=20)
    assert among["dead"].value == 400
    assert {n: e for n, e in among.items() if n != "dead"} == {
        n: e for n, e in alone.items() if n != "dead"
    }


def test_what_is_planted_strongly_is_found_far_above_chance() -> None:
    truth = torch.tensor([0.9] * 30 + [0.5] * 70)
    found = measured(1000, truth, rate=0.1)
    assert found.classes("significant")["vision"] == list(range(30))
    assert found.expected_classes("significant", draws=30)["vision"].value < 1


def test_warnings_name_cuts_beyond_the_ends_few_pairs_and_silence() -> None:
    image, text = torch.zeros(10, 20), torch.zeros(10, 20)
    image[:, :10], text[:, 10:] = 1.0, 1.0
    image[5:, 0] = 0
    image, text = (torch.cat([codes, torch.zeros(10, 5)], 1) for codes in (image, text))
    low, high, few = modality_dominance(image, text).warnings()
    assert "below 0" in low and "language" in low
    assert "above 1" in high and "vision" in high
    assert few.startswith("1 of 20 live features")
    assert "No feature is ever active" in modality_dominance(image * 0, text * 0).warnings()[0]
    assert measured(200, torch.rand(30), rate=0.5, noise=0.1).warnings() == []


def test_six_pairs_are_not_too_few_for_the_swap_test_and_five_are() -> None:
    def found(pairs: int) -> Dominance:
        image, text = torch.zeros(20, 3), torch.zeros(20, 3)
        image[:pairs, 0] = 1.0
        image[:, 1] = text[:, 2] = 1.0
        return modality_dominance(image, text)

    for pairs, few in ((6, False), (5, True)):
        assert (2 / 2**pairs >= 0.05) == few  # of all ways to swap, the two most extreme
        told = [line for line in found(pairs).warnings() if "too few for the swap test" in line]
        assert len(told) == few
        assert bool(found(pairs).swap_test()[0] >= 0.05) == few
