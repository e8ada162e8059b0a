"""What `emoji-unclip` learns from: drawings laid on colours, with joint embeddings beside them."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from recipes.augment import lay, premultiply
from recipes.batches import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD
from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES
from recipes.pairs import BACKGROUNDS, SIZE, load_drawings, load_names
from recipes.splits import SEED
from vlm_edit.measuring import open_image

PACKED = ("train", "hv-dev")
SHEET = "sheet.webp"
_ACROSS = 128
_SHIFT = 2


@dataclass(frozen=True)
class Drawings:
    """Some drawings and their columns.

    Attributes:
        pixels: `uint8` RGBA, shape (count, 4, 64, 64).
        rows: The columns of each.
    """

    pixels: Tensor
    rows: list[dict[str, str]]

    def of(self, split: str) -> Drawings:
        """The drawings of one split."""
        chosen = [i for i, row in enumerate(self.rows) if row["split"] == split]
        return Drawings(self.pixels[chosen], [self.rows[i] for i in chosen])


def pack(folder: Path, out: Path) -> None:
    """Write the drawings that training needs as one small sheet, to take them elsewhere.

    Args:
        folder: What the pairs recipe rendered.
        out: Folder to write to; `load` reads it like `folder`.
    """
    pixels, rows = load_drawings(folder)
    chosen = [i for i, row in enumerate(rows) if row["split"] in PACKED]
    down = -(-len(chosen) // _ACROSS)
    sheet = np.zeros((down * SIZE, _ACROSS * SIZE, 4), np.uint8)
    for index, i in enumerate(chosen):
        y, x = divmod(index, _ACROSS)
        seen = pixels[i][..., 3:] > 0
        sheet[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE] = pixels[i] * seen
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out / SHEET, lossless=True, exact=True, quality=70, method=4)
    with (out / "drawings.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[i] for i in chosen)
    (out / "names.json").write_text((folder / "names.json").read_text("utf-8"), "utf-8")
    print(f"{len(chosen)} drawings, {(out / SHEET).stat().st_size:,} bytes")


def load(folder: Path) -> Drawings:
    """Load what the pairs recipe rendered, or what `pack` made of it.

    Args:
        folder: Folder of either.
    """
    if (folder / "drawings.npy").is_file():
        pixels, rows = load_drawings(folder)
        return Drawings(torch.from_numpy(pixels).permute(0, 3, 1, 2), rows)
    with (folder / "drawings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    Image.MAX_IMAGE_PIXELS = None  # our own sheet, not a bomb
    with open_image(folder / SHEET) as image:
        sheet = torch.from_numpy(np.asarray(image.convert("RGBA")).copy())
    tiles = sheet.unflatten(1, (_ACROSS, SIZE)).unflatten(0, (-1, SIZE)).permute(0, 2, 4, 1, 3)
    return Drawings(tiles.flatten(0, 1)[: len(rows)].contiguous(), rows)


def colours(device: torch.device | str = "cpu") -> Tensor:
    """The six background colours in [0, 1], shape (6, 3)."""
    return torch.tensor(list(BACKGROUNDS.values()), device=device) / 255


def laid_on_chance(drawings: Drawings) -> tuple[Tensor, list[str]]:
    """Lay each drawing on a background drawn with a fixed seed.

    Args:
        drawings: Some drawings.

    Returns:
        Images in [0, 1], shape (count, 3, 64, 64), and the names of their backgrounds.
    """
    rng = random.Random(SEED)
    names = [rng.choice(list(BACKGROUNDS)) for _ in drawings.rows]
    index = torch.tensor([list(BACKGROUNDS).index(name) for name in names])
    return lay(premultiply(drawings.pixels), colours()[index]), names


def for_host(images: Tensor) -> Tensor:
    """Do on tensors what the host's image processor does on pictures.

    Args:
        images: In [0, 1], shape (batch, 3, height, width).

    Returns:
        Pixel values, shape (batch, 3, 48, 48).
    """
    small = F.interpolate(images, size=IMAGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor(PIXEL_MEAN, device=images.device)[:, None, None]
    return (small - mean) / torch.tensor(PIXEL_STD, device=images.device)[:, None, None]


@torch.no_grad()
def embed_images(host: CLIPModel, images: Tensor, batch: int = 1024) -> Tensor:
    """Embed images in [0, 1] on the host's device, scaled to length one."""
    parts = [
        host.get_image_features(pixel_values=for_host(part.to(host.device))).pooler_output
        for part in images.split(batch)
    ]
    return F.normalize(torch.cat(parts), dim=1)


