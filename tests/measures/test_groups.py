import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vlm_edit import Ablate, Dictionary, VlmEditError, zoo
from vlm_edit.edits import Splice
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.dominance import modality_dominance, modality_gap
from vlm_edit.measures.groups import (
    centred,
    class_means,
    coactivation,
    deleted,
    direction_spread,
    example_spread,
    fusion_by_category,
    fusion_degree,
    gap_under,
    one_sided_change,
    spread,
    standardised,
)
from vlm_edit.measures.groups import fusion as fusion_module
from vlm_edit.measures.interpretability import TopExamples

UNHURRIED = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)


def drawn_codes(n: int, m: int, seed: int, share: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, m, generator=generator)
    return codes * (torch.rand(n, m, generator=generator) < share)


# Spread


@UNHURRIED
@given(seeds, st.integers(1, 12))
def test_the_spread_of_directions_is_one_less_the_mean_cosine_of_all_ordered_pairs(seed, n) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(20, 5))
    group = rng.permutation(20)[:n].tolist()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = 1 - np.mean([[unit[i] @ unit[j] for i in group] for j in group])
    found = direction_spread(torch.tensor(rows), group, draws=3)
    assert found.own.value == pytest.approx(expected, abs=1e-12)
    assert found.own.n == n


def test_random_groups_are_of_the_size_of_the_group_and_live() -> None:
    # Rows 0-4 alike; the others at right angles: three of them spread by 2 / 3.
    rows = torch.zeros(40, 40)
    rows[:5, 0] = 1.0
    rows[5:, 5:] = torch.eye(35)
    found = direction_spread(rows, [0, 1, 2], live=range(5, 40), draws=20)
    assert (found.own.value, found.own.n) == (0.0, 3)
    for value in (found.random.value, found.random.low, found.random.high):
        assert value == pytest.approx(2 / 3)
    assert found.random.n == 20


def test_random_groups_have_the_mean_of_all_groups_of_that_size() -> None:
    rows = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = (rows @ rows.T).double()
    between = (cosines.sum() - cosines.trace()) / (30 * 29)
    found = direction_spread(rows, range(6), draws=4000).random
    assert found.value == pytest.approx(1 - (1 + 5 * float(between)) / 6, abs=0.005)
    assert found.low < found.value < found.high


def test_intervals_of_a_spread_hold_what_many_features_have() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for trial in range(100):
        rows = F.normalize(torch.randn(60, 8, generator=generator) + torch.ones(8) * 0.5, dim=1)
        own = direction_spread(rows, range(60), draws=1, seed=trial).own
        # The mean product of different features, from very many.
        many = F.normalize(torch.randn(20000, 8, generator=generator) + 0.5, dim=1)
        expected = 1 - (1 + 59 * float(many.mean(0).square().sum())) / 60
        assert own.low <= own.value <= own.high
        held += own.low <= expected <= own.high
    assert held >= 88  # of 95 expected, binomial sd 2.2


def test_features_at_right_angles_are_not_called_alike_by_the_bootstrap() -> None:
    own = direction_spread(torch.eye(50), range(50), draws=1).own
    for value in (own.value, own.low, own.high):
        assert value == pytest.approx(0.98, abs=1e-12)


def test_groups_without_directions_have_no_spread_and_single_features_no_interval() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    nothing = direction_spread(rows, [0])
    assert math.isnan(nothing.own.value) and nothing.own.n == 0
    assert math.isnan(nothing.random.value)
    assert math.isnan(direction_spread(rows, []).own.value)
    single = direction_spread(rows, [0, 1]).own
    assert (single.value, single.n) == (0.0, 1) and math.isnan(single.low)
    with pytest.raises(VlmEditError, match="feature 3 is not there"):
        direction_spread(rows, [3])
    with pytest.raises(VlmEditError, match="to choose from"):
        direction_spread(rows, [1, 2], live=[1])


