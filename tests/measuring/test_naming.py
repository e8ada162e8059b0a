"""What features are called: words, scores on pairs that did not make them, and what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlm_edit import Dictionary, Host, Measurement, Pairs, measure, zoo
from vlm_edit.dictionaries import Encoder, PairedDictionary
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.ground.statistics import auc
from vlm_edit.measuring import Names, caption_holds, name_features
from vlm_edit.measuring.naming.choosing import Naming
from vlm_edit.measuring.naming.detecting import areas, average_ranks, best_of, of_others
from vlm_edit.measuring.naming.evidence import read_evidence
from vlm_edit.measuring.naming.naming import _tested
from vlm_edit.measuring.naming.vocabulary import Vocabulary

WORDS = ["person", "food", "animal", "clock", "flag", "car", "heart", "hand"]
TEMPLATE = "a picture of {}"


@cache
def clip() -> Host:
    return Host.of(*zoo.load_host())


@cache
def pairs() -> Pairs:
    return zoo.load_pairs().select(range(256))


@cache
def embeddings(texts: tuple[str, ...]) -> torch.Tensor:
    """What the host's own text tower says, by transformers alone."""
    model, processor = zoo.load_host()
    with torch.no_grad():
        inputs = processor(text=list(texts), return_tensors="pt", padding=True)
        features: Any = model.get_text_features(**inputs)
    return features if isinstance(features, torch.Tensor) else features.pooler_output


@cache
def planted() -> tuple[Dictionary, Measurement]:
    """Features that fire where a text is on a word, and write toward it."""
    rows = embeddings(tuple(TEMPLATE.format(word) for word in WORDS))
    unit = F.normalize(rows - rows.mean(0), dim=1)
    encoder = Encoder(unit.mT.contiguous(), torch.full((len(WORDS),), -0.02), "relu")
    dictionary = Dictionary(encoder, unit, torch.zeros(unit.shape[1]))
    return dictionary, measure(clip(), pairs(), dictionary, progress=False)


@cache
def zoo_run() -> tuple[Dictionary, Measurement]:
    dictionary = zoo.load_dictionary("joint")
    return dictionary, measure(clip(), pairs(), dictionary, progress=False)


def named(**options: Any) -> Names:
    dictionary, measurement = planted()
    options = {"vocabulary": WORDS, "template": TEMPLATE, **options}
    return name_features(clip(), measurement, pairs(), dictionary, **options)


def test_a_direction_is_named_by_the_word_that_it_was_made_of() -> None:
    names = named(tried=1)
    assert [name.tried for name in names] == WORDS
    for place, name in enumerate(names):
        assert name.words[0][0] == WORDS[place]
        assert name.words[0][1] == pytest.approx(1.0, abs=1e-4)
    assert {name.name for name in names} <= {*WORDS, "undescribed"}


def test_a_score_is_the_area_by_hand_on_the_half_that_did_not_choose() -> None:
    dictionary, measurement = zoo_run()
    features = measurement.dominance.active.argsort(descending=True)[:12].tolist()
    names = name_features(
        *(clip(), measurement, pairs(), dictionary, features),
        vocabulary=WORDS,
        template=TEMPLATE,
        tried=1,
    )
    evidence = read_evidence(
        clip(), dictionary, pairs(), "joint", features, torch.arange(256), 0, 64
    )
    assert (int(evidence.first.sum()), names.chosen_on, names.scored_on) == (128, 128, 128)
    rows = F.normalize(embeddings(tuple(TEMPLATE.format(word) for word in WORDS)), dim=1)
    unit = dict(zip(WORDS, F.normalize(rows - rows.mean(0), dim=1), strict=True))
    assert all(name.score.n for name in names)
    for place, name in enumerate(names):
        hidden = evidence.normed[name.stream]
        seen = F.normalize(hidden - hidden[evidence.first].mean(0), dim=1)[~evidence.first]
        size = dictionary.encode(hidden, name.stream)[:, features[place]].abs()
        often = int((size[evidence.first] > 0).sum()) * 2 > 128
        fires = (size > (size[evidence.first].median() if often else 0.0))[~evidence.first]
        assert name.score.value == pytest.approx(auc(seen @ unit[name.tried], fires), abs=2e-3)
        assert name.score.n == int(fires.sum()) and name.score.value < 1
        assert name.score.low <= name.score.value <= name.score.high
        others = [auc(seen @ unit[n.tried], fires) for n in names if n is not name]
        assert name.chance == pytest.approx(max(0.5, sum(others) / 11), abs=2e-3)