@torch.no_grad()
def embed_texts(
    host: CLIPModel, processor: CLIPProcessor, texts: list[str], batch: int = 1024
) -> Tensor:
    """Embed texts on the host's device, scaled to length one."""
    parts = []
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        tokens = processor.tokenizer(some, padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(host.device), tokens["attention_mask"].to(host.device)
        parts.append(host.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
    return F.normalize(torch.cat(parts), dim=1)


def cell_weights(rows: list[dict[str, str]]) -> Tensor:
    """Weigh drawings so that six skin tones count as two drawings, as the host's recipe does."""
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["vendor"], row["label"]
        sizes[key] = sizes.get(key, 0) + 1
    return torch.tensor([min(1.0, 2 / sizes[row["vendor"], row["label"]]) for row in rows])


class Supply:
    """Endless training batches, made where the model is."""

    def __init__(
        self, folder: Path, host: CLIPModel, processor: CLIPProcessor, batch: int = 1024
    ) -> None:
        """Load the training drawings and embed every caption.

        Args:
            folder: What `load` reads.
            host: The host, on the device to work on.
            processor: Its processor.
            batch: Captions embedded at once.
        """
        self.host, self.device = host, host.device
        drawings = load(folder).of("train")
        self.rows = drawings.rows
        self.pixels = drawings.pixels.to(self.device)
        self.weights = cell_weights(self.rows).to(self.device)
        names = load_names(folder)
        labels = sorted({row["label"] for row in self.rows})
        rng = random.Random(SEED)
        texts = [
            caption(names[label], language, phrasing, rng)
            for label in labels
            for language in LANGUAGES
            for phrasing in PHRASINGS
        ]
        embedded = embed_texts(host, processor, texts, batch)
        self.captions = embedded.view(len(labels), len(LANGUAGES) * len(PHRASINGS), -1)
        index = {label: i for i, label in enumerate(labels)}
        self.labels = torch.tensor([index[r["label"]] for r in self.rows], device=self.device)
        self.colours = colours(self.device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start all chance anew."""
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def choose(self, size: int) -> Tensor:
        """Draw numbers of drawings."""
        return torch.multinomial(self.weights, size, replacement=True, generator=self.generator)

    def backgrounds(self, size: int, jitter: float = 0.03) -> tuple[Tensor, Tensor]:
        """Draw background colours near the six.

        Args:
            size: How many.
            jitter: Standard deviation around them.

        Returns:
            Which of the six, and the colours, shape (size, 3).
        """
        which = torch.randint(6, (size,), generator=self.generator, device=self.device)
        noise = torch.randn(size, 3, generator=self.generator, device=self.device)
        return which, (self.colours[which] + jitter * noise).clamp(0, 1)

    @torch.no_grad()
    def batch(self, size: int, from_text: float, noise: float) -> tuple[Tensor, Tensor]:
        """Draw one batch.

        Args:
            size: Number of images.
            from_text: Share of them that come with the embedding of a caption, not their own.
            noise: Largest length of the noise added to embeddings of length one.

        Returns:
            Images in [0, 1], shape (size, 3, 64, 64), and embeddings, shape (size, dim).
        """
        chosen = self.choose(size)
        view = self._shift(premultiply(self.pixels[chosen]))
        images = lay(view, self.backgrounds(size)[1])
        seen = embed_images(self.host, images, size)
        which = torch.randint(
            self.captions.shape[1], (size,), generator=self.generator, device=self.device
        )
        said = self.captions[self.labels[chosen], which]
        embeds = torch.where((self._uniform(size) < from_text)[:, None], said, seen)
        away = torch.randn(embeds.shape, generator=self.generator, device=self.device)
        away = away * (noise / embeds.shape[1] ** 0.5) * self._uniform(size)[:, None]
        return images, F.normalize(embeds + away, dim=1)

    def _uniform(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.generator, device=self.device)

    def _shift(self, x: Tensor) -> Tensor:
        """Move half of the drawings by up to two pixels; what enters is transparent."""
        size, moves = len(x), 2 * _SHIFT + 1
        by = torch.randint(moves, (2, size), generator=self.generator, device=self.device)
        by = torch.where(self._uniform(size) < 0.5, by, _SHIFT)
        along = torch.arange(SIZE, device=self.device)
        rows, columns = by[0, :, None] + along, by[1, :, None] + along
        wide = F.pad(x, (_SHIFT,) * 4)
        number = torch.arange(size, device=self.device)[:, None, None]
        moved = wide.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()
