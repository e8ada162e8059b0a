"""A model that nobody has an adapter for: a plain module, and its places in one call."""

import pytest
import torch
from conftest import random_dictionary
from torch import nn

from vlm_edit import Adapter, Host, Patch, Scale, Steer, record

IMAGE = 9


class Plain(nn.Module):
    """Reads images as patches into the places of a sequence, as a vision-language model does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.encoder = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))})
        self.bridge = nn.Linear(8, 12)
        self.words = nn.Embedding(10, 12)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(12, 2, 16, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(12, 10)

    def embed_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids)

    def forward(self, input_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        images = self.patches(pixels)
        images = images.flatten(2).mT
        for block in self.encoder["blocks"]:
            images = block(images).tanh()
        hidden = self.embed_text(input_ids)
        hidden = hidden.masked_scatter((input_ids == IMAGE)[..., None], self.bridge(images))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


PLACES = {
    "patches": ("patches", "image", "patches.out_channels", 1),
    "vision.{i}": ("encoder.blocks.{i}", "image", 8),
    "projector": ("bridge", "image", "bridge.out_features"),
    "words": ("embed_text()", "text", 12),
    "language.{i}": ("layers.{i}", "mixed", 12),
}
OWN = Adapter.of(PLACES, image_token=IMAGE, visual_inputs=("pixels",))
HOST = Plain().eval()
IDS = torch.tensor([[1, 9, 9, 9, 9, 2, 3], [4, 9, 9, 9, 9, 5, 6]])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDTHS = {
    **{"patches": 8, "vision.0": 8, "vision.1": 8, "projector": 12},
    **{"words": 12, "language.0": 12, "language.1": 12},
}


WHOLE = {"text": "text+special"}  # no tokenizer tells a text's own tokens here


def edit(name: str, tokens: str = "all") -> Patch:
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(name, random_dictionary(WIDTHS[name]), rules, WHOLE.get(tokens, tokens))


def test_a_plain_module_has_the_places_it_is_said_to_have():
    assert {name: site.width for name, site in Host.of(HOST, adapter=OWN).sites.items()} == WIDTHS


@pytest.mark.parametrize("name", WIDTHS)
@torch.no_grad()
def test_an_edit_of_a_plain_module_reaches_its_output_and_leaves_no_trace(name):
    before = HOST(IDS, PIXELS)
    with edit(name).attach(Host.of(HOST, adapter=OWN)):
        during = HOST(IDS, PIXELS)
        alone = HOST(IDS[1:], PIXELS[1:])
    assert ((before - during).abs().amax((1, 2)) > 1e-3).all()
    assert torch.allclose(during[1:], alone, atol=1e-5)
    assert torch.equal(HOST(IDS, PIXELS), before)


def test_what_flows_in_a_plain_module_is_recorded():
    with record(Host.of(HOST, adapter=OWN), *WIDTHS) as recording:
        HOST(IDS, PIXELS)
    assert {c.site: c.hidden.shape[-1] for c in recording.captures} == WIDTHS


@torch.no_grad()
def test_image_tokens_of_a_plain_module_are_those_with_the_number_it_was_given():
    before = HOST(IDS, pixels=PIXELS)
    with edit("language.1", "image").attach(Host.of(HOST, adapter=OWN)):
        moved = (HOST(IDS, pixels=PIXELS) != before).any(-1)
    assert torch.equal(moved, IDS == IMAGE)
