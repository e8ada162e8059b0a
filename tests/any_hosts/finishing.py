"""Last changes to made inputs, for types that want more than ids and pixels."""

from __future__ import annotations

from typing import Any

import torch
from transformers import modeling_outputs

from any_hosts.sizes import END, IMAGE, START, VIDEO

Inputs = dict[str, Any]

TWO_TEXTS = [[2, 5, 6]]


def full_texts(_: Any, inputs: Inputs) -> Inputs:
    """Texts of one length whatever they say, without a mask, as SigLIP was trained on."""
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    full = ids.new_zeros(len(ids), 12)
    full[:, : ids.shape[1]] = ids
    return {"input_ids": full, **inputs}


def answered(_: Any, inputs: Inputs) -> Inputs:
    """The beginning of an answer for the decoder."""
    n = len(inputs["input_ids"])
    return {**inputs, "decoder_input_ids": inputs["input_ids"].new_tensor(TWO_TEXTS).expand(n, 3)}


def timed(_: Any, inputs: Inputs) -> Inputs:
    """A second for every grid of a video."""
    if "video_grid_thw" in inputs:
        ones = inputs["pixel_values_videos"].new_ones(len(inputs["video_grid_thw"]))
        return {**inputs, "video_second_per_grid": ones}
    return inputs


def repaired(_: Any) -> None:
    """transformers 5.24 asks the language model's output for this, and raises without it."""
    output = modeling_outputs.MoeCausalLMOutputWithPast
    if not hasattr(output, "image_outputs"):
        output.image_outputs = None


def routed(_: Any, inputs: Inputs) -> Inputs:
    """Which places the experts on images and on videos take, the ids around them too."""
    ids = inputs["input_ids"]
    images = (ids == IMAGE) | (ids == START) | (ids == END)
    kinds = images.int() + 2 * (ids == VIDEO).int()
    return {**inputs, "moe_mm_token_type_ids": kinds}


def crowded(model: Any) -> None:
    """The codes of images so close together that images differ in them."""
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.mul_(0.1)


def marked(_: Any, inputs: Inputs) -> Inputs:
    """Images' places as a mask; their ids are words that a text has too."""
    ids = inputs["input_ids"]
    places = ids == IMAGE
    ids[places] = torch.arange(11, 15).repeat(int(places.sum()) // 4)
    return {**inputs, "image_embeds_position_mask": places.long()}


def crossed(_: Any, inputs: Inputs) -> Inputs:
    """A text's place attends to the images that stand before it."""
    if "pixel_values" not in inputs:
        return inputs
    real = inputs["pixel_values"].flatten(2).any(-1)  # rows, images
    before = (inputs["input_ids"] == IMAGE).cumsum(-1)[..., None]
    order = torch.arange(real.shape[1])
    attended = (before > order) & real[:, None]
    return {
        **inputs,
        "aspect_ratio_ids": real.long(),
        "aspect_ratio_mask": real.long()[..., None],
        "cross_attention_mask": attended.long()[..., None],
    }


def decoded(_: Any, inputs: Inputs) -> Inputs:
    """The text is the decoder's, the encoder has only the image."""
    return {
        "decoder_input_ids": inputs.pop("input_ids"),
        "decoder_attention_mask": inputs.pop("attention_mask"),
        **inputs,
    }


def asked_too(_: Any, inputs: Inputs) -> Inputs:
    """The text again for what asks the image, without the image's places and padded right."""
    if "pixel_values" not in inputs:
        return inputs
    real = inputs["attention_mask"].bool() & (inputs["input_ids"] < 56)
    texts = [ids[keep] for ids, keep in zip(inputs["input_ids"], real, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return {
        **inputs,
        "qformer_input_ids": padded,
        "qformer_attention_mask": (padded != 0).long(),
    }


def attended(_: Any, inputs: Inputs) -> Inputs:
    """A text's place attends to the images that stand before it in its row."""
    if "pixel_values" not in inputs:
        return inputs
    real = inputs.pop("pixel_attention_mask").flatten(2).any(-1)
    before = (inputs["input_ids"] == IMAGE).cumsum(-1)[..., None]
    mask = (before > torch.arange(real.shape[1])) & real[:, None]
    return {**inputs, "image_attention_mask": mask.long()}


def laid_out(_: Any, inputs: Inputs) -> Inputs:
    """A box on the page for every word, and an answer."""
    n = len(inputs["input_ids"])
    boxes = torch.tensor([0.1, 0.1, 0.3, 0.3]) * inputs["attention_mask"][..., None]
    return {**inputs, "bbox": boxes, "decoder_input_ids": torch.tensor(TWO_TEXTS).expand(n, 3)}


def acted(_: Any, inputs: Inputs) -> Inputs:
    """A robot's state and the noise that its next actions are made of."""
    n = len(inputs["input_ids"])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, generator=generator).expand(n, 4, 8)
    return {
        **inputs,
        "state": torch.full((n, 8), 0.3),
        "noise": noise,
        "timestep": torch.full((n,), 0.5),
    }


def canvas(_: Any, inputs: Inputs) -> Inputs:
    """Words that are to be made better, four in every row."""
    n = len(inputs["input_ids"])
    return {**inputs, "decoder_input_ids": torch.tensor([[5, 6, 7, 8]]).expand(n, 4)}
