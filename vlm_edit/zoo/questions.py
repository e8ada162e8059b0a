"""What can be asked about a pair's image, and asking a LLaVA in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

QUESTIONS = {
    "what": "what is it?",
    "background": "what colour is the background?",
    "who": "who is it?",
}
_COLUMNS = {"what": "label", "background": "background", "who": "gender"}
_LONGEST = 24


def answer(question: str, row: Mapping[str, str]) -> str:
    """Return the right answer about one pair.

    Args:
        question: A key of `QUESTIONS`.
        row: The pair's columns.

    Example:
        >>> answer("who", {"gender": "none"})
        'nobody'
    """
    value = row[_COLUMNS[question]]
    return "nobody" if question == "who" and value == "none" else value


def answers(question: str, columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the right answer about each pair.

    Args:
        question: A key of `QUESTIONS`.
        columns: Columns of pairs.

    Example:
        >>> from vlm_edit import zoo
        >>> answers("background", zoo.load_pairs().columns)[:2]
        ['white', 'blue']
    """
    return [answer(question, {_COLUMNS[question]: v}) for v in columns[_COLUMNS[question]]]


@torch.inference_mode()
def ask(
    model: LlavaForConditionalGeneration,
    processor: Any,
    images: Sequence[Image.Image],
    question: str,
    batch_size: int = 128,
) -> list[str]:
    """Ask one question about each image, and let the model answer greedily.

    Args:
        model: The host.
        processor: Its processor.
        images: What to ask about.
        question: As a person asks it; an empty one asks for a caption.
        batch_size: Images at once.

    Returns:
        The answers.

    Example:
        >>> from vlm_edit import zoo
        >>> model, processor = zoo.load_llava()
        >>> images = zoo.load_pairs().images[:2]
        >>> ask(model, processor, images, "what colour is the background?")
        ['white', 'blue']
    """
    prompt, replies = f"{processor.image_token}\n{question}", []
    for start in range(0, len(images), batch_size):
        some = list(images[start : start + batch_size])
        inputs = processor(images=some, text=[prompt] * len(some), return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=_LONGEST)
        new = ids[:, inputs["input_ids"].shape[1] :]
        replies += [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]
    return replies
