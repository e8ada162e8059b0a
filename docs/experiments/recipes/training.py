"""One training run of the host, on one or more processes, that goes on after a kill."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from recipes.architecture import (
    Architecture,
    build,
    encode_image,
    encode_text,
    start_vision,
)
from recipes.augment import Strength
from recipes.batches import Batch, TrainingPairs
from recipes.checkpoints import (
    below,
    load_optimizers,
    optimizer_tensors,
    read_facts,
    share_gradients,
)

IMAGE_FACTORS = ("vendor", "background", "tone")
TEXT_FACTORS = ("language", "phrasing")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Attributes:
        steps: Optimizer steps; may be changed on a resume before the decay starts.
        batch: Pairs per step and process.
        captions: How many of them also pass the text tower.
        learning_rate: Of AdamW: embeddings, norms, biases, projections, heads.
        muon_rate: Of Muon: the matrices of the vision layers.
        weight_decay: Of all matrices.
        warm_up: Steps of linear warm-up to a constant rate.
        decay: Share of the steps, the last ones, in which the rates fall to nothing.
        proxies: Weight of the class-proxy loss.
        proxies_end: What it falls to during the decay.
        proxy_scale: Inverse temperature of the class proxies.
        smoothing: Label smoothing of the class-proxy loss.
        heads: Weight of the heads that keep single-modality factors.
        head_scale: Inverse temperature of heads that compare by cosine, which the embedding can
            only satisfy by giving the factors room; None for linear heads, content with a trace.
        logit_cap: Largest inverse temperature of the contrastive loss.
        average: Decay of the moving average of the weights that ships.
        gentle: Share of augmentation at the very start and at the very end.
        strength: Full augmentation, reached after `strengthen` steps.
        strengthen: See `strength`.
        checkpoint: Steps between checkpoints, where all chance is seeded anew.
        seed: Seed of everything.
    """

    steps: int = 6000
    batch: int = 128
    captions: int = 64
    learning_rate: float = 2e-3
    muon_rate: float = 4e-3
    weight_decay: float = 0.1
    warm_up: int = 200
    decay: float = 0.35
    proxies: float = 1.0
    proxies_end: float = 0.3
    proxy_scale: float = 20.0
    smoothing: float = 0.1
    heads: float = 0.15
    head_scale: float | None = None
    logit_cap: float = 50.0
    average: float = 0.998
    gentle: float = 0.4
    strength: Strength = field(default_factory=Strength)
    strengthen: int = 1500
    checkpoint: int = 200
    seed: int = 0

    def left(self, step: int) -> float:
        """Share of the decay that is still to come: 1 before it, 0 at the end."""
        return min(1.0, (1 - step / self.steps) / self.decay)

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the largest."""
        return min(1.0, (step + 1) / self.warm_up) * self.left(step)

    def proxy_weight(self, step: int) -> float:
        """Weight of the class-proxy loss at a step."""
        return self.proxies_end + self.left(step) * (self.proxies - self.proxies_end)

    def strength_at(self, step: int) -> Strength:
        """Augmentation at a step: it grows at first and falls in the last third of the decay."""
        share = min(1.0, step / self.strengthen, 3 * self.left(step))
        return self.strength.scaled(self.gentle + (1 - self.gentle) * share)


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


class Trainer:
    """The state of a run: model, its moving average, proxies, heads, optimizers and step."""

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
        torch.manual_seed(recipe.seed)
        self.recipe, self.rank, self.world, self.step = recipe, rank, world, 0
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
        r = self.recipe
        return {
            "muon": torch.optim.Muon(
                matrices, lr=r.muon_rate, weight_decay=r.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                [
                    {"params": others, "weight_decay": r.weight_decay},
                    {"params": plain, "weight_decay": 0.0},
                ],
                lr=r.learning_rate, betas=(0.9, 0.98),
            ),
        }  # fmt: skip

    def run(self, checkpoint: Path) -> None:
        """Train to the last step, with a checkpoint now and then.

        Args:
            checkpoint: File to go on from, where there is one, and to write to.
        """
        if checkpoint.is_file():
            self.load(checkpoint)
        began, first = time.monotonic(), self.step
        sums: dict[str, float] = {}
        while self.step < self.recipe.steps:
            if self.step % self.recipe.checkpoint == 0:
                self._reseed()
            for name, value in self._one_step().items():
                sums[name] = sums.get(name, 0.0) + value / self.recipe.checkpoint
            self.step += 1
            if self.step % self.recipe.checkpoint and self.step < self.recipe.steps:
                continue
            if self.rank == 0:
                seconds = time.monotonic() - began
                rate = (self.step - first) * self.recipe.batch * self.world / seconds
                told = "  ".join(f"{k} {v:.3f}" for k, v in sums.items())
                print(f"{self.step:6} {seconds:6.0f} s {rate:5.0f} pairs/s  {told}", flush=True)
                self.save(checkpoint)
            sums = {}

    def _reseed(self) -> None:
        seed = self.recipe.seed + 1_000_003 * self.step + self.rank
        self.pairs.reseed(self.recipe.strength_at(self.step), seed)

    def _one_step(self) -> dict[str, float]:
        batch = self.pairs.batch(self.recipe.batch, self.recipe.captions)
        losses = self._losses(batch)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        losses["loss"].backward()
        share_gradients(self.parameters, self.world)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        largest = {"muon": self.recipe.muon_rate, "adamw": self.recipe.learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = largest[name] * self.recipe.rate(self.step)
            optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(self.recipe.logit_cap))
            decay = min(self.recipe.average, (self.step + 1) / (self.step + 20))
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        return {name: value.item() for name, value in losses.items()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        recipe, texts = self.recipe, self.recipe.captions
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

    def save(self, checkpoint: Path) -> None:
        """Write everything that a resumed run needs.

        Args:
            checkpoint: File to write.
        """
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        tensors["proxies"] = self.proxies.detach()
        tensors |= optimizer_tensors(self.optimizers)
        facts = {"step": str(self.step), "recipe": self._told()}
        part = checkpoint.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, facts)
        part.replace(checkpoint)

    def _told(self) -> str:
        told = {k: v for k, v in asdict(self.recipe).items() if k != "steps"}
        return json.dumps(told | {"processes": self.world})

    def start_from(self, checkpoint: Path) -> None:
        """Start from the averaged weights of another run.

        Args:
            checkpoint: File that its `save` wrote.
        """
        tensors = load_file(checkpoint)
        for model in (self.model, self.average):
            model.load_state_dict(below(tensors, "average."))
        self.heads.load_state_dict(below(tensors, "heads."))
        with torch.no_grad():
            self.proxies.copy_(tensors["proxies"])

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of the same recipe.

        Args:
            checkpoint: File that `save` wrote.

        Raises:
            ValueError: It belongs to another recipe.
        """
        facts = read_facts(checkpoint)
        if facts["recipe"] != self._told():
            raise ValueError(f"{checkpoint} is of another recipe: give another folder")
        tensors = load_file(checkpoint)
        self.step = int(facts["step"])
        self.model.load_state_dict(below(tensors, "model."))
        self.average.load_state_dict(below(tensors, "average."))
        self.heads.load_state_dict(below(tensors, "heads."))
        with torch.no_grad():
            self.proxies.copy_(tensors["proxies"])
        load_optimizers(self.optimizers, tensors)


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
