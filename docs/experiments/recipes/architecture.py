"""The host's architecture and its start values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from recipes.batches import IMAGE_SIZE
from recipes.words import LENGTH


@dataclass(frozen=True)
class Architecture:
    """Sizes of the host.

    Attributes:
        image_size: Height and width of images.
        patch: Height and width of a patch.
        width: Width of the vision tower.
        layers: Its layers.
        heads: Its attention heads.
        text_width: Width of the text tower.
        text_layers: Its layers.
        text_heads: Its attention heads.
        dim: Width of the joint embedding.
    """

    image_size: int = IMAGE_SIZE
    patch: int = 8
    width: int = 192
    layers: int = 4
    heads: int = 6
    text_width: int = 160
    text_layers: int = 3
    text_heads: int = 5
    dim: int = 192


def build(tokenizer: CLIPTokenizer, shape: Architecture) -> CLIPModel:
    """Make an untrained CLIP.

    Args:
        tokenizer: Gives the vocabulary and the special tokens.
        shape: Sizes.
    """
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.text_width,
        "intermediate_size": 4 * shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "max_position_embeddings": LENGTH,
        "hidden_act": "gelu",
        "projection_dim": shape.dim,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch,
        "hidden_act": "gelu",
        "projection_dim": shape.dim,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.dim))


@torch.no_grad()
def start_vision(model: CLIPModel, pixels: Tensor) -> None:
    """Start the vision tower from whitened patches and two-dimensional positions.

    Args:
        model: The model, changed in place.
        pixels: Some normalised training images.
    """
    embeddings = model.vision_model.embeddings
    weight = embeddings.patch_embedding.weight
    patch, width = weight.shape[-1], weight.shape[0]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    order = values.argsort(descending=True)[:width]
    scale = (values[order] + 0.01 * values.max()).rsqrt()
    rows = (vectors[:, order] * scale).T
    nn.init.normal_(weight, std=0.02)
    weight.view(width, -1)[: len(rows)] = rows
    side = pixels.shape[-1] // patch
    positions = embeddings.position_embedding.weight
    positions.zero_()
    positions[1:] = 0.5 * sine_positions(side, width)


def sine_positions(side: int, width: int) -> Tensor:
    """Make two-dimensional sine and cosine positions.

    Args:
        side: Patches along each edge.
        width: Width of a position, a multiple of four.

    Returns:
        Shape (side * side, width), rows first.
    """
    quarter = width // 4
    rates = torch.exp(-math.log(100.0) * torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * rates * math.pi / 2
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    return torch.cat([rows, columns], 2).reshape(side * side, width)


def encode_image(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Embed images, without scaling to length one.

    Args:
        model: The model.
        pixels: Normalised images.
    """
    embeddings: Tensor = model.get_image_features(pixels).pooler_output
    return embeddings


def encode_text(model: CLIPModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Embed captions, without scaling to length one.

    Args:
        model: The model.
        ids: Token ids.
        mask: Attention mask.
    """
    embeddings: Tensor = model.get_text_features(ids, attention_mask=mask).pooler_output
    return embeddings
