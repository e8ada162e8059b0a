"""Batches for training: drawings in random views, captions drawn anew."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from recipes.augment import Augmenter, Strength, premultiply
from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES, TONES
from recipes.pairs import BACKGROUNDS, load_drawings, load_names
from recipes.words import LENGTH

IMAGE_SIZE = 48
PIXEL_MEAN, PIXEL_STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
_DIRECTED = re.compile(r"left|right|clock|thirty|facing|east|west|input|button|keycap|italic", re.I)


@dataclass
class Batch:
    """What one step sees.

    Attributes:
        pixels: Normalised images.
        ids: Token ids, padded with the end token.
        mask: Attention mask of `ids`.
        labels: Index of the label of each pair.
        factors: Index of each single-modality factor's value, by factor.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    labels: Tensor
    factors: dict[str, Tensor]


def normalise(images: Tensor) -> Tensor:
    """Centre and scale images in [0, 1] as the image processor does."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def shrink(drawings: Tensor) -> Tensor:
    """Bring `uint8` RGBA drawings to the host's image size.

    Args:
        drawings: Shape (count, 4, height, width).
    """
    parts = []
    for part in drawings.split(1024):
        x = premultiply(part)
        x = F.interpolate(x, size=IMAGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)
        colour = torch.minimum(x[:, :3] / x[:, 3:].clamp(min=1 / 255), torch.ones(()))
        parts.append((torch.cat([colour, x[:, 3:]], 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def may_mirror(label: str, group: str, directed: set[str]) -> bool:
    """Say whether the mirrored drawing still shows the label.

    Args:
        label: The label.
        group: Its group.
        directed: Labels that another label says the direction of ("… facing right").
    """
    return (
        group not in ("symbols", "flags")
        and not _DIRECTED.search(label)
        and (label not in directed)
    )


class TrainingPairs:
    """Endless batches of the training split."""

    def __init__(self, folder: Path, tokenizer: CLIPTokenizer, strength: Strength, seed: int):
        """Load the drawings.

        Args:
            folder: What the pairs recipe rendered.
            tokenizer: Turns captions into ids.
            strength: How strongly to augment.
            seed: Seed of every draw.
        """
        drawings, rows = load_drawings(folder)
        keep = [i for i, row in enumerate(rows) if row["split"] == "train"]
        rows = [rows[i] for i in keep]
        self.drawings = shrink(torch.from_numpy(drawings[keep]).permute(0, 3, 1, 2))
        self.names = load_names(folder)
        self.tokenizer = tokenizer
        self.label_names = sorted({r["label"] for r in rows})
        index = {label: i for i, label in enumerate(self.label_names)}
        self.labels = torch.tensor([index[r["label"]] for r in rows])
        vendors = sorted({r["vendor"] for r in rows})
        self.classes = {
            "vendor": len(vendors),
            "background": len(BACKGROUNDS),
            "tone": len(TONES),
            "language": len(LANGUAGES),
            "phrasing": len(PHRASINGS),
        }
        self.vendors = torch.tensor([vendors.index(r["vendor"]) for r in rows])
        self.tones = torch.tensor([TONES.index(r["tone"]) for r in rows])
        directed = {n.split(": facing")[0] for n in self.label_names if ": facing" in n}
        self.mirrors = torch.tensor([may_mirror(r["label"], r["group"], directed) for r in rows])
        self._of_label: dict[int, list[int]] = defaultdict(list)
        for i, label in enumerate(self.labels.tolist()):
            self._of_label[label].append(i)
        self.weights = self._cell_weights(rows)
        self.reseed(strength, seed)

    def reseed(self, strength: Strength, seed: int) -> None:
        """Start all chance anew, as after a resume."""
        self.generator = torch.Generator().manual_seed(seed)
        self.words = random.Random(seed)
        self.augment = Augmenter(strength, self.generator)

    def _cell_weights(self, rows: list[dict[str, str]]) -> Tensor:
        """Weigh drawings so that six skin tones count as two drawings."""
        cells: dict[tuple[str, str], int] = defaultdict(int)
        for row in rows:
            cells[row["vendor"], row["label"]] += 1
        sizes = np.array([cells[r["vendor"], r["label"]] for r in rows])
        return torch.from_numpy(np.minimum(1.0, 2.0 / sizes)).float()

    def batch(self, size: int, captions: int | None = None) -> Batch:
        """Draw one batch.

        Args:
            size: Number of images.
            captions: How many of them, from the first on, get a caption; all if `None`.
        """
        pixels, chosen, backgrounds = self.views(size)
        labels = self.labels[chosen]
        languages = [self.words.randrange(len(LANGUAGES)) for _ in range(captions or size)]
        phrasings = [self.words.randrange(len(PHRASINGS)) for _ in range(captions or size)]
        texts = [
            caption(self.names[self.label_names[n]], LANGUAGES[k], PHRASINGS[p], self.words)
            for n, k, p in zip(labels.tolist(), languages, phrasings, strict=False)
        ]
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        factors = {
            "vendor": self.vendors[chosen],
            "background": backgrounds,
            "tone": self.tones[chosen],
            "language": torch.tensor(languages),
            "phrasing": torch.tensor(phrasings),
        }
        return Batch(pixels, tokens["input_ids"], tokens["attention_mask"], labels, factors)

    def views(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw drawings in random views on random backgrounds.

        Args:
            size: Number of images.

        Returns:
            Normalised images, and per image the number of its drawing and of its background.
        """
        chosen = torch.multinomial(self.weights, size, generator=self.generator)
        partners = torch.tensor(
            [self.words.choice(self._of_label[label]) for label in self.labels[chosen].tolist()]
        )
        backgrounds = torch.randint(len(BACKGROUNDS), (size,), generator=self.generator)
        colours = torch.tensor(list(BACKGROUNDS.values()))[backgrounds] / 255
        colours = (colours + 0.03 * torch.randn(size, 3, generator=self.generator)).clamp(0, 1)
        images = self.augment(
            self.drawings[chosen], self.drawings[partners], self.mirrors[chosen], colours
        )
        return normalise(images), chosen, backgrounds