@UNHURRIED
@given(seeds, st.integers(1, 3))
def test_the_spread_of_examples_is_their_variance_with_each_feature_weighing_the_same(
    seed, rows
) -> None:
    rng = np.random.default_rng(seed)
    codes, embeddings = drawn_codes(30, 12, seed % 1000), rng.normal(size=(30, 4))
    top = TopExamples(12, keep=5)
    top.update(codes, range(30))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    group = [k for k in range(6) if top.of(k)]
    means = [np.mean([unit[i] for i, _ in top.of(k)], axis=0) for k in group]
    expected = np.mean([
        np.mean([np.sum((unit[i] - np.mean(means, axis=0)) ** 2) for i, _ in top.of(k)])
        for k in group
    ])  # fmt: skip
    before, spread._SCRATCH = spread._SCRATCH, rows * 5 * 4  # some features at a time
    try:
        found = example_spread(top, torch.tensor(embeddings), range(6), draws=3)
    finally:
        spread._SCRATCH = before
    assert found.own.value == pytest.approx(expected, abs=1e-12)
    assert found.own.n == len(group)


def test_features_that_answer_to_one_thing_spread_less_than_random_ones() -> None:
    meaning = torch.eye(10).repeat_interleave(3, 0)  # 30 examples of ten things
    codes = torch.zeros(30, 40)
    for k in range(40):
        thing = 0 if k < 8 else k % 10
        codes[3 * thing : 3 * thing + 3, k] = 1.0
    top = TopExamples(40, keep=3)
    top.update(codes, range(30))
    found = example_spread(top, meaning, range(8))
    assert found.own.value == pytest.approx(0, abs=1e-12)
    assert found.random.low > 0.3
    with pytest.raises(VlmEditError, match="example 29 has no embedding"):
        example_spread(top, meaning[:29], range(8))


def test_dead_features_have_no_examples_and_are_left_out() -> None:
    top = TopExamples(3, keep=2)
    top.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [0, 1])
    found = example_spread(top, torch.eye(2), [0, 1, 2])
    assert (found.own.n, found.own.value) == (2, 0.5)


def test_means_of_classes_leave_undefined_features_out() -> None:
    values = torch.tensor([1.0, math.nan, 4.0, 7.0])
    found = class_means(values, {"a": [0, 1, 2], "b": [1], "c": [], "d": [2, 3]})
    assert (found["a"].value, found["a"].n) == (2.5, 2)
    assert math.isnan(found["b"].value) and found["c"].n == 0
    assert found["d"].low <= 5.5 <= found["d"].high
    with pytest.raises(VlmEditError, match="feature 4 is not there"):
        class_means(values, {"a": [4]})


# Co-activation


@UNHURRIED
@given(seeds)
def test_coactivation_is_numpys_correlation_of_the_groups_sums(seed) -> None:
    image, text = drawn_codes(40, 9, seed % 1000), drawn_codes(40, 9, seed % 1000 + 1)
    groups = {"a": [0, 1, 2], "b": [2, 5], "c": [8, 3, 4, 6]}
    found = coactivation(image, SparseCodes.of(text), groups, draws=2)
    for i, first in enumerate(groups.values()):
        for j, second in enumerate(groups.values()):
            x = image[:, first].abs().double().sum(1).numpy()
            y = text[:, second].abs().double().sum(1).numpy()
            if x.std() > 0 and y.std() > 0:
                expected = np.corrcoef(x, y)[0, 1]
                assert float(found.matched[i, j]) == pytest.approx(expected, abs=1e-12)
    assert found.names == ("a", "b", "c")


def test_shuffled_texts_correlate_about_as_chance_has_it() -> None:
    image = drawn_codes(100, 6, seed=3)
    found = coactivation(image, image, {"a": [0, 1, 2], "b": [3, 4, 5]}, draws=2000)
    # Correlation of n shuffled pairs: mean 0, sd 1 / sqrt(n - 1).
    assert float(found.matched.diagonal().min()) == pytest.approx(1)
    assert float(found.shuffled.abs().max()) < 4 * 0.1005 / 2000**0.5
    assert float((found.high - 0.197).abs().max()) < 0.02
    assert float((found.low + 0.197).abs().max()) < 0.02


def test_groups_that_do_not_vary_have_no_coactivation() -> None:
    # The mean of three times .7 in float64 is not .7.
    codes = torch.tensor([[0.7, 1.0], [0.7, 2.0], [0.7, 4.0]], dtype=torch.float64)
    found = coactivation(codes, codes, {"same": [0], "vary": [1], "none": []})
    nan = found.matched.isnan()
    assert nan.tolist() == [[True, True, True], [True, False, True], [True, True, True]]
    assert bool(coactivation(codes[:1], codes[:1], {"vary": [1]}).matched.isnan().all())


