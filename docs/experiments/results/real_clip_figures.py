"""What every table of results.real_clip is made with: trainings, figures, and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from results import common
from vlm_edit import Dictionary
from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.ground.statistics import t_quantile
from vlm_edit.measures.dominance import Cut, modality_gap
from vlm_edit.measures.probing import hits

# Everything is said here, so that other defaults of the trainer change nothing.
CONFIG = TrainConfig(
    n_features=256,
    k=8,
    steps=400,
    batch_size=256,
    lr=3e-3,
    norm="constant_norm_rescale",
    center=True,
    auxiliary=1 / 32,
    dead_after=200,
    kind="topk",
    clip=0.05,
)
RULES: tuple[Cut, ...] = ("interval", "significant")  # the default first
Streams = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """Say how much is tried.

    Attributes:
        config: Of every dictionary, but for its seed, its centre and what is frozen.
        seeds: Of dictionaries trained on all pairs.
        repeats: Divisions of the pairs into folds.
        folds: Parts of a division, each held out once.
        draws: Of random features, for each set and fold; and of halves of the pairs.
        ranked: Features deleted of each kind where labels are earned, surest first.
    """

    config: TrainConfig = CONFIG
    seeds: Sequence[int] = (0, 10, 20, 30, 40)
    repeats: int = 2
    folds: int = 5
    draws: int = 10
    ranked: int = 16


def encoded(dictionary: Dictionary, streams: Streams) -> Streams:
    """Return codes by stream."""
    return {s: dictionary.encode(x, s) for s, x in streams.items()}


def trained(streams: Streams, config: TrainConfig, seed: int) -> Dictionary:
    """Train a dictionary of these embeddings."""
    return train_dictionary(streams, replace(config, seed=seed), progress=False)


def gap(streams: Streams) -> float:
    """Return the distance of the centroids of normalised embeddings."""
    return modality_gap(*(F.normalize(streams[s], dim=1) for s in common.STREAMS))


def r1(streams: Streams) -> float:
    """Return the share of images and texts whose nearest of the other kind is their own."""
    names = [str(i) for i in range(len(streams["image"]))]
    image, text = (streams[s] for s in common.STREAMS)
    both = hits(image, text, names, names), hits(text, image, names, names)
    return float(torch.cat(both).double().mean())


def over_folds(values: Sequence[float], share: float) -> list[float | None]:
    """Return the mean over folds with a 95 % interval that minds what folds share.

    Nadeau and Bengio's corrected variance (2003): folds train on the same pairs, so that their
    spread is widened by the share of pairs held out to those trained on.
    """
    each, n = torch.tensor(values, dtype=torch.float64), len(values)
    sd = float(each.std()) if n > 1 else float("nan")
    half = float(t_quantile(0.95, torch.tensor([max(n - 1.0, 1.0)]))) * sd * (1 / n + share) ** 0.5
    mean = float(each.mean())
    return [common.rounded(v) for v in (mean, mean - half, mean + half)] + [n]


def spread(values: Sequence[float]) -> list[float | None] | None:
    """Return the mean, the lowest, the highest and the number of values that are no NaN."""
    known = [value for value in values if value == value]
    if not known:
        return None
    mean = sum(known) / len(known)
    return [common.rounded(float(v)) for v in (mean, min(known), max(known))] + [len(known)]
