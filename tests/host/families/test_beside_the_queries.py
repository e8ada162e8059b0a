"""A Q-Former that reads the instruction beside its queries is not edited as if all were image."""

from dataclasses import replace

import pytest
import torch
from conftest import NO_TOKENS, random_dictionary
from tiny_hosts import FAMILIES, IMAGE_TOKEN, OPT, TINY, VISION, VOCABULARY, library

from vlm_edit import Host, Patch, Steer, VlmEditError, record
from vlm_edit.host import Adapter, TapRule, find_adapter

BLIP2 = replace(find_adapter(FAMILIES["blip2"].make()), image_token=IMAGE_TOKEN)
KINDS = ["InstructBlip", "InstructBlipVideo"]


def make(kind):
    former = {**TINY, "hidden_size": 16, "encoder_hidden_size": 24, "vocab_size": VOCABULARY}
    video = {"video_token_index": IMAGE_TOKEN} if kind.endswith("Video") else {}
    config = library(f"{kind}Config")(
        vision_config={**VISION},
        qformer_config={**former, "cross_attention_frequency": 2},
        text_config={**OPT},
        num_query_tokens=4,
        image_token_index=IMAGE_TOKEN,
        **video,
    )
    torch.manual_seed(0)
    return library(f"{kind}ForConditionalGeneration")(config).eval()


def inputs_for(kind):
    frames = 2 if kind.endswith("Video") else 1
    ids = torch.tensor(
        [[1, *[IMAGE_TOKEN] * 4 * frames, 5, 6], [1, *[IMAGE_TOKEN] * 4 * frames, 7, 8]]
    )
    words = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
    pixels = torch.rand(2, frames, 3, 16, 16)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "qformer_input_ids": words,
        "qformer_attention_mask": (words != 0).long(),
        "pixel_values": pixels if frames > 1 else pixels[:, 0],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_instruction_beside_the_queries_is_refused(kind):
    host, inputs = make(kind), inputs_for(kind)
    rules = [Steer([3], 2.0)]
    for choice in ({}, {"tokens": "image"}, {"positions": (0,)}):
        patch = Patch("qformer.1", random_dictionary(16), rules, **choice)
        with (
            torch.no_grad(),
            patch.attach(Host.of(host, adapter=BLIP2)) as attached,
            pytest.raises(
                VlmEditError,
                match=r"qformer\.encoder\.layer\.1 gives out .*, and 4 tokens of a row",
            ),
        ):
            host(**inputs)
        assert attached.report().edited_tokens == 0
    with (
        record(Host.of(host, adapter=BLIP2), "qformer.0"),
        pytest.raises(VlmEditError, match="others share the sequence"),
    ):
        host(**inputs)


def test_queries_alone_are_edited():
    family = FAMILIES["blip2"]
    host = family.make()
    with (
        torch.no_grad(),
        Patch("qformer.1", random_dictionary(16), [Steer([3], 2.0)]).attach(host) as attached,
    ):
        host(**family.inputs())
    assert attached.report().sites[0].streams == NO_TOKENS | {"image": 8, "text": 0}


def test_a_number_of_tokens_that_no_config_has_is_named():
    rules = (TapRule(("qformer.encoder.layer.{i}",), "image", tokens="n_queries"),)
    site = type(BLIP2.sites[1])("qformer.{i}", rules, (16,))
    with pytest.raises(VlmEditError, match=r"neither .* a number 'n_queries'; name the attribute"):
        _ = Host.of(FAMILIES["blip2"].make(), adapter=Adapter((site,))).sites