def test_names_that_say_nothing_hold_no_more_often_than_the_rate_allows() -> None:
    """Firing that is drawn without looking: whatever holds is a false discovery."""
    dictionary, _ = planted()
    evidence = read_evidence(
        clip(), dictionary, pairs(), "joint", range(8), torch.arange(256), 0, 64
    )
    wrong = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        fires = torch.rand(256, 8, generator=generator) < 0.2
        blind = replace(evidence, fires=fires)
        naming = Naming(clip(), dictionary, "joint", blind, TEMPLATE, 64, seed)
        naming.learn(WORDS)
        chosen = naming.choose(None, 8)
        wrong += any(held for _, _, _, held in _tested(blind, naming.score(chosen), 0.05))
    assert wrong <= 6  # of 40 draws at 5 %: more comes in one of 100 runs


def test_two_halves_share_no_image_and_the_captions_of_one_image_stay_together() -> None:
    dictionary, _ = planted()
    images = torch.arange(256) // 4
    evidence = read_evidence(clip(), dictionary, pairs(), "joint", range(8), images, 3, 64)
    first, second = (
        set(evidence.images[half].tolist()) for half in (evidence.first, ~evidence.first)
    )
    assert not first & second and len(first) == len(second) == 32


def test_a_feature_that_never_fires_is_undescribed_and_has_no_score() -> None:
    dictionary, measurement = zoo_run()
    rare = int(
        torch.where(measurement.dominance.active > 0, measurement.dominance.active, 999).argmin()
    )
    (name,) = name_features(clip(), measurement, pairs(), dictionary, [rare])
    assert name.name == "undescribed" and not name.held and name.tried == ""
    assert math.isnan(name.score.value) and name.as_json()["score"] is None
    assert len(name.words) == 10
    json.dumps(name.as_json(), allow_nan=False)


