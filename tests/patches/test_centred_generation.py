"""Dictionaries that centre each stream apart, while a host generates: the arithmetic by hand."""

import pytest
import torch
from conftest import IMAGE_TOKEN, make_llava

from vlm_edit import Dictionary, Patch, Scale, VlmEditError, record
from vlm_edit.dictionaries import Encoder

LLAVA = make_llava()
SITE, WIDTH, FEATURES = "language.1", 32, 20
NEW, FACTOR = 4, 3.0


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


WEIGHT, BIAS, DECODER = random(WIDTH, FEATURES), random(FEATURES), random(FEATURES, WIDTH) / 8
CENTERS = {"image": random(2, WIDTH)[0], "text": random(3, WIDTH)[0]}
FEW, K = [3, 11], 5  # of TopK few features, so that in some tokens neither could be active
DICTIONARIES = {
    "relu": Dictionary(Encoder(WEIGHT, BIAS, centers=CENTERS), DECODER, torch.zeros(WIDTH)),
    "topk": Dictionary(
        Encoder(WEIGHT, BIAS, "topk", k=K, centers=CENTERS), DECODER, torch.zeros(WIDTH)
    ),
}


def change_by_hand(token, center, kind):
    """What it adds to a token that its features are three times as active."""
    code = ((token - center) @ WEIGHT + BIAS).clamp(min=0)
    if kind == "relu":
        return (FACTOR * code - code) @ DECODER
    strongest = sorted(range(FEATURES), key=lambda k: -float(code[k]))[:K]
    kept = [k for k in FEW if k in strongest]
    return (FACTOR * code[kept] - code[kept]) @ DECODER[kept]


def edited_by_hand(hidden, image, chosen, kind="relu"):
    """Each chosen token centred by its own stream."""
    rows = []
    for row, is_image, is_chosen in zip(hidden, image, chosen, strict=True):
        for token, of_image, meant in zip(row, is_image, is_chosen, strict=True):
            center = CENTERS["image" if of_image else "text"]
            rows.append(token + change_by_hand(token, center, kind) if meant else token)
    return torch.stack(rows).view_as(hidden)


@torch.no_grad()
def outputs(inputs, tokens="all", said=None, kind="relu", **options):
    """Each call's output before and after the edit, both of the edited generation."""
    features = range(FEATURES) if kind == "relu" else FEW
    patch = Patch(SITE, DICTIONARIES[kind], Scale(features, FACTOR), tokens=tokens)
    with (
        record(LLAVA, SITE) as before,
        patch.attach(LLAVA, image_mask=said),
        record(LLAVA, SITE) as after,
    ):
        LLAVA.generate(
            **inputs,
            **{"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]},
            **options,
        )
    assert len(before.captures) == len(after.captures) >= NEW
    return [(a.hidden, b.hidden) for a, b in zip(before.captures, after.captures, strict=True)]


def known(inputs, hidden, place):
    """Which tokens of a call that begins at a place are image, and which are no padding."""
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    length = hidden.shape[1]
    missing = max(0, place + length - ids.shape[1])
    image = torch.nn.functional.pad(ids == IMAGE_TOKEN, (0, missing))
    real = torch.nn.functional.pad(real, (0, missing), value=True)
    beams = len(hidden) // len(ids)
    return tuple(
        mask[:, place : place + length].repeat_interleave(beams, 0) for mask in (image, real)
    )


MODES = [
    {},
    {"num_beams": 2},
    {"cache_implementation": "static", "disable_compile": True},
    {"use_cache": False},
    {"prefill_chunk_size": 4},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize("kind", DICTIONARIES)
def test_each_step_is_centred_by_the_mean_of_its_own_tokens(llava_inputs, kind, tokens, mode):
    place, generated = 0, 0
    for before, after in outputs(llava_inputs, tokens, kind=kind, **mode):
        if mode.get("use_cache") is False:
            place = 0
        image, real = known(llava_inputs, before, place)
        chosen = real & {"all": real, "image": image, "text+special": ~image}[tokens]
        expected = edited_by_hand(before, image, chosen, kind)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(after[~chosen], before[~chosen])
        place += before.shape[1]
        generated += place > llava_inputs["input_ids"].shape[1]
    assert generated >= NEW - 1


def test_the_two_means_would_give_another_step(llava_inputs):
    """So that the comparisons above tell one mean from the other."""
    before, after = outputs(llava_inputs)[1]
    image = torch.ones(before.shape[:2], dtype=torch.bool)
    assert float((edited_by_hand(before, image, image) - after).abs().amax(-1).min()) > 0.1


def test_the_users_mask_tells_which_mean_embeddings_are_centred_by(llava_inputs):
    with torch.no_grad():
        embeds = LLAVA.get_input_embeddings()(llava_inputs["input_ids"])
    inputs = {"inputs_embeds": embeds, "attention_mask": llava_inputs["attention_mask"]}
    said = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    said[:, 4:7] = True
    place = 0
    for before, after in outputs(inputs, said=said):
        _, real = known(llava_inputs, before, place)
        length = before.shape[1]
        image = said if place == 0 else torch.zeros(len(before), length, dtype=torch.bool)
        torch.testing.assert_close(after, edited_by_hand(before, image, real), rtol=1e-4, atol=1e-4)
        place += length
    with pytest.raises(VlmEditError, match="centres image and text tokens apart, and this call"):
        outputs(inputs)
