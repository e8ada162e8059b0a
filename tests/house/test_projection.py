"""What is projected for large sets of pairs is right arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from scale import projection
from vlm_edit.measures.dominance import modality_dominance


def test_weights_that_are_projected_are_those_of_the_hosts() -> None:
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    vision |= {"num_hidden_layers": 24, "patch_size": 14}
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    seventy = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    seventy |= {"num_attention_heads": 64, "num_key_value_heads": 8}
    with torch.device("meta"):
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision)
        )
        llamas = [
            transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32000, **sizes))
            for sizes in (seven, seventy)
        ]
    l14, whole, half, large = projection.HOSTS
    image, words = (tower.weights for tower in l14.towers)
    assert image == pytest.approx(size(clip.vision_model), rel=1e-3)
    assert words == pytest.approx(
        size(clip.text_model) - size(clip.text_model.embeddings), rel=1e-3
    )
    for host, llama in ((whole, llamas[0]), (large, llamas[1])):
        multiply = size(llama) - size(llama.model.embed_tokens)
        assert host.towers[1].weights == pytest.approx(multiply, rel=1e-3)
    assert half.towers[1].weights == pytest.approx(size(llamas[0].model.layers) / 2, rel=1e-3)


def size(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_hours_are_work_over_what_an_h100_reaches() -> None:
    one = projection.Projected(
        "one", (projection.Tower(1e9, 500), projection.Tower(5e8, 1000)), 0.5
    )
    # 2e12 FLOP a pair at half of 989e12 a second.
    assert one.pairs_a_second == pytest.approx(247.25)
    assert one.hours(247.25 * 7200) == pytest.approx(2)
    assert projection.core_hours(7200, 2) == 1
    l14, whole, half, large = projection.HOSTS
    # An earlier table by another hand: 24 minutes, 172, 8,750 and 103,000 hours, roundly.
    assert l14.hours(projection.SETS["CC3M"]) * 60 == pytest.approx(24, rel=0.05)
    assert l14.hours(projection.SETS["DataComp-1B"]) == pytest.approx(172, rel=0.05)
    assert whole.hours(projection.SETS["DataComp-1B"]) == pytest.approx(8750, rel=0.05)
    assert large.hours(projection.SETS["DataComp-1B"]) == pytest.approx(103_000, rel=0.05)
    assert half.flop < 0.55 * whole.flop


@pytest.mark.parametrize("n", [300, 3000])
def test_the_width_of_an_interval_is_that_which_a_measurement_gives(n: int) -> None:
    # Ratios of 0 and 1, half of each: as wide as can be.
    image = (torch.arange(n) % 2).float()[:, None]
    low, high = modality_dominance(image, 1 - image).intervals(0.9)
    assert float(high - low) == pytest.approx(projection.width(n), rel=0.02)
    assert projection.active_for(projection.width(n)) == n


def test_three_million_pairs_settle_what_fires_in_one_of_ten_thousand() -> None:
    n = projection.SAMPLE * 1e-4
    assert math.isclose(n, 300) and n >= projection.active_for(0.1) > 0.9 * n
