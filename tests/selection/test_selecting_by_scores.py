import pytest
import torch

from planted import planted_pairs
from vlm_edit import VlmEditError, by_class
from vlm_edit.measures.dominance import Dominance, modality_dominance
from vlm_edit.selection import (
    FewFeatures,
    by_firing,
    by_score,
    difference,
    intersection,
    random_like,
    union,
)

TRUTH = torch.linspace(0, 1, 41)
RULES = ("interval", "significant", "sd", "fixed")


@pytest.fixture(scope="module")
def found() -> Dominance:
    planted = planted_pairs(
        800, TRUTH, rate=torch.linspace(0.02, 0.6, 41), paired=torch.arange(41) % 2 == 0
    )
    return modality_dominance(planted.image, planted.text)


# By class


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["vision", "language", "cross", "undecided", "dead"])
def test_a_class_holds_what_the_measurement_says(found, rule, kind) -> None:
    assert sorted(by_class(found, kind, rule)) == found.classes(rule)[kind]


def test_planted_features_are_found_in_their_class(found) -> None:
    vision, language = by_class(found, "vision"), by_class(found, "language")
    assert len(vision) > 10 and len(language) > 10
    assert all(TRUTH[k] > 0.5 for k in vision) and all(TRUTH[k] < 0.5 for k in language)


def test_cuts_and_the_rate_of_false_discoveries_are_passed_on(found) -> None:
    wide = by_class(found, "vision", "fixed", low=0.1, high=0.9)
    assert sorted(wide) == found.classes("fixed", 0.1, 0.9)["vision"]
    strict = by_class(found, "vision", alpha=1e-9)
    assert sorted(strict) == found.classes(alpha=1e-9)["vision"] != found.classes()["vision"]


def test_the_surest_feature_of_a_class_comes_first(found) -> None:
    low, high = found.intervals()
    vision, language, cross = (by_class(found, kind) for kind in ("vision", "language", "cross"))
    assert [float(low[k]) for k in vision] == sorted((float(low[k]) for k in vision), reverse=True)
    assert [float(high[k]) for k in language] == sorted(float(high[k]) for k in language)
    off = [max(float(high[k]) - 0.5, 0.5 - float(low[k])) for k in cross]
    assert off == sorted(off) and len(off) > 3


def test_a_feature_of_many_pairs_stands_before_a_lucky_one_of_few() -> None:
    image, text = torch.zeros(300, 2), torch.zeros(300, 2)
    image[:6, 0] = 1  # all image, in six pairs
    image[:, 1], text[:, 1] = 1, 0.02
    found = modality_dominance(image, text)
    assert found.scores[0] > found.scores[1]
    assert by_class(found, "vision", n=2) == [1, 0]


def test_only_paired_features_are_those_that_fire_together_in_matched_pairs(found) -> None:
    every, paired = by_class(found, "cross"), by_class(found, "cross", paired=True)
    together = found.paired()
    assert paired == [k for k in every if together[k]]
    assert 0 < len(paired) < len(every)
    strict = by_class(found, "cross", "fixed", paired=True, alpha=1e-12)
    assert strict == [k for k in by_class(found, "cross", "fixed") if found.paired(1e-12)[k]]


def test_features_without_an_order_come_by_number() -> None:
    found = modality_dominance(torch.zeros(4, 3), torch.zeros(4, 3))
    assert by_class(found, "dead") == [0, 1, 2]


def test_an_unknown_class_is_refused(found) -> None:
    with pytest.raises(VlmEditError, match="no class 'visual'.*'vision'"):
        by_class(found, "visual")


# By score


def test_scores_in_a_range_are_found_with_both_ends() -> None:
    found = modality_dominance(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), torch.ones(1, 4))
    assert found.scores.tolist() == [0.5, 0.75, 0.5, 0.0]
    assert by_score(found, 0.5, 0.75) == [1, 0, 2]
    assert by_score(found) == [3, 1, 0, 2]
    assert by_score(found, high=0.49) == [3]


