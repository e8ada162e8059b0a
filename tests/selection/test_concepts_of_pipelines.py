"""Concepts of a pipeline's prompts, and sets of examples too small to tell anything."""

import warnings
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_pipelines import PIPELINES
from torch import nn

from vlm_edit import Dictionary, Host, VlmEditError
from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.measuring import collect
from vlm_edit.selection import by_concept, by_difference, by_direction

SITE = "text_encoder.text.1"


def asked(_: Any, _images: list[Any], texts: list[str]) -> dict[str, Any]:
    once = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "latent"}
    return {"prompt": list(texts), **once}


def test_a_pipeline_is_in_the_mode_of_its_models_and_encodes_prompts_or_is_called() -> None:
    pipe = PIPELINES["sd"].make()
    for model in pipe.components.values():
        if isinstance(model, nn.Module):
            model.eval()
    called = Host.of(pipe, pipe.tokenizer, prompt=asked)
    dictionary = Dictionary.identity(called.site(SITE).width)
    found = by_concept(called, dictionary, ["a cat"] * 8, ["a dog"] * 8, SITE)
    assert found
    for host in (pipe, Host.of(pipe, pipe.tokenizer)):
        assert by_concept(host, dictionary, ["a cat"] * 8, ["a dog"] * 8, SITE) == found
    host = Host.of(pipe)
    pairs = [(Image.new("RGB", (8, 8)), text) for text in ("a cat", "a red dog")]
    streams = collect(host, pairs, SITE, progress=False)
    assert set(streams) == {"text"} and streams["text"].shape[1] == dictionary.width
    pipe.text_encoder.train()
    with pytest.raises(VlmEditError, match="in train mode"):
        by_concept(host, dictionary, ["a cat"] * 8, ["a dog"] * 8, SITE)


@pytest.mark.parametrize(("size", "few"), [(2, True), (3, False), (9, False)])
def test_so_few_examples_that_nothing_can_be_significant_are_warned_of(
    size: int, few: bool
) -> None:
    positive, negative = torch.ones(size, 1), torch.zeros(size, 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = by_difference(positive, negative)
        by_direction(positive, negative, torch.eye(1), torch.ones(1))
        by_difference(positive, negative, alpha=None)
    ours = [str(one.message) for one in told if one.category is VlmEditWarning]
    assert found == ([] if few else [0])
    assert any("so few that no feature can be significant" in text for text in ours) == few
    assert len(ours) <= 2
