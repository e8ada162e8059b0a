"""Tiny hosts with the library's own image processors, asked by ids of their own.

    hosted("llava", CLIPImageProcessorPil(...), tokens=16)

And every type that ``any_hosts`` builds, its pictures laid out as its forward takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from any_hosts import AnyHost, build
from any_hosts.hosts import taken
from any_hosts.sizes import IMAGE
from PIL import Image
from torch import Tensor

from vlm_edit import Host

WORDS = (1, 5), (6,)  # before the image and behind it


def asked(ids: Tensor) -> dict[str, Tensor]:
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "token_type_ids": (ids == IMAGE).long(),
    }


def hosted(
    model_type: str,
    maker: Any,
    tokens: int,
    prepare: Callable[[Any], None] = lambda _: None,
) -> Host:
    """A tiny random host whose pictures a real image processor lays out.

    Args:
        model_type: As for ``build``.
        maker: The image processor.
        tokens: Placeholders of one picture; 0 where a text shows none.
        prepare: Changes the host's config.
    """
    model = build(model_type).model
    prepare(model.config)
    takes = taken(model)

    def prompt(maker: Any, images: Sequence[Image.Image], _: Any) -> Mapping[str, Any]:
        values = dict(maker(list(images), return_tensors="pt"))
        row = [*WORDS[0], *[IMAGE] * tokens, *WORDS[1]]
        values |= asked(torch.tensor([row] * len(images)))
        return {name: value for name, value in values.items() if name in takes}

    return Host.of(model, maker, prompt=prompt)


def as_tensor(image: Image.Image, side: int) -> Tensor:
    """A picture [3, side, side] between -1 and 1."""
    pixels = np.asarray(image.resize((side, side)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def of_any_type(host: AnyHost) -> Host:
    """A host of any type, with what lays pictures out for its forward."""

    def prompt(_: Any, images: Sequence[Image.Image], __: Any) -> Mapping[str, Any]:
        config = host.model.config
        made = host.texts([[5, "I", 6, 7] for _ in images], host.side)
        made |= host.packing(config, [[as_tensor(i, host.recipe.size)] for i in images])
        return host.recipe.finish(config, made) if host.recipe.finish else made

    return Host.of(host.model, prompt=prompt)