def test_the_same_seed_gives_the_same_names_and_fewer_pairs_are_whole_images() -> None:
    assert named().table()["auc"] == named().table()["auc"]
    few = named(most=100, groups=[i // 2 for i in range(256)])
    assert few.chosen_on + few.scored_on == 100 and few.chosen_on % 2 == 0


def test_words_of_captions_are_those_of_the_half_that_chooses() -> None:
    dictionary, measurement = zoo_run()
    names = name_features(clip(), measurement, pairs(), dictionary, [0, 1, 2])
    evidence = read_evidence(clip(), dictionary, pairs(), "joint", [0], torch.arange(256), 0, 64)
    texts = [t for t, own in zip(pairs().texts, evidence.first, strict=True) if own]
    assert names.vocabulary == Vocabulary.of_captions(texts).texts


def test_a_judge_sees_where_the_feature_fires_most_in_the_first_half_alone() -> None:
    dictionary, measurement = planted()
    evidence = read_evidence(
        clip(), dictionary, pairs(), "joint", range(8), torch.arange(256), 0, 64
    )
    calls: list[tuple[list[Image.Image], list[str], list[str]]] = []

    def judge(images: Any, texts: Any, others: Any) -> str:
        calls.append((list(images), list(texts), list(others)))
        return f"name {len(calls)}"

    names = name_features(
        clip(), measurement, pairs(), dictionary, vocabulary=WORDS, judge=judge, template=TEMPLATE
    )
    assert [n.tried for n in names if n.tried] == [f"name {i + 1}" for i in range(len(calls))]
    assert calls
    first = Counter(t for t, own in zip(pairs().texts, evidence.first, strict=True) if own)
    place = next(i for i, name in enumerate(names) if name.tried == "name 1")
    size = dictionary.encode(evidence.normed[names[place].stream])[:, place].abs()
    size = torch.where(evidence.first, size, -1.0)
    strongest = [pairs().texts[i] for i in size.argsort(descending=True)[:9].tolist()]
    images, texts, others = calls[0]
    assert texts == strongest and len(images) == 9 and not Counter(others) - first
    silent = {
        t for t, fires in zip(pairs().texts, evidence.fires[:, place], strict=True) if not fires
    }
    assert set(others) <= silent


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_a_scorer_says_is_the_score_and_another_name_on_the_same_pairs_its_chance(
    sign: float,
) -> None:
    dictionary, measurement = planted()
    asked: list[tuple[str, tuple[str, ...]]] = []

    def scorer(name: str, images: Any, texts: Any) -> list[float]:
        assert len(images) == len(texts)
        asked.append((name, tuple(texts)))
        return [sign * len(text) for text in texts]

    names = named(scorer=scorer)
    scored = [name for name in names if name.score.n]
    assert len(asked) == 2 * len(scored) and all(len(texts) <= 40 for _, texts in asked)
    for own, other in zip(asked[::2], asked[1::2], strict=True):
        assert own[1] == other[1]
    # The length of a text does not hang on the name: no name is better than another's.
    mean = sum(name.score.value for name in scored) / len(scored)
    assert all(name.chance == pytest.approx(max(0.5, mean), abs=1e-9) for name in scored)
    with pytest.raises(BadArgument, match="must give a number for each"):
        named(scorer=lambda *_: [1.0])
    with pytest.raises(BadArgument, match="a name is a text"):
        named(judge=lambda *_: "  ")


def test_at_a_language_layer_names_are_tokens_and_captions_score_them() -> None:
    host, dictionary = Host.of(*zoo.load_llava()), zoo.load_dictionary("language.3")
    measurement = measure(host, pairs(), dictionary, "language.3", progress=False)
    names = name_features(host, measurement, pairs(), dictionary)
    assert names.vocabulary == () and "output head" in names.note()
    told = {name.feature: name for name in names}
    assert told[4].words[0][0] == "of"
    evidence = read_evidence(
        *(host, dictionary, pairs(), "language.3", [name.feature for name in names]),
        *(torch.arange(256), 0, 64),
    )
    for place, name in list(enumerate(names))[:40]:
        if name.tried:
            held = caption_holds(pairs().texts, [name.tried])[:, 0].double()
            rest = ~evidence.first
            expected = auc(held[rest], evidence.fires[rest, place])
            assert name.score.value == pytest.approx(expected)
            # The best on the first half of single words, and of several of which one is enough.
            first = evidence.first
            single = [word for word, _ in name.words[:3]]
            long = [word for word, _ in name.words if len(word) >= 3][:5]
            tried = [*single, " / ".join(single), " / ".join(long)]
            areas_of = []
            for one in tried:
                parts = caption_holds(pairs().texts, one.split(" / "))[first].any(1).double()
                areas_of.append(auc(parts, evidence.fires[first, place]))
            mine = caption_holds(pairs().texts, [name.tried])[first, 0].double()
            assert auc(mine, evidence.fires[first, place]) == pytest.approx(max(areas_of))
    assert any(" / " in name.tried for name in names)
    with pytest.raises(BadArgument, match="leave vocabulary= out"):
        name_features(host, measurement, pairs(), dictionary, [4], vocabulary=WORDS)


def test_where_nothing_reads_words_a_judge_is_asked_for() -> None:
    host, dictionary = Host.of(*zoo.load_llava()), Dictionary.identity(192)
    few = pairs().select(range(64))
    measurement = measure(host, few, dictionary, "language.3.mlp", progress=False)
    with pytest.raises(CannotKnow, match=r"'language.3.mlp' is no layer.*pass judge="):
        name_features(host, measurement, few, dictionary, [3])
    (name,) = name_features(host, measurement, few, dictionary, [3], judge=lambda *_: "Bild")
    assert name.tried == "Bild" and name.words == ()


def test_what_does_not_go_together_is_refused() -> None:
    dictionary, measurement = planted()
    with pytest.raises(WrongHost, match="another dictionary"):
        name_features(clip(), measurement, pairs(), zoo.load_dictionary("joint"))
    other, processor = zoo.load_host()
    with torch.no_grad():
        other.text_projection.weight.mul_(1.5)
    with pytest.raises(WrongHost, match="another host"):
        name_features(Host.of(other, processor), measurement, pairs(), dictionary)
    asked = Host.of(*zoo.load_host(), prompt="{text}, seen")
    with pytest.raises(WrongHost, match="asked each pair as"):
        name_features(asked, measurement, pairs(), dictionary)
    with pytest.raises(BadArgument, match="pairs were measured"):
        name_features(clip(), measurement, pairs().select(range(9)), dictionary)
    for options, told in (
        ({"features": [99]}, "feature 99 is not in this dictionary"),
        ({"features": []}, "no feature to name"),
        ({"vocabulary": ["one"]}, "at least 2 texts"),
        ({"template": "a picture"}, "takes a word where"),
        ({"groups": [1, 2]}, "give one for each of 256"),
        ({"groups": [1] * 256}, "one image has no halves"),
        ({"tried": 0}, "tried is 0"),
    ):
        with pytest.raises(BadArgument, match=told):
            named(**options)


def test_of_a_paired_dictionary_each_stream_has_its_own_directions() -> None:
    dictionary, _ = planted()
    both = PairedDictionary(dictionary, dictionary.reordered([1, 0, *range(2, 8)]))
    measurement = measure(clip(), pairs(), both, progress=False)
    names = name_features(
        clip(), measurement, pairs(), both, vocabulary=WORDS, template=TEMPLATE, tried=1
    )
    swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
    for place, name in enumerate(names):
        expected = WORDS if name.stream == "image" else swapped
        assert name.words[0][0] == expected[place]


def test_names_show_themselves_as_a_line_a_table_and_a_card() -> None:
    names = named()
    table = names.table()
    assert all(len(values) == len(names) == 8 for values in table.values())
    frame = names.to_pandas()
    assert list(frame.columns) == list(table) and len(frame) == 8
    assert repr(names).startswith("Names(joint, ") and "\n" not in repr(names)
    assert f"{len(names.held)} of 8 names beat chance" in names.note()
    assert names[0].feature == 0 and len(names[2:4]) == 2
    assert "<script>" not in named(vocabulary=["<script>", *WORDS])._repr_html_()
    assert str(names[0]).startswith("0: ")


def test_areas_are_those_of_each_feature_and_score_by_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(30, 5, generator=generator) < 0.3
    scores = torch.randint(0, 4, (30, 6), generator=generator).float()
    found = areas(fires, average_ranks(scores))
    for k in range(5):
        for w in range(6):
            assert float(found[k, w]) == pytest.approx(auc(scores[:, w], fires[:, k]))
    tried = torch.tensor([[5, 0, 2]] * 5)
    best = best_of(fires, scores, tried)
    for k in range(5):
        values = [auc(scores[:, w], fires[:, k]) for w in (5, 0, 2)]
        assert int(best[k]) == (5, 0, 2)[max(range(3), key=lambda i: values[i])]
    own, often = torch.tensor([0, 1, 1, 3, -1]), torch.tensor([1, 2, 0, 1, 0, 0])
    others = of_others(fires, scores, own, often)
    for k in range(5):
        names = [0, 1, 1, 3]
        if k < 4:
            names.remove(int(own[k]))
        mean = sum(auc(scores[:, w], fires[:, k]) for w in names) / len(names)
        assert float(others[k]) == pytest.approx(mean)
    assert bool(areas(torch.ones(3, 1, dtype=torch.bool), average_ranks(torch.rand(3, 1))).isnan())


def test_captions_are_looked_through_for_whole_words_in_their_order() -> None:
    captions = ["Ein ROTER Apfel, groß", "roter-apfel", "der Apfel ist roter", ""]
    assert caption_holds(captions, ["roter apfel", "apfel", "r", "?"]).tolist() == [
        [True, True, False, False],
        [False, False, False, False],
        [False, True, False, False],
        [False, False, False, False],
    ]
    several = ["roter apfel / groß", "roter / ein", "? / nichts"]
    assert caption_holds(captions, several).tolist() == [
        [True, True, False],
        [False, False, False],
        [False, True, False],
        [False, False, False],
    ]


def test_phrases_come_twice_go_over_no_comma_and_count_captions() -> None:
    captions = ["red car, old house", "a red car", "old, house", "red red red"]
    words = Vocabulary.of_captions(captions)
    weights = dict(zip(words.texts, words.weights, strict=True))
    assert weights == {"red": 3.0, "car": 2.0, "red car": 2.0, "old": 2.0, "house": 2.0}
    assert Vocabulary.of_captions(captions, most=2).texts == ("red", "car")
    with pytest.raises(BadArgument, match="captions gave 0"):
        Vocabulary.of_captions(["a", "b"])


def test_a_vocabulary_is_a_file_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("Hund\n\n Katze \nHund\n", "utf-8")
    assert Vocabulary.of(file).texts == Vocabulary.of(["Hund", "Katze"]).texts
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadArgument, match="cannot be read as text"):
        Vocabulary.of(file)
    with pytest.raises(BadArgument, match="cannot be read as text"):
        Vocabulary.of(tmp_path / "none.txt")
    with pytest.raises(BadArgument, match="holds 3, which is no text"):
        Vocabulary.of(["a", 3])  # type: ignore[list-item]
