"""One drawing of a pipeline, its noise by a seed."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image


def draw(
    pipe: Any, source: str | Image.Image, steps: int | None = None, seed: int = 0
) -> Image.Image:
    """Draw a prompt, or what an image shows, once; patches that are attached act.

    Args:
        pipe: A pipeline of diffusers, called with ``prompt`` or ``image``.
        source: What to draw.
        steps: Of the scheduler; None for the pipeline's own.
        seed: Of the noise, drawn on the CPU so that it is the same on every device.

    Example:
        >>> from vlm_edit import zoo
        >>> pipe = zoo.load_unclip()
        >>> pipe.set_progress_bar_config(disable=True)
        >>> draw(pipe, "a picture of dog face", steps=2).size
        (64, 64)
    """
    given: dict[str, Any] = {"prompt": source} if isinstance(source, str) else {"image": source}
    if steps is not None:
        given["num_inference_steps"] = steps
    generator = torch.Generator().manual_seed(seed)
    image = pipe(**given, generator=generator).images[0]
    assert isinstance(image, Image.Image)
    return image
