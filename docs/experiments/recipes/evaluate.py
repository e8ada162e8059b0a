"""Zero-shot classification of drawings that a host has not seen, with intervals and a baseline."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from recipes.pairs import BACKGROUNDS, composite, load_drawings, thin
from recipes.splits import SEED, draw
from vlm_edit import zoo
from vlm_edit.measures.probing import probe_each, variance_explained

PROMPT = "a picture of {}"
DEV_SPLITS = ("hv-dev", "ov-dev")
TEST_SPLITS = ("hv-test", "ov-test", "hc", "train")
TITLES = {
    "hv-dev": "held-out vendor-concept cells (dev)",
    "hv-test": "held-out vendor-concept cells",
    "ov-dev": "held-out vendors (dev)",
    "ov-test": "held-out vendors",
    "hc": "held-out concepts",
    "train": "seen drawings",
    "shipped": "the shipped pairs, of the same cells",
}
FACTORS = ("background", "vendor", "tone", "language", "phrasing", "group", "gender")
_SEEN = 1400
_RESAMPLES = 2000
_COMPONENTS = 128


@dataclass(frozen=True)
class Scores:
    """Hits at one and at five of every drawing, with the cell each belongs to."""

    first: NDArray[np.bool_]
    five: NDArray[np.bool_]
    cells: tuple[str, ...]


def interval(hits: NDArray[np.bool_], cells: Sequence[str]) -> tuple[float, float]:
    """Give a 95 % bootstrap interval of a rate, resampling whole cells.

    Args:
        hits: One per drawing.
        cells: The cell of each drawing.
    """
    _, index = np.unique(cells, return_inverse=True)
    wins, sizes = np.bincount(index, hits), np.bincount(index)
    chosen = np.random.default_rng(0).integers(len(sizes), size=(_RESAMPLES, len(sizes)))
    rates = wins[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def images_of(drawings: NDArray[np.uint8], chosen: Sequence[int]) -> list[Image.Image]:
    """Lay drawings on backgrounds drawn at random with a fixed seed."""
    rng = random.Random(SEED)
    colours = list(BACKGROUNDS.values())
    return [Image.fromarray(composite(drawings[i], rng.choice(colours))) for i in chosen]


def choose(rows: list[dict[str, str]], split: str) -> list[int]:
    """Choose the drawings that score a split."""
    chosen = thin(rows, split)
    if split == "train":
        chosen.sort(key=lambda i: draw("seen", *rows[i].values()))
        chosen = sorted(chosen[:_SEEN])
    return chosen


@torch.inference_mode()
def embed_images(
    model: CLIPModel, processor: CLIPProcessor, images: Sequence[Image.Image]
) -> Tensor:
    """Embed images through the processor, scaled to length one."""
    parts = []
    for start in range(0, len(images), 128):
        inputs = processor(images=list(images[start : start + 128]), return_tensors="pt")
        parts.append(model.get_image_features(**inputs).pooler_output)
    return F.normalize(torch.cat(parts), dim=1)


@torch.inference_mode()
def embed_texts(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> Tensor:
    """Embed texts through the processor, scaled to length one."""
    parts = []
    for start in range(0, len(texts), 256):
        inputs = processor(
            text=list(texts[start : start + 256]), return_tensors="pt", padding=True,
            truncation=True,
        )  # fmt: skip
        parts.append(model.get_text_features(**inputs).pooler_output)
    return F.normalize(torch.cat(parts), dim=1)


def score(
    model: CLIPModel, processor: CLIPProcessor, folder: Path, splits: Sequence[str]
) -> dict[str, Scores]:
    """Classify the drawings of some splits among all labels.

    Args:
        model: The host.
        processor: Its processor.
        folder: What the pairs recipe rendered.
        splits: Names of splits.
    """
    drawings, rows = load_drawings(folder)
    labels = sorted({r["label"] for r in rows})
    texts = embed_texts(model, processor, [PROMPT.format(label) for label in labels])
    scores = {}
    for split in splits:
        chosen = choose(rows, split)
        images = embed_images(model, processor, images_of(drawings, chosen))
        truth = torch.tensor([labels.index(rows[i]["label"]) for i in chosen])
        rank = _rank(images @ texts.T, truth)
        cells = tuple(f"{rows[i]['vendor']}|{rows[i]['concept']}" for i in chosen)
        scores[split] = Scores((rank < 1).numpy(), (rank < 5).numpy(), cells)
    return scores


def score_shipped(model: CLIPModel, processor: CLIPProcessor) -> Scores:
    """Classify the shipped pairs' images among all labels.

    Args:
        model: The host.
        processor: Its processor.
    """
    pairs, labels = zoo.load_pairs(), zoo.load_labels()
    texts = embed_texts(model, processor, [PROMPT.format(label) for label in labels])
    images = embed_images(model, processor, [pairs.open(i) for i in range(len(pairs))])
    truth = torch.tensor([labels.index(label) for label in pairs.columns["label"]])
    rank = _rank(images @ texts.T, truth)
    columns = zip(pairs.columns["vendor"], pairs.columns["concept"], strict=True)
    return Scores((rank < 1).numpy(), (rank < 5).numpy(), tuple(map("|".join, columns)))


def factors(model: CLIPModel, processor: CLIPProcessor) -> str:
    """Tell what the embeddings of the shipped pairs keep of each factor, as Markdown.

    Args:
        model: The host.
        processor: Its processor.
    """
    pairs = zoo.load_pairs()
    v = embed_images(model, processor, [pairs.open(i) for i in range(len(pairs))])
    t = embed_texts(model, processor, pairs.texts)
    gap = float((v.mean(0) - t.mean(0)).norm())
    hits = [float((s.argmax(1) == torch.arange(len(s))).float().mean()) for s in (v @ t.T, t @ v.T)]
    columns = {name: pairs.columns[name] for name in FACTORS}
    read = [probe_each(embeddings, columns) for embeddings in (v, t)]
    lines = [
        "| factor | from the image | from the caption | chance | of the images' variance "
        "| of the captions' |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in columns.items():
        chance = max(values.count(value) for value in set(values)) / len(values)
        right = [float(found[name].double().mean()) for found in read]
        shares = [share_of_variance(embeddings, values) for embeddings in (v, t)]
        lines.append(
            f"| {name} | {right[0]:.2f} | {right[1]:.2f} | {chance:.2f} | {shares[0]:.3f} "
            f"| {shares[1]:.3f} |"
        )
    lines += ["", f"Retrieval among the 1,024, R@1: {hits[0]:.3f} image to caption, "]
    lines[-1] += f"{hits[1]:.3f} caption to image. Modality gap: {gap:.2f}."
    return "\n".join(lines)


def share_of_variance(embeddings: Tensor, values: Sequence[str]) -> float:
    """Share of the embeddings' variance that lies between the values of a factor.

    Args:
        embeddings: One row per pair.
        values: The factor's value of each pair.
    """
    spread = embeddings.var(0)
    return float((variance_explained(embeddings, values) * spread).sum() / spread.sum())


def score_pixels(folder: Path, splits: Sequence[str]) -> dict[str, Scores]:
    """Score the baseline: the label of the nearest training drawing in whitened pixels.

    It has the easier task: all drawings lie on white.

    Args:
        folder: What the pairs recipe rendered.
        splits: Names of splits.
    """
    drawings, rows = load_drawings(folder)
    labels = sorted({r["label"] for r in rows})
    known = [i for i, r in enumerate(rows) if r["split"] == "train"]
    gallery = _pixels(drawings, known)
    mean = gallery.mean(0)
    values, vectors = torch.linalg.eigh((gallery - mean).T @ (gallery - mean))
    basis = vectors[:, -_COMPONENTS:] / values[-_COMPONENTS:].sqrt()
    gallery = F.normalize((gallery - mean) @ basis, dim=1)
    owner = torch.tensor([labels.index(rows[i]["label"]) for i in known])
    scores = {}
    for split in splits:
        chosen = choose(rows, split)
        queries = _pixels(drawings, chosen)
        near = F.normalize((queries - mean) @ basis, dim=1) @ gallery.T
        best = torch.full((len(chosen), len(labels)), -2.0)
        best.scatter_reduce_(1, owner.expand(len(chosen), -1), near, "amax")
        truth = torch.tensor([labels.index(rows[i]["label"]) for i in chosen])
        rank = _rank(best, truth)
        cells = tuple(f"{rows[i]['vendor']}|{rows[i]['concept']}" for i in chosen)
        scores[split] = Scores((rank < 1).numpy(), (rank < 5).numpy(), cells)
    return scores


def table(scores: dict[str, Scores]) -> str:
    """Write scores as a Markdown table."""
    lines = ["| drawings | number | R@1 | R@5 |", "|---|---|---|---|"]
    for split, s in scores.items():
        cells = []
        for hits in (s.first, s.five):
            low, high = interval(hits, s.cells)
            cells.append(f"{hits.mean():.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {TITLES[split]} | {len(s.first)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _rank(similarity: Tensor, truth: Tensor) -> Tensor:
    return (similarity > similarity.gather(1, truth[:, None])).sum(1)


def _pixels(drawings: NDArray[np.uint8], chosen: Sequence[int]) -> Tensor:
    white = BACKGROUNDS["white"]
    images = [Image.fromarray(composite(drawings[i], white)) for i in chosen]
    small = [np.asarray(i.resize((32, 32), Image.Resampling.BOX)) for i in images]
    return torch.from_numpy(np.stack(small)).float().flatten(1) / 255
