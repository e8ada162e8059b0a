from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_edit import Ablate, Dictionary, Host, Patch, VlmEditError, zoo
from vlm_edit.dictionaries import PairedDictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.probing import probe, variance_explained
from vlm_edit.measuring import Reader, collect
from vlm_edit.selection import (
    by_concept,
    by_difference,
    by_direction,
    difference,
    random_like,
    read_examples,
)


@pytest.fixture(scope="module")
def clip_of_emoji() -> tuple[Any, Any]:
    return zoo.load_host()


@pytest.fixture(scope="module")
def joint() -> Dictionary:
    return zoo.load_dictionary("joint")


@pytest.fixture(scope="module")
def embeddings(clip_of_emoji) -> Mapping[str, torch.Tensor]:
    return collect(Host.of(*clip_of_emoji), zoo.load_pairs(), progress=False)


def rows(column: str, value: str) -> list[int]:
    return [i for i, found in enumerate(zoo.load_pairs().columns[column]) if found == value]


def halves(numbers: list[int]) -> tuple[list[int], list[int]]:
    return numbers[0::2], numbers[1::2]


# Against codes worked out by hand


@pytest.mark.parametrize("score", ["difference", "direction"])
@pytest.mark.parametrize("stream", ["image", "text"])
def test_the_host_is_read_at_its_site(clip_of_emoji, joint, embeddings, stream, score) -> None:
    pairs, sets = zoo.load_pairs(), (range(0, 30), range(30, 64))
    found = by_concept(
        Host.of(*clip_of_emoji),
        joint,
        *(pairs.select(s) for s in sets),
        stream=stream,
        score=score,
        alpha=None,
        most=40,
    )
    yes, no = (embeddings[stream][s.start : s.stop] for s in sets)
    codes = joint.encode(yes, stream), joint.encode(no, stream)
    expected = by_difference(*codes, 40, alpha=None)
    if score == "direction":
        way = joint.normalise(yes, stream).mean(0) - joint.normalise(no, stream).mean(0)
        expected = by_direction(*codes, joint.decoder, way, 40, alpha=None)
    assert found == expected and len(found) == 40


def test_a_direction_of_ones_own_takes_the_place_of_the_means(
    clip_of_emoji, joint, embeddings
) -> None:
    pairs, way = zoo.load_pairs(), joint.decoder[7]
    found = by_concept(
        Host.of(*clip_of_emoji),
        joint,
        pairs.select(range(30)),
        pairs.select(range(30, 60)),
        stream="text",
        score="direction",
        direction=way,
        alpha=None,
    )
    codes = joint.encode(embeddings["text"][:60], "text")
    assert found == by_direction(codes[:30], codes[30:], joint.decoder, way, alpha=None)


@pytest.mark.parametrize("stream", ["image", "text"])
def test_texts_and_images_alone_are_read_as_in_pairs(clip_of_emoji, joint, stream) -> None:
    pairs = zoo.load_pairs()
    sets = pairs.select(range(12)), pairs.select(range(12, 24))
    alone = [list(s.texts if stream == "text" else s.images) for s in sets]
    options = {"alpha": None, "most": 30, "batch_size": 5}
    told = by_concept(Host.of(*clip_of_emoji), joint, *alone, **options)
    assert told == by_concept(Host.of(*clip_of_emoji), joint, *sets, stream=stream, **options)


def test_images_may_be_paths(clip_of_emoji, joint, tmp_path) -> None:
    paths: list[Path] = []
    for i, image in enumerate(zoo.load_pairs().images[:8]):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
    images = zoo.load_pairs().images[:8]
    options = {"alpha": None, "most": 30}
    from_disk = by_concept(Host.of(*clip_of_emoji), joint, paths[:4], paths[4:], **options)
    assert from_disk == by_concept(
        Host.of(*clip_of_emoji), joint, images[:4], images[4:], **options
    )
    paths[5].write_bytes(b"no image")
    with pytest.raises(VlmEditError, match="example 1 cannot be read: .*5.png"):
        by_concept(Host.of(*clip_of_emoji), joint, paths[:4], paths[4:])


@pytest.mark.parametrize("score", ["difference", "direction"])
def test_a_dictionary_for_each_stream_gives_that_of_the_streams_own(
    clip_of_emoji, joint, score
) -> None:
    other = joint.reordered([*range(1, 512), 0])
    pair, pairs = PairedDictionary(joint, other), zoo.load_pairs()
    sets = pairs.select(range(20)), pairs.select(range(20, 40))
    options = {"alpha": None, "most": 30, "score": score}
    for stream, half in (("image", joint), ("text", other)):
        told = by_concept(Host.of(*clip_of_emoji), pair, *sets, stream=stream, **options)
        assert told == by_concept(Host.of(*clip_of_emoji), half, *sets, stream=stream, **options)


def test_codes_of_all_batches_stand_in_the_examples_order(clip_of_emoji, joint, embeddings) -> None:
    seen = read_examples(
        Host.of(*clip_of_emoji),
        joint,
        zoo.load_pairs().select(range(11)),
        "joint",
        "text",
        batch_size=4,
    )
    expected = joint.encode(embeddings["text"][:11], "text")
    assert isinstance(seen.codes, SparseCodes) and seen.codes.shape == (11, 512)
    torch.testing.assert_close(seen.codes.dense(), expected, rtol=1e-4, atol=1e-5)
    normed = joint.normalise(embeddings["text"][:11], "text")
    torch.testing.assert_close(seen.normed, normed, rtol=1e-4, atol=1e-5)


