"""Whether what `emoji-unclip` draws shows what it should: two classifiers, with controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, ResNetForImageClassification

from recipes.augment import lay, premultiply
from recipes.evaluate import PROMPT
from recipes.pairs import BACKGROUNDS
from recipes.unclip_drawings import (
    Drawings,
    colours,
    embed_images,
    embed_texts,
    laid_on_chance,
)
from recipes.unclip_judge import judge
from vlm_edit import zoo
from vlm_edit.ground.statistics import mean_estimate, proportion
from vlm_edit.zoo.unclip import UnclipPipeline

GUIDANCES = (1.0, 1.5, 2.0, 3.0)
FACTORS = ("label", "vendor", "background")
_FOLDS = 5
_RIDGE = 1e-2


@dataclass(frozen=True)
class Sources:
    """Images to draw anew, with what they show.

    Attributes:
        images: In [0, 1], shape (count, 3, 64, 64).
        texts: A caption of each.
        truth: The value of each factor of each image.
    """

    images: Tensor
    texts: list[str]
    truth: dict[str, list[str]]

    def first(self, count: int) -> Sources:
        """The first so many."""
        truth = {factor: known[:count] for factor, known in self.truth.items()}
        return Sources(self.images[:count], self.texts[:count], truth)


def shipped() -> Sources:
    """The bundled pairs: drawings of cells that no training drawing is of, in a random order."""
    pairs = zoo.load_pairs()
    pixels = np.stack([np.asarray(pairs.open(i)) for i in range(len(pairs))])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    truth = {factor: list(pairs.columns[factor]) for factor in FACTORS}
    return Sources(images, list(pairs.texts), truth)


def dev(drawings: Drawings, count: int) -> Sources:
    """Some drawings of the cells that choose the design.

    Args:
        drawings: What `load` gives.
        count: How many, spread over all.
    """
    held = drawings.of("hv-dev")
    step = max(1, len(held.rows) // count)
    some = Drawings(held.pixels[::step][:count], held.rows[::step][:count])
    images, backgrounds = laid_on_chance(some)
    truth = {factor: [row[factor] for row in some.rows] for factor in ("label", "vendor")}
    texts = [PROMPT.format(label) for label in truth["label"]]
    return Sources(images, texts, truth | {"background": backgrounds})


class Scorer:
    """Scores images by the host, by the independent classifier and by the colour of their edge."""

    def __init__(
        self,
        host: CLIPModel,
        processor: CLIPProcessor,
        classifier: ResNetForImageClassification,
        sources: Sources,
    ) -> None:
        """Embed the labels, and fit probes of vendor and background to the real images.

        Args:
            host: The host.
            processor: Its processor.
            classifier: The independent classifier.
            sources: The real images, and what they show.
        """
        self.host, self.classifier, self.sources = host, classifier, sources
        self.labels = list(zoo.load_labels())
        texts = [PROMPT.format(label) for label in self.labels]
        self.directions = embed_texts(host, processor, texts).cpu()
        self.real = embed_images(host, sources.images).cpu()

    def score(self, images: Tensor, given: Tensor | None, shift: int = 0) -> dict[str, Tensor]:
        """Score one image of each source.

        Args:
            images: In [0, 1], shape (count, 3, 64, 64).
            given: The embeddings they were drawn from, of length one, where there are any.
            shift: Compare with what another source shows, so many further on: a control.

        Returns:
            For each measure one number per image, mostly hit or miss.
        """
        truth = {k: [*v[shift:], *v[:shift]] for k, v in self.sources.truth.items()}
        embeds = embed_images(self.host, images).cpu()
        first, five = _ranks(embeds @ self.directions.T, truth["label"], self.labels)
        found = {"host R@1": first, "host R@5": five}
        for factor in ("background", "vendor"):
            found[f"host {factor}"] = self._probe(embeds, factor, truth[factor])
        seen = judge(self.classifier, images)
        first, five = _ranks(seen.logits["label"], truth["label"], list(seen.values["label"]))
        found |= {"judge R@1": first, "judge R@5": five}
        for factor in ("background", "vendor"):
            found[f"judge {factor}"] = same(seen.names(factor), truth[factor])
        found["edge colour"] = same(edge_colours(images), truth["background"])
        if given is not None:
            found["cosine"] = (embeds * given.cpu().roll(-shift, 0)).sum(1)
        return found

    def _probe(self, embeds: Tensor, factor: str, truth: Sequence[str]) -> Tensor:
        """Read a factor by ridge regression fitted to the real images of the other folds."""
        known = self.sources.truth[factor]
        values = sorted(set(known))
        target = F.one_hot(torch.tensor([values.index(v) for v in known])).float()
        fold = torch.arange(len(known)) % _FOLDS
        read = torch.empty(len(embeds), len(values))
        for k in range(_FOLDS):
            x, y = self.real[fold != k], target[fold != k]
            mean, middle = x.mean(0), y.mean(0)
            x = x - mean
            gram = x.T @ x + _RIDGE * len(x) / x.shape[1] * torch.eye(x.shape[1])
            weights = torch.linalg.solve(gram, x.T @ (y - middle))
            read[fold == k] = (embeds[fold == k] - mean) @ weights + middle
        return same([values[i] for i in read.argmax(1).tolist()], truth)


def edge_colours(images: Tensor) -> list[str]:
    """Name the background that the outermost pixels are nearest to, by their median colour."""
    edge = torch.cat(
        [images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], dim=-1
    )
    middle = edge.median(-1).values.cpu()
    names = list(BACKGROUNDS)
    return [names[i] for i in torch.cdist(middle, colours()).argmin(1).tolist()]


def draw(
    pipe: UnclipPipeline, embeds: Tensor, guidance: float, steps: int, batch: int = 256
) -> Tensor:
    """Draw one image from each embedding, always from the same noise.

    Args:
        pipe: The pipeline.
        embeds: Shape (count, dim).
        guidance: Its guidance scale.
        steps: Its steps.
        batch: Images at once.

    Returns:
        Images in [0, 1], shape (count, 3, 64, 64), on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    parts = [
        pipe(
            embeds=part, guidance_scale=guidance, num_inference_steps=steps,
            generator=generator, output_type="pt",
        ).images.cpu()
        for part in embeds.split(batch)
    ]  # fmt: skip
    return torch.cat(parts)


