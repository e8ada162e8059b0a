"""Train the zoo's dictionaries: one on the joint embedding of both streams, one on a vision layer.

    python docs/experiments recipes.dictionaries --pairs build/emoji \
        --host vlm_edit/zoo/emoji-clip --out vlm_edit/zoo/dictionaries

They are trained on the drawings the host was trained on, laid on the pairs' backgrounds without
further augmentation, with captions drawn anew. What is printed is measured on the shipped pairs,
whose drawings neither host nor dictionary has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from recipes.augment import Strength
from recipes.batches import TrainingPairs
from vlm_edit import zoo
from vlm_edit.dictionaries import (
    Dictionary,
    TrainConfig,
    load_dictionary,
    save_saelens,
    train_dictionary,
)
from vlm_edit.hooks import record
from vlm_edit.measuring import Pairs

VISION_SITE = "vision.2"
# How the shipped ones were trained, by the defaults of their time.
COMMON = TrainConfig(k=16, lr=1e-3, clip=None, dead_after=200)
CONFIGS = {
    "joint": replace(COMMON, n_features=512, steps=6000, norm="constant_norm_rescale"),
    VISION_SITE: replace(COMMON, n_features=1024, steps=4000, center=False),
}
BATCH = 128


def plain() -> Strength:
    """No augmentation."""
    return Strength(**{name: 0.0 for name in Strength.__dataclass_fields__ if name != "scale"},
                    scale=(1.0, 1.0))  # fmt: skip


def collect(model: CLIPModel, pairs: TrainingPairs, batches: int) -> dict[str, dict[str, Tensor]]:
    """Activations of training pairs, by site and stream.

    Args:
        model: The host.
        pairs: Draws batches.
        batches: How many.
    """
    kept: dict[str, dict[str, list[Tensor]]] = {
        "joint": {"image": [], "text": []},
        VISION_SITE: {"image": []},
    }
    with torch.inference_mode(), record(model, *kept) as recording:
        for _ in range(batches):
            batch = pairs.batch(BATCH)
            model(input_ids=batch.ids, attention_mask=batch.mask, pixel_values=batch.pixels)
            for capture in recording.captures:
                kept[capture.site][capture.tokens.stream].append(capture.hidden.flatten(0, -2))
            recording.captures.clear()
    return {
        site: {stream: torch.cat(parts) for stream, parts in streams.items()}
        for site, streams in kept.items()
    }


def collect_shipped(
    model: CLIPModel, processor: CLIPProcessor, pairs: Pairs
) -> dict[str, dict[str, Tensor]]:
    """Activations of the shipped pairs, by site and stream."""
    images = [pairs.open(i) for i in range(len(pairs))]
    inputs = processor(text=list(pairs.texts), images=images, return_tensors="pt", padding=True)
    with torch.inference_mode(), record(model, "joint", VISION_SITE) as recording:
        model(**inputs)
    return {
        "joint": {s: recording.last("joint", s).hidden for s in ("image", "text")},
        VISION_SITE: {"image": recording.last(VISION_SITE, "image").hidden.flatten(0, -2)},
    }


def read_back(path: Path) -> Dictionary:
    """What was saved, as others will read it."""
    found = load_dictionary(path)
    assert isinstance(found, Dictionary)
    return found


def report(site: str, dictionary: Dictionary, streams: Mapping[str, Tensor]) -> list[str]:
    """What the dictionary explains of activations it was not trained on, line by line."""
    lines = []
    alive = torch.zeros(dictionary.n_features, dtype=torch.bool)
    for stream, data in streams.items():
        known = stream if dictionary.encoder.centers else None
        codes = dictionary.encode(data, known)
        alive |= codes.any(0)
        explained = dictionary.explained_variance(data, known)
        l0 = float((codes > 0).sum(1).float().mean())
        lines.append(f"{site:10} {stream:5} explained variance {explained:.3f}, L0 {l0:.1f}")
    lines.append(f"{site:10} {int(alive.sum())} of {dictionary.n_features} features alive")
    return lines


def main() -> None:
    """Train, save and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="what the pairs recipe rendered")
    parser.add_argument("--host", type=Path, required=True, help="folder of emoji-clip")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dictionaries")
    parser.add_argument("--batches", type=int, default=400, help=f"of {BATCH} pairs")
    options = parser.parse_args()
    model = CLIPModel.from_pretrained(
        options.host, dtype=torch.float32, trust_remote_code=False
    ).eval()
    processor = CLIPProcessor.from_pretrained(options.host, trust_remote_code=False)
    pairs = TrainingPairs(options.pairs, processor.tokenizer, plain(), seed=1)
    streams = collect(model, pairs, options.batches)
    shipped = collect_shipped(model, processor, zoo.load_pairs())
    for site, config in CONFIGS.items():
        info = {"model_name": "emoji-clip", "hook_name": site, "site": site}
        dictionary = train_dictionary(streams[site], config, info)
        save_saelens(dictionary, options.out / site, dtype=torch.float16)
        print("\n".join(report(site, read_back(options.out / site), shipped[site])))


if __name__ == "__main__":
    main()
