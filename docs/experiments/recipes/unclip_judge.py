"""A classifier of emoji that is independent of the host: it judges what `emoji-unclip` draws."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from recipes.augment import Augmenter, Strength
from recipes.concepts import TONES
from recipes.pairs import BACKGROUNDS
from recipes.unclip_drawings import Supply

_SIDE = 128
_MEAN, _STD = 0.6, 0.3
_WEIGHTS = {"label": 1.0, "vendor": 0.5, "background": 0.2, "tone": 0.2}


@dataclass(frozen=True)
class Judged:
    """What the classifier sees in some images.

    Attributes:
        logits: By factor (`label`, `vendor`, `background`, `tone`), shape (images, values).
        values: The values of each factor, in the order of the columns.
    """

    logits: dict[str, Tensor]
    values: dict[str, tuple[str, ...]]

    def names(self, factor: str) -> list[str]:
        """The likeliest value of each image."""
        return [self.values[factor][i] for i in self.logits[factor].argmax(1).tolist()]


def build(values: dict[str, tuple[str, ...]]) -> ResNetForImageClassification:
    """Build an untrained classifier, one output per value of each factor.

    Args:
        values: The values of each factor; they are kept in the model's `id2label`.
    """
    names = [f"{factor}={value}" for factor, known in values.items() for value in known]
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 176], depths=[2, 2, 2, 2],
        layer_type="basic", hidden_act="relu", id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def values_of(model: ResNetForImageClassification) -> dict[str, tuple[str, ...]]:
    """Read the values of each factor from the model's `id2label`."""
    found: dict[str, list[str]] = {}
    for index in range(len(model.config.id2label)):
        factor, value = model.config.id2label[index].split("=", 1)
        found.setdefault(factor, []).append(value)
    return {factor: tuple(known) for factor, known in found.items()}


def prepare(images: Tensor) -> Tensor:
    """What the classifier takes, of images in [0, 1], shape (count, 3, height, width)."""
    large = F.interpolate(images, size=_SIDE, mode="bilinear", align_corners=False)
    return (large - _MEAN) / _STD


def _logits(
    model: ResNetForImageClassification, values: dict[str, tuple[str, ...]], images: Tensor
) -> dict[str, Tensor]:
    flat = model(pixel_values=prepare(images)).logits.float()
    parts = flat.split([len(known) for known in values.values()], dim=1)
    return dict(zip(values, parts, strict=True))


@torch.no_grad()
def judge(model: ResNetForImageClassification, images: Tensor, batch: int = 256) -> Judged:
    """Classify images.

    Args:
        model: The classifier, in evaluation mode.
        images: In [0, 1], shape (count, 3, 64, 64).
        batch: Images at once.

    Returns:
        Logits on the CPU.
    """
    values, device = values_of(model), next(model.parameters()).device
    parts = [_logits(model, values, part.to(device)) for part in images.split(batch)]
    logits = {factor: torch.cat([p[factor] for p in parts]).cpu() for factor in values}
    return Judged(logits, values)


def load(folder: Path) -> ResNetForImageClassification:
    """Load a classifier in single precision."""
    model = ResNetForImageClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return model.eval()


def train(
    supply: Supply, folder: Path, minutes: float, batch: int, rate: float = 2e-3
) -> ResNetForImageClassification:
    """Train a classifier on augmented training drawings for some minutes, and write it.

    Args:
        supply: The training drawings.
        folder: Folder to write to, in half precision.
        minutes: Wall time; the rate falls to nothing over it.
        batch: Images per step.
        rate: Largest learning rate.

    Returns:
        The classifier as it was written.
    """
    torch.manual_seed(1)
    supply.reseed(1)
    device = supply.device
    truth = {
        "label": [r["label"] for r in supply.rows],
        "vendor": [r["vendor"] for r in supply.rows],
        "tone": [r["tone"] for r in supply.rows],
    }
    values = {factor: tuple(sorted(set(known))) for factor, known in truth.items()}
    values["tone"], values["background"] = TONES, tuple(BACKGROUNDS)
    index = {
        factor: torch.tensor([values[factor].index(v) for v in known], device=device)
        for factor, known in truth.items()
    }
    model = build(values).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    strength = Strength(mirror=0.0, blend=0.0, edges=0.0).scaled(0.6)
    augment = Augmenter(strength, supply.generator)
    began, step, total = time.monotonic(), 0, torch.zeros((), device=device)
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (1 - share)
        chosen = supply.choose(batch)
        which, laid = supply.backgrounds(batch)
        with torch.no_grad(), torch.device(device):
            drawn = supply.pixels[chosen]
            mirrors = torch.zeros(batch, dtype=torch.bool)
            images = augment(drawn, drawn, mirrors, laid)
        target = {factor: known[chosen] for factor, known in index.items()} | {"background": which}
        with torch.autocast(device.type, torch.bfloat16):
            found = _logits(model, values, images.contiguous(memory_format=torch.channels_last))
        loss = sum(
            (
                weight * F.cross_entropy(found[factor], target[factor], label_smoothing=0.05)
                for factor, weight in _WEIGHTS.items()
            ),
            torch.zeros((), device=device),
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        total, step = total + loss.detach(), step + 1
        if step % 200 == 0:
            rate_now = step * batch / (time.monotonic() - began)
            print(f"judge {step:6} {rate_now:7.0f} images/s  loss {total.item() / 200:.3f}")
            total.zero_()
    model.half().save_pretrained(folder)
    print(f"judge: {step} steps of {batch}, {sum(p.numel() for p in model.parameters()):,} weights")
    return load(folder).to(device)