def test_coactivation_refuses_what_does_not_fit() -> None:
    codes = torch.ones(3, 2)
    with pytest.raises(VlmEditError, match="must both be"):
        coactivation(codes, codes[:2], {})
    with pytest.raises(VlmEditError, match="feature 2 of group 'a'"):
        coactivation(codes, codes, {"a": [2]})
    with pytest.raises(VlmEditError, match="draws=0"):
        coactivation(codes, codes, {"a": [1]}, draws=0)


# The gap under treatments


def streams(seed: int = 0, n: int = 50, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, d) + 1
    return image, torch.randn(n, d, generator=generator) - 0.5


def test_centring_gives_both_streams_the_mean_of_both_and_moves_nothing_else() -> None:
    image, text = streams()
    seen, said = centred(image, text)
    grand = (image.mean(0) + text.mean(0)) / 2
    for before, after in ((image, seen), (text, said)):
        torch.testing.assert_close(after.mean(0), grand)
        torch.testing.assert_close(after - after.mean(0), before - before.mean(0))


def test_standardising_gives_both_streams_the_mean_and_the_variance_of_both() -> None:
    image, text = streams()
    image[:, 2] = 0.1  # does not vary
    seen, said = standardised(image, text)
    varies = [0, 1, 3, 4, 5]
    expected = (image.numpy().var(0) + text.numpy().var(0)) / 2
    for after in (seen, said):
        np.testing.assert_allclose(after.numpy().var(0)[varies], expected[varies], rtol=1e-5)
        torch.testing.assert_close(after.mean(0), (image.mean(0) + text.mean(0)) / 2)
    assert float(seen[:, 2].max()) == float(seen[:, 2].min())


@pytest.mark.parametrize("features", [[3], [5, 100, 511]])
def test_deleting_features_is_what_the_splice_does_when_it_ablates_them(features) -> None:
    dictionary = zoo.load_dictionary("joint")
    hidden = torch.randn(8, 192, generator=torch.Generator().manual_seed(0))
    # In the dictionary's normed space, where the norm has nothing left to do.
    image, text = dictionary.encoder.normalise(hidden)[0].chunk(2)

    def encode(seen, said):
        return dictionary.encode(seen, "image"), dictionary.encode_sparse(said, "text")

    found = deleted(encode, dictionary.decoder, features)(image, text)
    ablate = Splice.of(dictionary, [Ablate(features)])
    expected = ablate(image, stream="image"), ablate(text, stream="text")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_deleting_no_feature_changes_nothing() -> None:
    image, text = streams()
    found = deleted(lambda i, t: (i, t), torch.eye(6), [])(image, text)
    assert torch.equal(found[0], image) and torch.equal(found[1], text)


def test_deleting_a_feature_that_is_not_there_is_refused() -> None:
    with pytest.raises(VlmEditError, match="feature 3 is not there"):
        deleted(lambda i, t: (i, t), torch.eye(3), [3])


def test_each_treatment_is_measured_on_what_it_leaves() -> None:
    image, text = streams()
    neurons = Dictionary.identity(6, "constant_norm_rescale")

    def encode(seen, said):
        return neurons.encode(seen), neurons.encode(said)

    treatments = {"centred": centred, "half": lambda i, t: (i / 2, t - 1)}
    found = gap_under(image, text, treatments, encode, lambda i, t: (i - t)[:, 0] > 0)
    assert list(found) == ["raw", "centred", "half"]
    left = {"raw": (image, text), "centred": centred(image, text), "half": (image / 2, text - 1)}
    for name, (seen, said) in left.items():
        assert found[name].gap == modality_gap(seen, said)
        scores = modality_dominance(*encode(seen, said)).scores
        torch.testing.assert_close(found[name].dominance.scores, scores, rtol=0, atol=0)
        share = float(((seen - said)[:, 0] > 0).double().mean())
        assert found[name].metric.value == share and found[name].metric.n == 50
    assert found["centred"].gap < found["raw"].gap
    assert gap_under(image, text, {}, encode)["raw"].metric is None