def test_a_host_with_one_sequence_is_read_at_its_tokens() -> None:
    host, processor = zoo.load_llava()
    pairs, sae = zoo.load_pairs(), zoo.load_dictionary("language.0")
    red, blue = rows("background", "red")[:16], rows("background", "blue")[:16]
    found = by_concept(
        Host.of(host, processor),
        sae,
        pairs.select(red),
        pairs.select(blue),
        "language.0",
        stream="image",
        most=3,
    )
    reader = Reader(Host.of(host, processor), sae, "language.0", progress=False)
    both = reader.read(pairs.select(red + blue))
    codes = torch.cat([batch.codes["image"].dense() for batch in both])
    assert found == by_difference(codes[:16], codes[16:], 3) and found


# What is known of the zoo


def test_a_background_is_found_by_the_features_that_carry_it(
    clip_of_emoji, joint, embeddings
) -> None:
    pairs = zoo.load_pairs()
    share = variance_explained(joint.encode(embeddings["image"], "image"),
                               pairs.columns["background"])  # fmt: skip
    carriers = set((share > 0.9).nonzero().flatten().tolist())
    others = [i for i in range(1024) if pairs.columns["background"][i] != "red"][:80]
    sets = pairs.select(rows("background", "red")[:60]), pairs.select(others)
    found = by_concept(Host.of(*clip_of_emoji), joint, *sets, stream="image")
    assert found and found[0] in carriers
    assert set(found[: len(carriers)]) & carriers
    along = by_concept(Host.of(*clip_of_emoji), joint, *sets, stream="image", score="direction")
    assert len(carriers) == 6 and len(set(along) & carriers) >= 3


@pytest.mark.parametrize("stream", ["image", "text"])
def test_without_the_features_of_gender_it_is_read_worse_than_without_random_ones(
    clip_of_emoji, joint, embeddings, stream
) -> None:
    pairs = zoo.load_pairs()
    (women, their), (men, his) = halves(rows("gender", "woman")), halves(rows("gender", "man"))
    sets = pairs.select(women), pairs.select(men)
    found = by_concept(Host.of(*clip_of_emoji), joint, *sets, stream=stream, score="direction")
    codes = joint.encode(embeddings[stream], stream)
    live = (codes != 0).any(0).nonzero().flatten().tolist()
    held_out = their + his

    def read(features: list[int]) -> float:
        splice = Patch("joint", joint, Ablate(features)).bindings[0].splice
        edited = splice(embeddings[stream][held_out], stream=stream)
        labels = [pairs.columns["gender"][i] for i in held_out]
        return float(probe(edited, labels).double().mean())

    random = [random_like(found, difference(live, found), seed=seed) for seed in range(5)]
    assert 3 <= len(found) <= 20
    assert read(found) < min(read(features) for features in random) - 0.1


# What is refused


def test_examples_that_cannot_be_compared_are_refused(clip_of_emoji, joint) -> None:
    pairs = zoo.load_pairs().select(range(4))

    def ask(positive: Any, negative: Any, **options: Any) -> None:
        by_concept(Host.of(*clip_of_emoji), joint, positive, negative, **options)

    for positive, negative, options, told in (
        ([], ["a"], {}, "positive examples: got none"),
        ("a cat", ["a"], {}, "positive examples: got 'a cat', one text; give a list"),
        (["a", "b"], ["a", pairs.images[0]], {}, "negative examples are of .*str"),
        ([3, 4], ["a"], {}, "positive examples are of int"),
        (["a", "b"], list(pairs.images), {}, "both streams.*compare like with like"),
        (pairs, pairs, {}, "both streams pass at site 'joint'"),
        (pairs, pairs, {"stream": "audio"}, "stream is 'audio'"),
        (
            pairs,
            pairs,
            {"stream": "text", "site": "vision.2"},
            "no text stream passes at site",
        ),
        (["a", "b"], ["c", "d"], {"site": "vision.2"}, "no text stream passes"),
        (["a", "b"], ["c", "d"], {"score": "cosine"}, "score is 'cosine'"),
        (["a", "b"], ["c"], {}, "1 negative examples"),
    ):
        with pytest.raises(VlmEditError, match=told):
            ask(positive, negative, **options)


def test_pairs_at_a_site_of_one_stream_need_no_word(clip_of_emoji) -> None:
    sae, pairs = zoo.load_dictionary("vision.2"), zoo.load_pairs()
    sets = pairs.select(range(8)), pairs.select(range(8, 16))
    found = by_concept(Host.of(*clip_of_emoji), sae, *sets, "vision.2", alpha=None, most=5)
    same = by_concept(
        Host.of(*clip_of_emoji), sae, *sets, "vision.2", stream="image", alpha=None, most=5
    )
    assert found == same and len(found) == 5


def test_texts_and_a_set_of_pairs_compare_texts(clip_of_emoji, joint) -> None:
    general = zoo.load_pairs().select(range(40))
    texts = ["a red heart", "a blue heart", "a heart", "an emoji showing a heart"]
    found = by_concept(Host.of(*clip_of_emoji), joint, texts, general, alpha=None, most=5)
    assert found == by_concept(
        Host.of(*clip_of_emoji), joint, texts, list(general.texts), alpha=None, most=5
    )
