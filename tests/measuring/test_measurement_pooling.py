"""What a measurement pools over tokens, and what it does not, against the host's own outputs."""

import math

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava
from PIL import Image
from transformers import LlamaConfig, LlamaModel

from vlm_edit import Adapter, Dictionary, Host, Pairs, VlmEditError
from vlm_edit.host import Inputs
from vlm_edit.measuring import Reader

PAIRS = Pairs([Image.new("RGB", (8, 8))] * 3, ("a", "b", "c"))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLIP_INPUTS = {
    "input_ids": torch.tensor([[1, 5, 6, 63], [1, 8, 63, 0], [1, 63, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
    "pixel_values": random(3, 3, 16, 16),
}
IDS = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 6, 7], [0, 1, *[IMAGE_TOKEN] * 4, 8], [1, 5, 5]
                    + [IMAGE_TOKEN] * 4])  # fmt: skip
LLAVA_INPUTS = {
    "input_ids": IDS,
    "attention_mask": (IDS != 0).long(),
    "pixel_values": random(3, 3, 16, 16, seed=1),
}


def reader(model, site, values, width, adapter=None, **options):
    text = values["attention_mask"].bool() & (values["input_ids"] != IMAGE_TOKEN)
    return Reader(
        Host.of(model, adapter=adapter, prompt=lambda *_: Inputs(values, caption=text)),
        Dictionary.identity(width),
        site,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("site", ["vision.1", "text.1", "language.1"])
def test_signed_codes_are_pooled_by_their_absolute_values(site):
    """A mean of signed codes would call a feature silent that is as often below zero as above."""
    model, inputs, width = (
        (make_llava(), LLAVA_INPUTS, 32)
        if site == "language.1"
        else (make_clip(), CLIP_INPUTS, 24 if site == "vision.1" else 16)
    )
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    if site == "language.1":
        image = inputs["input_ids"] == IMAGE_TOKEN
        hidden = {
            s: (out.hidden_states[2], m & real) for s, m in (("image", image), ("text", ~image))
        }
    elif site == "vision.1":
        tokens = out.vision_model_output.hidden_states[2]
        hidden = {"image": (tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))}
    else:
        hidden = {"text": (out.text_model_output.hidden_states[2], real)}
    (batch,) = reader(model, site, inputs, width).read(PAIRS)
    assert set(batch.codes) == set(hidden)
    for stream, (tokens, mask) in hidden.items():
        rows = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
        signed = torch.stack([row.mean(0) for row in rows])
        absolute = torch.stack([row.abs().mean(0) for row in rows])
        torch.testing.assert_close(batch.hidden[stream], signed, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(batch.normed[stream], signed, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(batch.codes[stream].dense(), absolute, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(signed.abs(), absolute, atol=1e-2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("site", ["vision.1", "language.1", "joint"])
def test_a_host_that_overflows_in_one_pair_is_refused_at_any_site(site, wrong):
    if site == "language.1":
        model, inputs, width = make_llava(), LLAVA_INPUTS, 32
        with torch.no_grad():
            model.get_input_embeddings().weight[7] = wrong  # the last token of the first pair
    else:
        model, inputs, width = make_clip(), dict(CLIP_INPUTS), 24 if site == "vision.1" else 12
        inputs["pixel_values"] = inputs["pixel_values"].clone()
        inputs["pixel_values"][2, 0, 0, 0] = wrong
    both = reader(model, site, inputs, width)
    for read in (both.read, both.tokens):
        with pytest.raises(VlmEditError, match=f"at site '{site}' hold NaN or infinity"):
            list(read(PAIRS))


def test_more_rows_than_pairs_are_an_error_as_fewer_are():
    images = CLIP_INPUTS["pixel_values"].repeat(2, 1, 1, 1)
    inputs = {**CLIP_INPUTS, "pixel_values": images}
    with pytest.raises(VlmEditError, match="3 pairs give 6 rows of the image stream"):
        list(reader(make_clip(), "joint", inputs, 12).read(PAIRS))


@pytest.mark.parametrize("generates", [True, False])
def test_no_host_that_could_keep_a_cache_keeps_one_while_it_is_measured(generates):
    if generates:
        model, site, inputs, own = make_llava(), "language.1", LLAVA_INPUTS, None
    else:  # takes the argument, and generates nothing
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4,
        )  # fmt: skip
        model, site = LlamaModel(config).eval(), "text.1"
        inputs = {k: v for k, v in LLAVA_INPUTS.items() if k != "pixel_values"}
        own = Adapter.of({"text.{i}": ("layers.{i}", "text", "hidden_size")})
    seen = []
    model.register_forward_hook(
        lambda _m, _a, kwargs, output: seen.append((kwargs["use_cache"], output.past_key_values)),
        with_kwargs=True,
    )
    for read in (
        reader(model, site, inputs, 32, adapter=own).read,
        reader(model, site, inputs, 32, adapter=own).tokens,
    ):
        list(read(PAIRS))
    assert seen == [(False, None)] * 2
