import dataclasses
import re
from itertools import islice

import pytest
import torch

from recipes.language import CONFIG, activations, layers, shipped_inputs
from vlm_edit import Ablate, Host, Patch, VlmEditError, find_sites, measure, record, zoo
from vlm_edit.zoo.questions import QUESTIONS, ask

LANGUAGE = [f"language.{i}" for i in range(4)]


@pytest.fixture(scope="module")
def captured():
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs()
    images = [pairs.open(i) for i in range(len(pairs))]
    inputs = processor(text=list(pairs.texts), images=images, return_tensors="pt", padding=True)
    with torch.no_grad(), record(host, "joint", "vision.2") as recording:
        host(**inputs)
    return {
        "joint": {s: recording.last("joint", s).hidden for s in ("image", "text")},
        "vision.2": {"image": recording.last("vision.2", "image").hidden.flatten(0, -2)},
    }


@pytest.fixture(scope="module")
def llava():
    return zoo.load_llava()


@pytest.fixture(scope="module")
def some_inputs(llava):
    """256 of the shipped pairs, in two batches."""
    return list(islice(shipped_inputs(llava[1]), 2))


@pytest.fixture(scope="module")
def tokens(llava, some_inputs):
    return activations(llava[0], LANGUAGE, iter(some_inputs))


def figures(site, stream):
    card = (zoo.DICTIONARIES / "README.md").read_text("utf-8")
    stated = re.search(rf"\| `{site}` \| {stream} \| ([\d.]+) \| ([\d.]+) \|", card)
    return float(stated[1]), float(stated[2])


@pytest.mark.parametrize(
    ("site", "stream"), [("joint", "image"), ("joint", "text"), ("vision.2", "image")]
)
def test_a_dictionary_explains_what_its_card_says(captured, site, stream):
    explained, active = figures(site, stream)
    dictionary, x = zoo.load_dictionary(site), captured[site][stream]
    assert dictionary.explained_variance(x, stream) == pytest.approx(explained, abs=0.002)
    l0 = float((dictionary.encode(x, stream) > 0).sum(1).double().mean())
    assert l0 == pytest.approx(active, abs=0.1)


def test_every_language_layer_has_a_dictionary_of_its_width_and_of_one_recipe(llava):
    sites = find_sites(llava[0])
    assert layers(llava[0]) == LANGUAGE == [s for s in sites if s.startswith("language.")]
    for name in LANGUAGE:
        dictionary = zoo.load_dictionary(name)
        assert sites[name].dead is None and dictionary.width == sites[name].width
        assert dictionary.n_features == CONFIG.n_features
        assert dictionary.info["model_name"] == "emoji-llava"
        assert dictionary.info["site"] == name
        assert dictionary.encoder.norm == CONFIG.norm
        assert set(dictionary.encoder.centers) == {"image", "text"}
        dictionary.expect_site(name)


def test_dictionaries_of_layers_are_not_copies_of_each_other():
    weights = [zoo.load_dictionary(name).decoder for name in LANGUAGE]
    for i, one in enumerate(weights):
        assert not any(torch.allclose(one, other, atol=0.01) for other in weights[i + 1 :])


@pytest.mark.parametrize("stream", ["image", "text"])
@pytest.mark.parametrize("site", LANGUAGE)
def test_a_language_layers_dictionary_explains_what_its_card_says(tokens, site, stream):
    explained, active = figures(site, stream)
    dictionary, x = zoo.load_dictionary(site), tokens[site][stream]
    assert dictionary.explained_variance(x, stream) == pytest.approx(explained, abs=0.02)
    l0 = float((dictionary.encode(x, stream) > 0).sum(1).double().mean())
    assert l0 == pytest.approx(active, abs=0.5)


@pytest.mark.parametrize("stream", ["image", "text"])
def test_a_layers_own_dictionary_explains_it_better_than_its_neighbours_do(tokens, stream):
    for site in LANGUAGE:
        explained = {
            name: zoo.load_dictionary(name).explained_variance(tokens[site][stream], stream)
            for name in LANGUAGE
        }
        assert max(explained, key=explained.__getitem__) == site


def test_layers_are_read_at_the_same_tokens_whichever_others_are_asked_for(llava, some_inputs):
    model, inputs = llava[0], some_inputs[:1]
    alone = activations(model, ["language.2"], iter(inputs), 12)["language.2"]
    every = activations(model, LANGUAGE, iter(inputs), 12)
    for stream, rows in alone.items():
        assert torch.equal(every["language.2"][stream], rows)
        assert {len(streams[stream]) for streams in every.values()} == {len(rows)}
    whole = activations(model, ["language.2"], iter(inputs))["language.2"]
    share = len(alone["image"]) / len(whole["image"])
    assert share == pytest.approx(12 / 37, abs=0.03)
    assert torch.equal(alone["text"], whole["text"])


def test_an_edit_of_image_tokens_at_the_last_layer_reaches_no_answer(llava):
    model, processor = llava
    images = [zoo.load_pairs().open(i) for i in range(8)]
    before = ask(model, processor, images, QUESTIONS["what"])
    for site, same in (("language.3", True), ("language.0", False)):
        dictionary = zoo.load_dictionary(site)
        every = Patch(site, dictionary, Ablate(range(dictionary.n_features)), tokens="image")
        with every.attach(model):
            assert (ask(model, processor, images, QUESTIONS["what"]) == before) is same


def test_each_stream_is_centred_on_what_was_seen_in_training(captured):
    dictionary = zoo.load_dictionary("joint")
    for stream, x in captured["joint"].items():
        normed, _ = dictionary.encoder.normalise(x)
        center = dictionary.encoder.center(stream)
        assert torch.nn.functional.cosine_similarity(normed.mean(0), center, dim=0) > 0.95


@pytest.mark.parametrize("site", ["joint", "vision.2"])
def test_a_patch_of_many_features_moves_the_logits_more_than_one_of_few(site):
    host, processor = zoo.load_host()
    pairs, dictionary = zoo.load_pairs().select(range(32)), zoo.load_dictionary(site)
    images = [pairs.open(i) for i in range(32)]
    inputs = processor(text=list(pairs.texts), images=images, return_tensors="pt", padding=True)

    @torch.no_grad()
    def moved(features):
        before = host(**inputs).logits_per_image
        with Patch(site, dictionary, Ablate(features), tokens="image").attach(host):
            after = host(**inputs).logits_per_image
        return float((after - before).abs().mean())

    few, many = moved(range(4)), moved(range(dictionary.n_features // 2))
    assert 0 < few < many


def test_a_site_without_a_dictionary_is_refused_by_name():
    known = sorted(["joint", *LANGUAGE, "vision.2"])
    with pytest.raises(VlmEditError, match=re.escape(f"'attic'; there are {known}")):
        zoo.load_dictionary("attic")


def test_a_dictionary_of_another_site_of_the_same_width_is_refused():
    host, processor = zoo.load_host()
    dictionary = zoo.load_dictionary("vision.2")
    with pytest.raises(VlmEditError, match="trained at site 'vision.2', not at 'joint'"):
        Patch("joint", dictionary, Ablate([3]))
    with pytest.raises(VlmEditError, match="trained at site 'vision.2', not at 'joint'"):
        measure(
            Host.of(host, processor), zoo.load_pairs().select(range(4)), dictionary, progress=False
        )
    Patch("joint", dataclasses.replace(dictionary, info={}), Ablate([3])).check(host)
