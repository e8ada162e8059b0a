"""Hosts that are given images while they answer."""

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, Clamp, Dictionary, Patch

IMAGE, MARK = 7, 4.25
OWN = Adapter.of({"block": ("block", "mixed", 4)}, image_token=IMAGE)


class Held:
    """As long as what was read."""

    def __init__(self):
        self.length = 0

    def get_seq_length(self):
        return self.length


class Answering(nn.Module):
    """Answers with two image tokens, of which one comes with an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, pixel_values=None, cache=None):
        hidden = self.block(self.embed(input_ids) + (0 if pixel_values is None else pixel_values))
        cache.length += input_ids.shape[1]
        return hidden

    def generate(self, input_ids, pixel_values=None):
        cache, step = Held(), torch.full((len(input_ids), 1), IMAGE)
        prompt = self(input_ids, pixel_values, cache)
        return [prompt, self(step, None, cache), self(step, pixel_values, cache)]


@pytest.mark.parametrize("tokens", ["image", "text", "all"])
@torch.no_grad()
def test_a_step_that_comes_with_an_image_has_image_tokens_and_one_without_has_none(tokens):
    host, ids = Answering(), torch.tensor([[1, IMAGE, 2], [1, 3, IMAGE]])
    patch = Patch.at("block", Dictionary.identity(4), Clamp([3], MARK), tokens=tokens)
    with patch.attach(host, adapter=OWN) as attached:
        outputs = host.generate(ids, pixel_values=torch.ones(1))
    site, both = attached.report().sites[0], torch.ones(2, 1, dtype=torch.bool)
    image = [ids == IMAGE, ~both, both]
    chosen = {"image": image, "text": [~mask for mask in image], "all": [m | True for m in image]}
    for output, expected in zip(outputs, chosen[tokens], strict=True):
        assert torch.equal(output[..., 3] == MARK, expected)
    assert site.streams == {
        "image": 0 if tokens == "text" else 4,
        "text": 0 if tokens == "image" else 6,
        "unknown": 0,
    }
    assert site.phases["decode"] == (4 if tokens == "all" else 2)
    assert tokens == "text" or site.steps == ((1, 1) if tokens == "image" else (0, 1))