def test_a_dictionary_that_centres_streams_itself_sees_no_gap() -> None:
    image, text = streams()
    dictionary = zoo.load_dictionary("joint")
    weight, bias = dictionary.encoder.weight[:6].double(), dictionary.encoder.bias.double()

    def own(seen, said):
        return [((x.double() - x.double().mean(0)) @ weight + bias).relu() for x in (seen, said)]

    def one(seen, said):
        middle = (seen.mean(0) + said.mean(0)) / 2
        return [((x - middle).double() @ weight + bias).relu() for x in (seen, said)]

    treatments = {"wider": lambda i, t: (i + 3, t - 3), "centred": centred}
    for encode, blind in ((own, True), (one, False)):
        found = gap_under(image, text, treatments, encode)
        changes = [one_sided_change(found["raw"].dominance, found[n].dominance) for n in treatments]
        if blind:
            assert all(abs(change.value) < 1e-6 for change in changes)
        else:
            assert changes[0].low > 0 > changes[1].high


def test_gap_under_refuses_a_treatment_called_raw_and_streams_that_differ() -> None:
    image, text = streams()
    with pytest.raises(VlmEditError, match="'raw'"):
        gap_under(image, text, {"raw": centred}, lambda i, t: (i, t))
    with pytest.raises(VlmEditError, match="must both be"):
        gap_under(image, text[:-1], {}, lambda i, t: (i, t))


def test_a_change_towards_both_modalities_is_below_zero() -> None:
    before = modality_dominance(torch.tensor([[9.0, 1, 0, 1]]), torch.tensor([[1.0, 9, 0, 1]]))
    after = modality_dominance(torch.tensor([[3.0, 1, 1, 0]]), torch.tensor([[1.0, 3, 1, 0]]))
    # .9 and .1 to .75 and .25; the third and the fourth are dead in one of the two.
    change = one_sided_change(before, after)
    assert change.value == pytest.approx(-0.3) and change.n == 2
    assert one_sided_change(after, before).value == pytest.approx(0.3)
    dead = modality_dominance(torch.zeros(1, 4), torch.zeros(1, 4))
    assert math.isnan(one_sided_change(before, dead).value)


# Fusion


def test_the_degree_of_fusion_is_one_in_the_middle_and_zero_at_both_ends() -> None:
    found = fusion_degree(torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0, math.nan]))
    torch.testing.assert_close(found, torch.tensor([0, 0.4, 1, 0.2, 0, math.nan]), equal_nan=True)


def captions(seed: int, n: int = 40) -> list[list[tuple[str, str]]]:
    rng = np.random.default_rng(seed)
    names = [("dog", "noun"), ("cat", "noun"), ("run", "verb"), ("run", "noun"), ("of", "ADP")]
    return [[names[i] for i in rng.integers(0, 5, rng.integers(0, 5))] for _ in range(n)]


