"""What a training run of the host does in a step; `loop` runs it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from recipes.architecture import (
    Architecture,
    build,
    encode_image,
    encode_text,
    start_vision,
)
from recipes.batches import TrainingPairs
from recipes.checkpoints import below
from recipes.loop import StepRecipe, StepTrainer

IMAGE_FACTORS = ("vendor", "background", "tone")
TEXT_FACTORS = ("language", "phrasing")


@dataclass(frozen=True)
class Recipe(StepRecipe):
    """Everything that decides a run; `StepRecipe` says the rest.

    AdamW is of embeddings, norms, biases, projections and heads; Muon of the matrices of the vision
    layers.

    Attributes:
        captions: How many of a batch's pairs also pass the text tower.
        proxies: Weight of the class-proxy loss.
        proxies_end: What it falls to during the decay.
        proxy_scale: Inverse temperature of the class proxies.
        smoothing: Label smoothing of the class-proxy loss.
        heads: Weight of the heads that keep single-modality factors.
        head_scale: Inverse temperature of heads that compare by cosine, which the embedding can
            only satisfy by giving the factors room; None for linear heads, content with a trace.
        logit_cap: Largest inverse temperature of the contrastive loss.
    """

    steps: int = 6000
    batch: int = 128
    checkpoint: int = 200
    warm_up: int = 200
    decay: float = 0.35
    strengthen: int = 1500
    captions: int = 64
    proxies: float = 1.0
    proxies_end: float = 0.3
    proxy_scale: float = 20.0
    smoothing: float = 0.1
    heads: float = 0.15
    head_scale: float | None = None
    logit_cap: float = 50.0

    def proxy_weight(self, step: int) -> float:
        """Weight of the class-proxy loss at a step."""
        return self.proxies_end + self.left(step) * (self.proxies - self.proxies_end)


SETTLE = Recipe(
    steps=300,
    learning_rate=5e-4,
    muon_rate=5e-4,
    warm_up=30,
    decay=0.6,
    proxies=0.3,
    heads=0.3,
    head_scale=10.0,
    average=0.99,
    strengthen=1,
    checkpoint=50,
    seed=7,
)


class Trainer(StepTrainer[Recipe]):
    """A run of the host: model, its moving average, proxies and heads."""

    UNIT = "pairs"

    def __init__(
        self, recipe: Recipe, folder: Path, tokenizer: CLIPTokenizer, rank: int, world: int
    ) -> None:
        """Start from scratch.

        Args:
            recipe: What to do.
            folder: What the pairs recipe rendered.
            tokenizer: Trained tokenizer.
            rank: Number of this process.
            world: Number of processes.
        """
        super().__init__(recipe, rank, world)
        shape = Architecture()
        self.pairs = TrainingPairs(folder, tokenizer, recipe.strength, recipe.seed)
        self.model = build(tokenizer, shape)
        self.model.set_attn_implementation("eager")  # faster than fused on CPU at this length
        start_vision(self.model, self.pairs.batch(min(1024, len(self.pairs.labels))).pixels)
        self.average = copy.deepcopy(self.model).eval()
        labels = len(self.pairs.label_names)
        self.proxies = nn.Parameter(F.normalize(torch.randn(labels, shape.dim), dim=1))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(shape.dim, n) for name, n in self.pairs.classes.items()}
        )
        self.parameters = [
            *self.model.parameters(), self.proxies, *self.heads.parameters()
        ]  # fmt: skip
        self.optimizers = self._optimizers()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        matrices, others, plain = [], [], [self.proxies, *self.heads.parameters()]
        for name, parameter in self.model.named_parameters():
            if parameter.ndim == 2 and "vision_model.encoder" in name:
                matrices.append(parameter)
            elif parameter.ndim > 1:
                others.append(parameter)
            else:
                plain.append(parameter)
        return self.recipe.optimizers(matrices, others, plain)

    def reseed(self, seed: int) -> None:
        """Draw pairs and their views anew, as strongly as the step asks for."""
        self.pairs.reseed(self.recipe.strength_at(self.step), seed)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters of the average, and of the model."""
        return list(self.average.parameters()), list(self.model.parameters())

    def follow(self) -> None:
        """Cap the inverse temperature, and move the average."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(self.recipe.logit_cap))
        super().follow()

    def losses(self) -> dict[str, Tensor]:
        """Return what a batch of pairs loses: to the proxies, to each other, and of the factors."""
        recipe, texts = self.recipe, self.recipe.captions
        batch = self.pairs.batch(recipe.batch, texts)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            images = encode_image(self.model, batch.pixels)
            captions = encode_text(self.model, batch.ids, batch.mask)
        v, t = F.normalize(images.float(), dim=1), F.normalize(captions.float(), dim=1)
        directions = recipe.proxy_scale * F.normalize(self.proxies, dim=1).T
        smooth = recipe.smoothing
        image = F.cross_entropy(v @ directions, batch.labels, label_smoothing=smooth)
        text = F.cross_entropy(t @ directions, batch.labels[:texts], label_smoothing=smooth)
        pair = contrastive(v[:texts], t, batch.labels[:texts], self.model.logit_scale.exp())
        factors = torch.zeros(())
        for names, embeddings in ((IMAGE_FACTORS, v), (TEXT_FACTORS, t)):
            for name in names:
                guess = self._guess(name, embeddings)
                factors = factors + F.cross_entropy(guess, batch.factors[name][: len(guess)])
        loss = recipe.proxy_weight(self.step) * (image + text) + pair + recipe.heads * factors
        return {"loss": loss, "image": image, "text": text, "pair": pair, "factors": factors}

    def _guess(self, factor: str, embeddings: Tensor) -> Tensor:
        head = cast("nn.Linear", self.heads[factor])
        if self.recipe.head_scale is None:
            return cast("Tensor", head(math.sqrt(embeddings.shape[1]) * embeddings))
        return self.recipe.head_scale * embeddings @ F.normalize(head.weight, dim=1).T

    def state(self) -> dict[str, Tensor]:
        """Return model, average, heads and proxies."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        return tensors | {"proxies": self.proxies}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.model.load_state_dict(below(tensors, "model."))
        self._start(tensors, self.average)

    def _start(self, tensors: Mapping[str, Tensor], *models: CLIPModel) -> None:
        for model in models:
            model.load_state_dict(below(tensors, "average."))
        self.heads.load_state_dict(below(tensors, "heads."))
        with torch.no_grad():
            self.proxies.copy_(tensors["proxies"])

    def start_from(self, checkpoint: Path) -> None:
        """Start from the averaged weights of another run.

        Args:
            checkpoint: File that its `save` wrote.
        """
        self._start(load_file(checkpoint), self.model, self.average)


def contrastive(v: Tensor, t: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss, without counting other pairs of the same label as negatives.

    Args:
        v: Normalised image embeddings, one row per pair.
        t: Normalised text embeddings.
        labels: Label of each pair.
        scale: Inverse temperature.
    """
    logits = scale * v @ t.T
    twins = labels[:, None] == labels[None]
    twins.fill_diagonal_(False)
    logits = logits.masked_fill(twins, -1e4)
    target = torch.arange(len(v))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def load_average(checkpoint: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Load the averaged weights of a checkpoint, the ones that ship.

    Args:
        checkpoint: File that `Trainer.save` wrote.
        tokenizer: The tokenizer of the run.
    """
    model = build(tokenizer, Architecture())
    model.load_state_dict(below(load_file(checkpoint), "average."))
    return model.eval()
