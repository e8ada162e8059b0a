import dataclasses
import re

import pytest
import torch

from vlm_edit import Ablate, Patch, VlmEditError, measure, record, zoo


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


@pytest.mark.parametrize(
    ("site", "stream"), [("joint", "image"), ("joint", "text"), ("vision.2", "image")]
)
def test_a_dictionary_explains_what_its_card_says(captured, site, stream):
    card = (zoo.DICTIONARIES / "README.md").read_text("utf-8")
    stated = re.search(rf"\| `{site}` \| {stream} \| ([\d.]+) \| ([\d.]+) \|", card)
    dictionary, x = zoo.load_dictionary(site), captured[site][stream]
    assert dictionary.explained_variance(x, stream) == pytest.approx(float(stated[1]), abs=0.002)
    l0 = float((dictionary.encode(x, stream) > 0).sum(1).double().mean())
    assert l0 == pytest.approx(float(stated[2]), abs=0.1)


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
        with Patch.at(site, dictionary, Ablate(features), tokens="image").attach(host):
            after = host(**inputs).logits_per_image
        return float((after - before).abs().mean())

    few, many = moved(range(4)), moved(range(dictionary.n_features // 2))
    assert 0 < few < many


def test_a_site_without_a_dictionary_is_refused_by_name():
    with pytest.raises(
        VlmEditError, match=r"'attic'; there are \['joint', 'language.0', 'vision.2'\]"
    ):
        zoo.load_dictionary("attic")


def test_a_dictionary_of_another_site_of_the_same_width_is_refused():
    host, processor = zoo.load_host()
    dictionary = zoo.load_dictionary("vision.2")
    with pytest.raises(VlmEditError, match="trained at site 'vision.2', not at 'joint'"):
        Patch.at("joint", dictionary, Ablate([3]))
    with pytest.raises(VlmEditError, match="trained at site 'vision.2', not at 'joint'"):
        measure(host, processor, zoo.load_pairs().select(range(4)), dictionary, progress=False)
    Patch.at("joint", dataclasses.replace(dictionary, info={}), Ablate([3])).check(host)