def test_dead_features_have_no_score() -> None:
    found = modality_dominance(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    assert by_score(found) == [0] and by_score(found, interval=0.9) == [0]


def test_a_whole_interval_lies_in_the_range(found) -> None:
    for level in (0.5, 0.95):
        low, high = found.intervals(level)
        inside = [k for k in range(41) if low[k] >= 0.6]
        assert sorted(by_score(found, 0.6, interval=level)) == inside
        below = [k for k in range(41) if high[k] <= 0.4]
        assert sorted(by_score(found, high=0.4, interval=level)) == below
    assert by_score(found, 0.6, interval=0.5) != by_score(found, 0.6, interval=0.95)
    assert len(by_score(found, 0.6)) > len(by_score(found, 0.6, interval=0.95)) > 5


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_range_that_does_not_rise_within_0_and_1_is_refused(found, low, high) -> None:
    with pytest.raises(VlmEditError, match=f"scores rise within.*low={low}, high={high}"):
        by_score(found, low, high)
    with pytest.raises(VlmEditError, match=r"shares of firing rise within"):
        by_firing(found, "image", low, high)


# By firing


@pytest.mark.parametrize("stream", ["image", "text", "both", "either"])
def test_firing_is_the_share_of_pairs(stream) -> None:
    planted = planted_pairs(300, TRUTH, rate=0.3, paired=False)
    image, text = planted.image.dense() != 0, planted.text.dense() != 0
    fires = {"image": image, "text": text, "both": image & text, "either": image | text}[stream]
    share = fires.double().mean(0)
    found = modality_dominance(planted.image, planted.text)
    low, high = float(share.quantile(0.2)), float(share.quantile(0.8))
    chosen = by_firing(found, stream, low, high)
    assert sorted(chosen) == [k for k in range(41) if low <= share[k] <= high]
    assert 2 < len(chosen) < 39
    shares = [float(share[k]) for k in chosen]
    assert shares == sorted(shares, reverse=True)


def test_a_share_at_either_end_counts() -> None:
    image = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    found = modality_dominance(image, image)
    assert by_firing(found, low=1.0) == [0] and by_firing(found, high=0.5) == [1]


def test_an_unknown_stream_is_refused(found) -> None:
    with pytest.raises(VlmEditError, match="stream is 'audio'"):
        by_firing(found, "audio")


# Sets


def test_lists_combine_in_the_order_of_the_first() -> None:
    assert union([9, 1], [1, 4], [4, 0]) == [9, 1, 4, 0] and union() == []
    assert intersection([9, 1, 4, 9], [4, 9], [9, 4, 5]) == [9, 4] and intersection([3]) == [3]
    assert difference([9, 1, 4, 9], [4], [7]) == [9, 1] and difference([3, 1]) == [3, 1]


def test_random_features_are_as_many_from_those_to_choose_from() -> None:
    drawn = [random_like([1, 2, 3], range(100, 140), seed=seed) for seed in range(20)]
    assert all(len(set(d)) == 3 and set(d) <= set(range(100, 140)) for d in drawn)
    assert len({tuple(d) for d in drawn}) > 15
    assert drawn[3] == random_like([1, 2, 3], range(100, 140), seed=3)


def test_random_features_are_as_active_or_move_as_far() -> None:
    codes = torch.zeros(6, 9)
    codes[:, 0], codes[:, 1:] = 4, 1
    assert len(random_like([0], range(1, 9), "activity", codes=codes)) == 4
    # rows at right angles: sixteen of length 1 would move as far as one of length 4
    decoder = torch.eye(9)
    assert random_like([0], range(1, 9), "norm", codes=codes, decoder=decoder) == [*range(1, 9)]
    same = decoder[[1] * 9]  # rows along one line add up
    assert len(random_like([0], range(1, 9), "norm", codes=codes, decoder=same)) == 4
    for match in ("activity", "norm"):
        options = {"codes": codes, "decoder": same}
        draws = {tuple(random_like([0], range(1, 9), match, **options, seed=s)) for s in range(9)}
        assert len(draws) > 5


def test_what_a_match_needs_is_asked_for() -> None:
    with pytest.raises(VlmEditError, match="match='activity' needs codes="):
        random_like([0], [1, 2], "activity")
    with pytest.raises(VlmEditError, match="needs decoder="):
        random_like([0], [1, 2], "norm", codes=torch.ones(2, 3))
    with pytest.raises(VlmEditError, match="match is 'length'"):
        random_like([0], [1, 2], "length")
    with pytest.raises(VlmEditError, match="3 features are to be matched"):
        random_like([0, 1, 2], [1, 2])


def planted(scores: list[float], active: int = 200) -> Dominance:
    """Features that are all image in a share of their pairs, and all text in the others."""
    image = (torch.arange(active)[:, None] < (active * torch.tensor(scores)).round()).float()
    return modality_dominance(image, 1 - image)


def test_a_selection_ranks_and_says_how_many_are_proven() -> None:
    found = planted([0.5, 0.56, 0.44, 0.9, 0.1, 0.62])
    assert found.classes()["cross"] == [0]
    chosen = by_class(found, "cross", n=3)
    assert chosen[0] == 0 and sorted(chosen) == [0, 1, 2] and chosen.proven == 1
    assert str(chosen) == "3 features for cross, 1 of them proven"
    vision = by_class(found, "vision", n=2)
    assert vision == [3, 5] and vision.proven == 1 and by_class(found, "vision") == [3]


def test_a_measurement_will_do(found) -> None:
    class Measured:
        dominance = found

    assert by_class(Measured(), "vision", n=5) == by_class(found, "vision", n=5)


def test_nothing_proven_and_too_few_to_choose_from_are_said() -> None:
    found = planted([0.52, 0.48, 0.9], active=40)
    with pytest.warns(
        FewFeatures, match=r"no feature is cross by the rule 'interval'; 2 have such"
    ):
        assert by_class(found, "cross") == []
    with pytest.warns(FewFeatures, match="2 features can be chosen for cross where 5 were asked"):
        assert sorted(by_class(found, "cross", n=5)) == [0, 1]
    with pytest.raises(VlmEditError, match="most is 0"):
        by_class(found, "cross", n=0)


def test_features_of_few_images_are_not_chosen() -> None:
    image, text = torch.zeros(300, 2), torch.zeros(300, 2)
    image[:5, 0], image[:, 1] = 1, 1
    found = modality_dominance(image, text)
    with pytest.warns(FewFeatures):
        assert by_class(found, "vision", n=2) == [1]
    assert sorted(by_class(found, "vision", n=2, least=5)) == [0, 1]
    # Five captions of one image are one image.
    again = modality_dominance(image, text, images=[0] * 5 + list(range(1, 296)))
    with pytest.warns(FewFeatures):
        assert by_class(again, "vision", n=2, least=5) == [1]