@settings(UNHURRIED, max_examples=10)
@given(seeds, st.sampled_from([1, 20, 1 << 20]), st.booleans())
def test_the_fusion_of_a_word_is_what_loops_over_captions_and_features_give(
    seed, scratch, sparse
) -> None:
    image, text = drawn_codes(40, 9, seed % 1000), drawn_codes(40, 9, seed % 1000 + 1, 0.2)
    measured = text.clone()
    measured[:, 8] = image[:, 8] = 0  # dead on the pairs that were measured
    words, found = captions(seed), modality_dominance(image, measured)
    before, fusion_module._SCRATCH = fusion_module._SCRATCH, scratch
    try:
        given_codes = SparseCodes.of(text) if sparse else text
        fusion = fusion_by_category(given_codes, words, found, min_count=4, draws=2)
    finally:
        fusion_module._SCRATCH = before
    codes, cofiring = text.abs().double().numpy(), found.cofiring()[0].tolist()
    expected = {}
    for item in sorted({item for caption in words for item in caption}):
        inside = np.array([item in caption for caption in words])
        if inside.sum() < 4:
            continue
        sums = [0.0, 0.0, 0.0, 0.0]
        for k, score in enumerate(found.scores.tolist()):
            lift = codes[inside, k].mean() - codes[~inside, k].mean()
            if lift > 0 and not math.isnan(score):
                parts = (1 - abs(2 * score - 1), score, cofiring[k], 1)
                sums = [s + lift * part for s, part in zip(sums, parts, strict=True)]
        expected[item] = (
            int(inside.sum()),
            *[s / sums[3] if sums[3] else math.nan for s in sums[:3]],
        )
    assert {(w.word, w.category) for w in fusion.words} == set(expected)
    for w in fusion.words:
        told = (w.captions, w.fusion, w.dominance, w.cofiring)
        assert told == pytest.approx(expected[w.word, w.category], rel=1e-9, nan_ok=True)
    for kind, means in fusion.categories.items():
        of_kind = [values for (_, category), values in expected.items() if category == kind]
        of_kind = [v for v in of_kind if not math.isnan(v[1])]
        assert means["fusion"].n == len(of_kind)
        if not of_kind:
            continue
        assert means["fusion"].value == pytest.approx(np.mean([v[1] for v in of_kind]))
        assert means["dominance"].value == pytest.approx(np.mean([v[2] for v in of_kind]))
        assert means["cofiring"].value == pytest.approx(np.mean([v[3] for v in of_kind]))


def planted() -> tuple[torch.Tensor, list[list[tuple[str, str]]], torch.Tensor]:
    """Nouns come with features of both streams, prepositions with features of texts alone."""
    generator = torch.Generator().manual_seed(0)
    text, image, words = torch.zeros(400, 20), torch.zeros(400, 20), []
    for i in range(400):
        noun, preposition = torch.randint(10, (2,), generator=generator).tolist()
        text[i, noun] = image[i, noun] = 1.0
        text[i, 10 + preposition] = 1.0
        words.append([(f"n{noun}", "noun"), (f"p{preposition}", "preposition")])
    return text, words, image


def test_words_of_shared_features_fuse_and_dealt_at_random_they_do_not_differ() -> None:
    text, words, image = planted()
    fusion = fusion_by_category(text, words, modality_dominance(image, text), draws=50)
    noun, preposition = fusion.categories["noun"], fusion.categories["preposition"]
    assert noun["fusion"].low > 0.8 and preposition["fusion"].high < 0.2
    assert noun["dominance"].value > 0.4 and preposition["dominance"].value < 0.1
    assert noun["cofiring"].value > 0.8 and preposition["cofiring"].value < 0.2
    for kind in ("noun", "preposition"):
        chance = fusion.chance[kind]["fusion"]
        assert chance.low < 0.5 < chance.high and chance.n == 50
    # One feature each was lifted by its own word, so cofiring is that of all alike.
    assert fusion.chance["noun"]["fusion"].high < noun["fusion"].low


def test_words_too_rare_or_in_every_caption_are_not_scored() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    words = [[("a", "x"), ("b", "x"), ("b", "x")], [("a", "x"), ("c", "y")], [("a", "x")]]
    found = modality_dominance(text, text)
    fusion = fusion_by_category(text, words, found, min_count=1)
    assert [(w.word, w.captions) for w in fusion.words] == [("a", 3), ("b", 1), ("c", 1)]
    assert math.isnan(fusion.words[0].fusion)
    assert fusion.categories["x"]["fusion"].n == 1
    every = fusion_by_category(text, words, found, min_count=3)
    assert math.isnan(every.categories["x"]["fusion"].value)
    assert math.isnan(every.chance["x"]["fusion"].value)
    none = fusion_by_category(text, words, found, min_count=4)
    assert (none.words, dict(none.categories)) == ((), {})


def test_fusion_refuses_words_of_other_captions_and_scores_of_other_features() -> None:
    text = torch.ones(3, 2)
    found = modality_dominance(text, text)
    with pytest.raises(VlmEditError, match="words of 2 captions"):
        fusion_by_category(text, [[], []], found)
    with pytest.raises(VlmEditError, match="scores of 2"):
        fusion_by_category(torch.ones(3, 4), [[], [], []], found)
    with pytest.raises(VlmEditError, match="draws=0"):
        fusion_by_category(text, [[], [], []], found, draws=0)
