"""Packed patches keep the image each belongs to: strengths per image, and measuring per pair."""

import pytest
import torch
from conftest import random_dictionary
from PIL import Image
from tiny_hosts import FAMILIES

from vlm_edit import Host, Pairs, Patch, Scale, Steer, VlmEditError, find_sites, record
from vlm_edit.measuring import Reader

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
PLACES = ["vision.1", "projector"]


def edit(site):
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(site.name, random_dictionary(site.width), rules)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", QWEN)
def test_each_packed_image_has_its_own_strength(name, place):
    family, host = FAMILIES[name], FAMILIES[name].make()
    inputs, patch = family.inputs(), edit(find_sites(host)[place])
    plain = family.answers(host, inputs)
    with patch.attach(host):
        full = family.answers(host, inputs)
    with patch.attach(host, strength=[0.0, 1.0]) as attached:
        rows = family.answers(host, inputs)
    torch.testing.assert_close(rows[0], plain[0])
    torch.testing.assert_close(rows[1], full[1])
    assert not torch.allclose(rows[1], plain[1], atol=1e-3)
    patches = 16 if place == "vision.1" else 4
    assert attached.report().edited_tokens == patches
    with (
        patch.attach(host, strength=[1.0, 1.0, 0.0]),
        pytest.raises(VlmEditError, match="strength has 3 values, .* has 2 images"),
    ):
        family.answers(host, inputs)


@pytest.mark.parametrize("name", QWEN)
def test_positions_at_packed_patches_are_refused(name):
    family, host = FAMILIES[name], FAMILIES[name].make()
    patch = Patch("vision.1", random_dictionary(find_sites(host)["vision.1"].width),
                     Scale([1], 2.0), positions=(0,))  # fmt: skip
    with patch.attach(host), pytest.raises(VlmEditError, match="has no sequence of tokens per row"):
        family.answers(host, family.inputs())


@pytest.mark.parametrize(
    ("name", "place"),
    [*((n, p) for n in QWEN for p in PLACES), ("florence2", "vision.1.0"), ("llava", "vision.1")],
)
def test_a_vision_site_is_measured_image_by_image(name, place):
    family, host = FAMILIES[name], FAMILIES[name].make()
    site = find_sites(host)[place]
    dictionary = random_dictionary(site.width)
    tile = Image.new("RGB", (8, 8))
    pairs = Pairs([tile, tile], ("one", "two"), name="two")
    reader = Reader(
        Host.of(host, prompt=lambda *_: family.inputs()), dictionary, place, progress=False
    )
    (batch,) = reader.read(pairs)
    for row in (0, 1):
        with record(host, place) as recording, torch.no_grad():
            host(**family.inputs((row,)))
        hidden = recording.last(place, "image").hidden.reshape(-1, site.width)
        torch.testing.assert_close(batch.hidden["image"][row], hidden.mean(0), rtol=1e-4, atol=1e-5)
        codes = dictionary.encode(hidden).abs().mean(0)
        torch.testing.assert_close(batch.codes["image"].dense()[row], codes, rtol=1e-4, atol=1e-5)
