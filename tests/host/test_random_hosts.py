"""Hosts with weights drawn anew, of which the given one notices nothing."""

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, Host, zoo
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.host import random_host
from vlm_edit.measuring import collect


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x)
        return out


ADAPTER = Adapter.of({"vision.{i}": ("blocks.{i}", "image", 4)})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_a_random_host_answers_otherwise_and_the_given_one_stays_as_it_is() -> None:
    host = Host.of(*zoo.load_host())
    before, state = weights(host.model), torch.get_rng_state()
    null = random_host(host)
    assert torch.equal(weights(host.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert null.processor is host.processor and not null.root.training
    assert list(null.sites) == list(host.sites)
    pairs = zoo.load_pairs().select(range(32))
    trained, random = (collect(one, pairs, progress=False) for one in (host, null))
    ranks = []
    for streams in (trained, random):
        image, text = (nn.functional.normalize(streams[s], dim=1) for s in ("image", "text"))
        ranks.append(float(((image @ text.T).argmax(1) == torch.arange(32)).double().mean()))
    assert ranks[0] > 0.5 > 0.2 > ranks[1]


def test_weights_are_those_that_the_config_alone_would_draw() -> None:
    model, _ = zoo.load_host()
    torch.manual_seed(7)
    expected = type(model)(model.config)
    assert torch.equal(weights(random_host(model, seed=7).model), weights(expected))
    assert not torch.equal(weights(random_host(model, seed=8).model), weights(expected))


def test_a_random_host_has_the_dtype_of_the_given_one() -> None:
    model, _ = zoo.load_host(torch.bfloat16)
    assert {p.dtype for p in random_host(model).root.parameters()} == {torch.bfloat16}


def test_modules_of_ones_own_draw_their_weights_anew() -> None:
    host = Host.of(Blocks().train(), adapter=ADAPTER)
    with torch.no_grad():
        host.root.blocks[1].weight.fill_(5)
    null = random_host(host, seed=1)
    assert null.root.training and list(null.sites) == list(host.sites)
    assert torch.equal(null.root.blocks[1].weight, torch.ones(4))
    assert float(host.root.blocks[1].weight.detach().min()) == 5
    torch.manual_seed(1)
    expected = nn.Linear(4, 4)
    assert torch.equal(null.root.blocks[0].weight, expected.weight)


def test_a_weight_that_no_module_draws_is_named() -> None:
    model = Blocks()
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(CannotKnow, match="how scale and 0 more weights of Blocks are drawn"):
        random_host(Host.of(model, adapter=ADAPTER))


def test_a_pipeline_has_no_random_copy() -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(BadArgument, match="is several models"):
        random_host(zoo.load_unclip())
