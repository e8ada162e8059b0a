"""Train the dictionaries of emoji-llava's language layers, where image and text share a sequence.

    python docs/experiments recipes.language --pairs build/emoji \
        --host vlm_edit/zoo/emoji-llava --out vlm_edit/zoo/dictionaries

They are trained on the drawings the host was trained on, laid on the pairs' backgrounds without
further augmentation; behind half of them stands a caption, behind the others a question with its
answer. Every layer is read at the same tokens of the same inputs and trained from the same seed,
so that what differs between dictionaries is the layer, and each is the same whichever others are
asked for. What is printed is measured on the shipped pairs, whose drawings neither has seen.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES
from recipes.dialogues import Dialogues
from recipes.dictionaries import COMMON, plain, read_back, report
from recipes.pairs import BACKGROUNDS
from vlm_edit import zoo
from vlm_edit.dictionaries import save_saelens, train_dictionary
from vlm_edit.hooks import record
from vlm_edit.zoo.questions import QUESTIONS, answer

CONFIG = replace(COMMON, n_features=512, steps=3000, norm="constant_norm_rescale")
BATCH = 64
IMAGE_TOKENS = 12


def texts(
    dialogues: Dialogues, chosen: Tensor, backgrounds: Tensor, rng: random.Random
) -> list[str]:
    """A caption of each image, or a question with its answer.

    Args:
        dialogues: The training split.
        chosen: Numbers of drawings.
        backgrounds: Numbers of their backgrounds.
        rng: Draws which.
    """
    colours, told = list(BACKGROUNDS), []
    for i, b in zip(chosen.tolist(), backgrounds.tolist(), strict=True):
        row = {**dialogues.rows[i], "background": colours[b]}
        if rng.random() < 0.5:
            names = dialogues.pairs.names[row["label"]]
            told.append(caption(names, rng.choice(LANGUAGES), rng.choice(PHRASINGS), rng))
        else:
            name = rng.choice(list(QUESTIONS))
            told.append(f"{QUESTIONS[name]} {answer(name, row)}")
    return told


@torch.inference_mode()
def activations(
    model: LlavaForConditionalGeneration,
    sites: Sequence[str],
    batches: Iterator[dict[str, Tensor]],
    image_tokens: int | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Activations of image tokens and of text tokens, by site.

    Args:
        model: The host.
        sites: Names of language layers.
        batches: Inputs of the host.
        image_tokens: How many of each image to keep, at random and the same at every site; by
            default all.
    """
    kept: dict[str, dict[str, list[Tensor]]] = {s: {"image": [], "text": []} for s in sites}
    generator = torch.Generator().manual_seed(0)
    for inputs in batches:
        with record(model, *sites) as recording:
            model(**inputs, use_cache=False)
        drawn = torch.rand(inputs["input_ids"].shape, generator=generator)
        for site in sites:
            capture = recording.last(site, "mixed")
            for stream, parts in kept[site].items():
                mask = capture.tokens.select("text+special" if stream == "text" else stream)
                assert mask is not None
                if stream == "image" and image_tokens:
                    mask = mask & (drawn < image_tokens / int(mask[0].sum()))
                parts.append(capture.hidden[mask])
    return {
        site: {name: torch.cat(parts) for name, parts in streams.items()}
        for site, streams in kept.items()
    }


def training_inputs(
    folder: Path, processor: LlavaProcessor, batches: int
) -> Iterator[dict[str, Tensor]]:
    """Inputs with training drawings.

    Args:
        folder: What the pairs recipe rendered.
        processor: The host's.
        batches: How many.
    """
    dialogues = Dialogues(folder, processor.tokenizer, plain(), seed=1)
    rng, image = random.Random(1), processor.image_token * _tokens_of_an_image(processor)
    for _ in range(batches):
        pixels, chosen, backgrounds = dialogues.pairs.views(BATCH)
        told = [f"{image}\n{text}" for text in texts(dialogues, chosen, backgrounds, rng)]
        tokens = processor.tokenizer(told, padding=True, return_tensors="pt")
        yield {**tokens, "pixel_values": pixels}


def shipped_inputs(processor: LlavaProcessor) -> Iterator[dict[str, Tensor]]:
    """Inputs with the shipped pairs, each image before its caption, as measuring lays them."""
    pairs = zoo.load_pairs()
    for numbers in pairs.batches(128):
        told = [f"{processor.image_token}\n{pairs.texts[i]}" for i in numbers]
        images = [pairs.open(i) for i in numbers]
        yield dict(processor(images=images, text=told, padding=True, return_tensors="pt"))


def _tokens_of_an_image(processor: LlavaProcessor) -> int:
    side = processor.image_processor.crop_size["height"] // processor.patch_size
    return int(side) ** 2 + int(processor.num_additional_image_tokens)


def layers(model: LlavaForConditionalGeneration) -> list[str]:
    """Names of all language layers, the last included."""
    return [f"language.{i}" for i in range(model.config.text_config.num_hidden_layers)]


def main() -> None:
    """Train, save and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="what the pairs recipe rendered")
    parser.add_argument("--host", type=Path, required=True, help="folder of emoji-llava")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dictionaries")
    parser.add_argument("--sites", nargs="+", help="language layers; by default all")
    parser.add_argument("--batches", type=int, default=200, help=f"of {BATCH} images")
    parser.add_argument("--features", type=int, default=CONFIG.n_features)
    parser.add_argument("--k", type=int, default=CONFIG.k)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    options = parser.parse_args()
    config = replace(CONFIG, n_features=options.features, k=options.k, steps=options.steps)
    model = LlavaForConditionalGeneration.from_pretrained(
        options.host, dtype=torch.float32, trust_remote_code=False
    ).eval()
    processor = LlavaProcessor.from_pretrained(options.host, trust_remote_code=False)
    sites = options.sites or layers(model)
    inputs = training_inputs(options.pairs, processor, options.batches)
    streams = activations(model, sites, inputs, IMAGE_TOKENS)
    shipped = activations(model, sites, shipped_inputs(processor))
    for site in sites:
        info = {"model_name": "emoji-llava", "hook_name": site, "site": site}
        dictionary = train_dictionary(streams.pop(site), config, info)
        save_saelens(dictionary, options.out / site, dtype=torch.float16)
        lines = report(site, read_back(options.out / site), shipped.pop(site))
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
