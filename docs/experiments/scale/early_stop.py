"""How much sooner a forward is over that ends behind the layer that is read, and what it holds.

    python docs/experiments scale.early_stop --layer 8 --layers 16
    python docs/experiments scale.early_stop --only whole --vocabulary 152064 --batch 32

A random LLaVA is read at one layer: by whole forwards, by whole ones that make the logits of the
last token alone, and by forwards that end. They take turns in one run, and medians are compared.
With ``--only`` one way alone is run, twice, and the process's peak of memory is told, which starts
with the model's weights.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlm_edit import Host, record
from vlm_edit.hooks import EarlyStop

IMAGE_TOKENS = 16


def make_host(layers: int, vocabulary: int) -> Host:
    """Return a random LLaVA of width 256."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=vocabulary,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=vocabulary - 1)
    return Host.of(LlavaForConditionalGeneration(config).eval())


def make_inputs(host: Host, batch: int, length: int) -> dict[str, Tensor]:
    """Return a batch with an image in each row and texts of some tokens behind it."""
    image = host.root.config.image_token_id
    ids = torch.randint(5, image, (batch, IMAGE_TOKENS + length))
    ids[:, :IMAGE_TOKENS] = image
    pixels = torch.randn(batch, 3, 56, 56)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def ways(host: Host, site: str, inputs: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the ways to run a forward of which one layer is read."""
    early, rows = EarlyStop(host, site), len(inputs["input_ids"])
    return {
        "whole": lambda: host.run(inputs),
        "last logits alone": lambda: host.run({**inputs, "logits_to_keep": 1}),
        "ended": lambda: early.run(inputs, rows),
    }


def seconds(host: Host, site: str, way: Callable[[], Any]) -> float:
    """Return the processor's seconds of one reading."""
    start = time.process_time()
    with torch.no_grad(), record(host, site):
        way()
    return time.process_time() - start


def main() -> None:
    """Run what is asked for and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32064)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--only", choices=["whole", "last logits alone", "ended"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, site = make_host(options.layers, options.vocabulary), f"language.{options.layer}"
    inputs = make_inputs(host, options.batch, options.length)
    every = ways(host, site, inputs)
    if options.only:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(2):
            seconds(host, site, every[options.only])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{options.only}: peak {(peak - before) / 1024:,.0f} MiB above {before / 1024:,.0f}")
        return
    times: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(options.times + 1):  # the first of all warms up, and is whole
        for name, way in every.items():
            taken = seconds(host, site, way)
            if turn:
                times[name].append(taken)
    whole = statistics.median(times["whole"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name}: {median:.3f} s, {whole / median:.2f} times as fast as whole")


if __name__ == "__main__":
    main()
