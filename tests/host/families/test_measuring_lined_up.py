"""Pairs are measured on hosts that line image and text up: words and patches, no padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lined_up_hosts import HOSTS
from PIL import Image
from tiny_hosts import library
from torch import Tensor, nn

from vlm_edit import Dictionary, Host, measure
from vlm_edit.tasks.doctor import examine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "green", "square", "dog"]
TEXTS = ["a red dog", "blue", "a green square", "red square"]


def processor_in(folder: Path) -> Any:
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    tokenizer = library("BertTokenizerFast")(str(folder / "vocab.txt"))
    module = pytest.importorskip("transformers.models.vilt.image_processing_pil_vilt")
    images = module.ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=4)
    return library("ViltProcessor")(images, tokenizer)


def pictures() -> list[Image.Image]:
    ramp = Image.linear_gradient("L")
    other = Image.merge("RGB", (ramp, ramp.rotate(90), ramp))
    sizes = ((16, 16), (24, 16), (16, 20), (16, 16))
    turned = (other.rotate(angle) for angle in (0, 40, 80, 120))
    return [image.resize(size) for image, size in zip(turned, sizes, strict=True)]


@torch.no_grad()
def alone(model: nn.Module, inputs: Any) -> Tensor:
    """What leaves the second layer of one pair, [S, D]."""
    seen: list[Tensor] = []
    layer = model.get_submodule("encoder.layer.1")
    handle = layer.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
    model(**inputs)
    handle.remove()
    return seen[0][0]


def test_the_means_of_a_measurement_are_those_of_patches_and_of_words(tmp_path: Path) -> None:
    model, processor = HOSTS["vilt"].make(), processor_in(tmp_path)
    pairs = list(zip(pictures(), TEXTS, strict=True))
    found = measure(
        Host.of(model, processor), pairs, Dictionary.identity(24), "encoder.1", batch_size=4
    )
    sums = {"image": torch.zeros(24), "text": torch.zeros(24)}
    for image, text in pairs:
        inputs = processor(images=image, text=text, return_tensors="pt")
        hidden, words = alone(model, inputs), inputs["input_ids"].shape[1]
        patches = image.width * image.height // 16
        assert len(hidden) == words + 1 + patches
        sums["image"] += hidden[words:].mean(0) / len(pairs)
        sums["text"] += hidden[1 : words - 1].mean(0) / len(pairs)
    for stream, expected in sums.items():
        torch.testing.assert_close(found.means[stream].float(), expected, rtol=0, atol=1e-5)


def test_the_doctor_says_that_position_tells(tmp_path: Path) -> None:
    host = Host.of(HOSTS["vilt"].make(), processor_in(tmp_path))
    findings = {f.what: f for f in examine(host, pictures()[0], TEXTS[0])}
    assert findings["image tokens"].told.endswith(
        "told by their position, as the adapter's layout says"
    )
    assert findings["another image"].holds