@torch.no_grad()
def nearest(host: CLIPModel, train: Drawings, queries: Sequence[Tensor]) -> list[Tensor]:
    """The baseline: the training drawing, on one of six colours, whose embedding is nearest.

    Args:
        host: The host.
        train: The training drawings.
        queries: Embeddings of length one, each of shape (count, dim).

    Returns:
        For each of the queries images in [0, 1], shape (count, 3, 64, 64).
    """
    best = [torch.full((len(q),), -2.0) for q in queries]
    images = [torch.zeros(len(q), 3, *train.pixels.shape[2:]) for q in queries]
    for part in train.pixels.split(512):
        drawn = premultiply(part.to(host.device))
        for colour in colours(host.device):
            laid = lay(drawn, colour.expand(len(drawn), 3))
            near = embed_images(host, laid)
            for n, query in enumerate(queries):
                found, at = (query.to(near.device) @ near.T).max(1)
                better = (found.cpu() > best[n]).nonzero().flatten()
                best[n][better] = found.cpu()[better]
                images[n][better] = laid[at[better.to(at.device)]].cpu()
    return images


def tell(rows: dict[str, dict[str, Tensor]]) -> str:
    """Write scores as a Markdown table, one row per set of images, with 95 % intervals."""
    measures = list(dict.fromkeys(m for found in rows.values() for m in found))
    lines = [f"| images | n | {' | '.join(measures)} |", "|---" * (len(measures) + 2) + "|"]
    for name, found in rows.items():
        cells = [_cell(found.get(measure)) for measure in measures]
        count = len(next(iter(found.values())))
        lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def grid(rows: Sequence[Tensor], across: int = 16) -> Image.Image:
    """Lay sets of images out: one image of each set below the other, column by column.

    Args:
        rows: Sets of images in [0, 1], of one shape (count, 3, height, width).
        across: Columns of a block; blocks lie below each other, and a broken last one is left out.
    """
    blocks = []
    across = min(across, len(rows[0]))
    for start in range(0, len(rows[0]) // across * across, across):
        for images in rows:
            tiles = F.pad(images[start : start + across].cpu(), (1, 1, 1, 1), value=1.0)
            blocks.append(torch.cat(list(tiles), dim=2))
        blocks.append(torch.ones(3, 6, blocks[-1].shape[2]))
    whole = torch.cat(blocks, dim=1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.rint(whole * 255).astype(np.uint8))


def _ranks(scores: Tensor, truth: Sequence[str], names: list[str]) -> tuple[Tensor, Tensor]:
    """Hits at one and at five; what is not among the names is missed."""
    index = {name: i for i, name in enumerate(names)}
    known = torch.tensor([name in index for name in truth])
    right = torch.tensor([index.get(name, 0) for name in truth])
    rank = (scores > scores.gather(1, right[:, None])).sum(1)
    return (rank < 1) & known, (rank < 5) & known


def same(found: Sequence[str], truth: Sequence[str]) -> Tensor:
    """Hit or miss of each."""
    return torch.tensor([a == b for a, b in zip(found, truth, strict=True)])


def _cell(values: Tensor | None) -> str:
    if values is None:
        return ""
    if values.dtype == torch.bool:
        return str(proportion(int(values.sum()), len(values)))
    return str(mean_estimate(values))
