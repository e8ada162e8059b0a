"""Train a dictionary on stored activations of one or both streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import trange

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import Encoder, Norm
from vlm_edit.errors import VlmEditError


@dataclass(frozen=True)
class TrainConfig:
    """How a BatchTopK dictionary is trained.

    Attributes:
        n_features: Size m.
        k: Features active per activation, on average over a batch.
        steps: Optimiser steps.
        batch_size: Activations per step, in equal parts of each stream.
        lr: Adam's learning rate, warmed up over the first 5 % and decayed over the last 20 %.
        norm: As in ``Encoder``.
        center: Whether to subtract each stream's mean after the norm.
        auxiliary: Weight of the loss by which dead features learn the error that is left.
        dead_after: Steps without activity after which a feature counts as dead.
        seed: Of the initialisation and the batches.
    """

    n_features: int = 512
    k: int = 16
    steps: int = 4000
    batch_size: int = 1024
    lr: float = 1e-3
    norm: Norm = "none"
    center: bool = True
    auxiliary: float = 1 / 32
    dead_after: int = 200
    seed: int = 0


def train_dictionary(
    streams: Mapping[str, Tensor],
    config: TrainConfig = TrainConfig(),  # noqa: B008
    info: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Dictionary:
    """Train a BatchTopK dictionary (Bussmann et al. 2024) shared by the streams.

    In training the ``k * batch`` largest codes of a batch stay. In use a threshold takes their
    place, the running mean of the smallest code that stayed, so that one activation's code does
    not depend on the others: the result has activation ``jumprelu``.

    Args:
        streams: [n, d] activations by stream, ``image``, ``text`` or both; n may differ.
        config: Sizes and steps.
        info: What it is trained on, kept in the dictionary.
        progress: Whether to show a bar with explained variance and dead features.

    Returns:
        The dictionary, with decoder rows of norm 1, trained on the CPU.

    Raises:
        VlmEditError: No streams, widths that differ, or k beyond the number of features.

    Example:
        >>> import torch
        >>> from vlm_edit.dictionaries import TrainConfig, train_dictionary
        >>> config = TrainConfig(n_features=16, k=2, steps=50, batch_size=64)
        >>> found = train_dictionary({"image": torch.randn(200, 8)}, config, progress=False)
        >>> found.n_features
        16
    """
    widths = {data.shape[1] for data in streams.values()}
    if len(widths) != 1 or not set(streams) <= {"image", "text"}:
        raise VlmEditError(
            "train on [n, d] activations of one width, by stream 'image' or 'text'; got "
            f"{ {name: tuple(data.shape) for name, data in streams.items()} }"
        )
    if config.batch_size < len(streams) or not all(len(data) for data in streams.values()):
        raise VlmEditError(
            f"every batch takes activations of each stream: batch_size is {config.batch_size}, the "
            f"streams have {[len(data) for data in streams.values()]}"
        )
    if not 1 <= config.k <= config.n_features:
        raise VlmEditError(f"k is {config.k}; it must lie between 1 and {config.n_features}")
    blank = Encoder(torch.zeros(widths.pop(), 1), torch.zeros(1), norm=config.norm)
    normed = {name: blank.normalise(data.float().cpu())[0] for name, data in streams.items()}
    centers = {name: data.mean(0) for name, data in normed.items()} if config.center else {}
    data = {name: x - centers[name] if config.center else x for name, x in normed.items()}
    trainer = _Trainer(data, config)
    bar = trange(config.steps, desc="train dictionary", disable=None if progress else True)
    for step in bar:
        figures = trainer.step(step)
        if step % 100 == 99:
            bar.set_postfix(figures)
    return trainer.result(centers, info or {})


@dataclass(eq=False)
class _Trainer:
    """Weights and optimiser of a run."""

    data: Mapping[str, Tensor]
    config: TrainConfig
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.config.seed)
        pooled = torch.cat(list(self.data.values()))
        self.scale = float(pooled.square().sum(1).mean().sqrt())
        width, m = pooled.shape[1], self.config.n_features
        rows = F.normalize(torch.randn(m, width, generator=self.generator), dim=1)
        self.weights = {
            "decoder": rows.clone(),
            "weight": rows.T.contiguous(),
            "bias": torch.zeros(m),
            "decoder_bias": pooled.mean(0) / self.scale,
        }
        for tensor in self.weights.values():
            tensor.requires_grad_()
        self.optimiser = torch.optim.Adam(
            self.weights.values(), lr=self.config.lr, betas=(0.9, 0.999)
        )
        self.threshold = torch.tensor(0.0)
        self.idle = torch.zeros(m, dtype=torch.long)

    def step(self, step: int) -> dict[str, str]:
        """One optimiser step; figures of the batch."""
        config, w = self.config, self.weights
        x = self._batch()
        hidden = F.relu((x - w["decoder_bias"]) @ w["weight"] + w["bias"])
        keep = config.k * len(x)
        smallest = hidden.flatten().topk(keep).values[-1]
        codes = torch.where(hidden >= smallest.clamp_min(1e-12), hidden, 0.0)
        error = x - codes @ w["decoder"] - w["decoder_bias"]
        variance = (x - x.mean(0)).square().sum(1).mean()
        loss = error.square().sum(1).mean() / variance
        explained = 1 - float(loss.detach())
        dead = self.idle > config.dead_after
        if dead.any():
            loss = loss + config.auxiliary * self._auxiliary(hidden, error.detach(), dead)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * _schedule(step / config.steps)
        self.optimiser.zero_grad()
        loss.backward()
        self._keep_norm()
        self.optimiser.step()
        with torch.no_grad():
            w["decoder"].copy_(F.normalize(w["decoder"], dim=1))
            rate = max(0.01, 1 / (step + 1))
            self.threshold = self.threshold + rate * (smallest.detach() - self.threshold)
            self.idle = torch.where(codes.detach().any(0), 0, self.idle + 1)
        return {"explained": f"{explained:.3f}", "dead": str(int(dead.sum()))}

    def result(self, centers: Mapping[str, Tensor], info: Mapping[str, str]) -> Dictionary:
        """The dictionary in the units of the data."""
        w = {name: tensor.detach() for name, tensor in self.weights.items()}
        bias = w["decoder_bias"] * self.scale
        encoder = Encoder(
            weight=w["weight"].contiguous(),
            bias=w["bias"] * self.scale,
            activation="jumprelu",
            threshold=(self.threshold * self.scale).repeat(len(w["bias"])),
            subtract=bias,
            norm=self.config.norm,
            centers=dict(centers),
        )
        return Dictionary(encoder, w["decoder"], bias, info)

    def _batch(self) -> Tensor:
        share = self.config.batch_size // len(self.data)
        parts = [
            x[torch.randint(len(x), (share,), generator=self.generator)] for x in self.data.values()
        ]
        return torch.cat(parts) / self.scale

    def _auxiliary(self, hidden: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """Share of the remaining error that the strongest dead features leave unexplained."""
        count = min(int(dead.sum()), hidden.shape[1] // 2, 2 * self.config.k)
        masked = torch.where(dead, hidden, 0.0)
        values, indices = masked.topk(count, dim=1)
        codes = torch.zeros_like(hidden).scatter(1, indices, values)
        left = error - codes @ self.weights["decoder"]
        return left.square().sum() / error.square().sum().clamp_min(1e-12)

    def _keep_norm(self) -> None:
        """Take the part of the decoder's gradient along its rows out."""
        rows, gradient = self.weights["decoder"], self.weights["decoder"].grad
        assert gradient is not None
        with torch.no_grad():
            gradient -= (gradient * rows).sum(1, keepdim=True) * rows


def _schedule(progress: float) -> float:
    if progress < 0.05:
        return progress / 0.05 + 1e-3
    if progress > 0.8:
        return 0.5 * (1 + math.cos(math.pi * (progress - 0.8) / 0.2))
    return 1.0
