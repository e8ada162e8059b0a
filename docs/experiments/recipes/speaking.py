"""One training run of the LLaVA, on one or more processes, that goes on after a kill."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from recipes.augment import Strength
from recipes.checkpoints import (
    below,
    load_optimizers,
    optimizer_tensors,
    read_facts,
    share_gradients,
)
from recipes.dialogues import Dialogue, Dialogues, visible

TOWER = "model.vision_tower."


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Attributes:
        steps: Optimizer steps; may be changed on a resume before the decay starts.
        batch: Images per step and process.
        learning_rate: Of AdamW: embeddings, norms, biases.
        muon_rate: Of Muon: the matrices of the decoder and of the projector.
        weight_decay: Of all matrices.
        warm_up: Steps of linear warm-up to a constant rate.
        decay: Share of the steps, the last ones, in which the rates fall to nothing.
        smoothing: Label smoothing.
        average: Decay of the moving average of the weights that ships.
        gentle: Share of augmentation at the very start and at the very end.
        strength: Full augmentation, reached after `strengthen` steps.
        strengthen: See `strength`.
        checkpoint: Steps between checkpoints, where all chance is seeded anew.
        seed: Seed of everything.
        width: Of the decoder.
        layers: Of the decoder.
        heads: Of each of its layers.
        silent: How many of its layers, from the first on, attend to nothing.
    """

    steps: int = 900
    batch: int = 96
    learning_rate: float = 2e-3
    muon_rate: float = 4e-3
    weight_decay: float = 0.1
    warm_up: int = 100
    decay: float = 0.5
    smoothing: float = 0.1
    average: float = 0.998
    gentle: float = 0.4
    strength: Strength = field(default_factory=Strength)
    strengthen: int = 400
    checkpoint: int = 100
    seed: int = 0
    width: int = 192
    layers: int = 4
    heads: int = 6
    silent: int = 1

    def left(self, step: int) -> float:
        """Share of the decay that is still to come: 1 before it, 0 at the end."""
        return min(1.0, (1 - step / self.steps) / self.decay)

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the largest."""
        return min(1.0, (step + 1) / self.warm_up) * self.left(step)

    def strength_at(self, step: int) -> Strength:
        """Augmentation at a step: it grows at first and falls in the last third of the decay."""
        share = min(1.0, step / self.strengthen, 3 * self.left(step))
        return self.strength.scaled(self.gentle + (1 - self.gentle) * share)


def build(
    host: CLIPModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> LlavaForConditionalGeneration:
    """Make a LLaVA with a host's vision tower and an untrained decoder.

    Args:
        host: Lends its vision tower.
        tokenizer: Of the decoder.
        recipe: Its sizes.
    """
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.width, num_hidden_layers=recipe.layers,
        intermediate_size=8 * recipe.width // 3, num_attention_heads=recipe.heads,
        max_position_embeddings=128, tie_word_embeddings=True, **special,
    )  # fmt: skip
    vision = host.config.vision_config
    config = LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + 1,
        vision_feature_layer=-1, vision_feature_select_strategy="full", **special,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    model.model.vision_tower.load_state_dict(host.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    for layer in model.model.language_model.layers[: recipe.silent]:
        silence(layer.self_attn)
    return model


@torch.no_grad()
def silence(attention: nn.Module) -> None:
    """Make an attention add nothing, for good.

    So small a decoder reads the image in its first layer, before there is a site to edit at. With
    that layer silent, whatever the text learns of the image passes the image tokens behind it.

    Args:
        attention: Changed in place.
    """
    for parameter in attention.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)


def look(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The vision tower's features that the projector reads.

    Args:
        model: The model.
        pixels: Normalised images.
    """
    with torch.no_grad():
        seen: Tensor = model.model.vision_tower(pixels).last_hidden_state
    return seen


@torch.no_grad()
def start_projector(model: LlavaForConditionalGeneration, seen: Tensor) -> None:
    """Start the projector from standardised features: the tower's differ widely in scale.

    Args:
        model: Changed in place.
        seen: Features of some images.
    """
    first = model.model.multi_modal_projector.linear_1
    flat = seen.flatten(0, 1)
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight /= flat.std(0)
    first.bias.copy_(-first.weight @ flat.mean(0))


class Trainer:
    """The state of a run: model, its moving average, optimizers and step."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        host: CLIPModel,
        tokenizer: PreTrainedTokenizerFast,
        rank: int,
        world: int,
    ) -> None:
        """Start from scratch.

        Args:
            recipe: What to do.
            folder: What the pairs recipe rendered.
            host: Lends its vision tower.
            tokenizer: Trained tokenizer.
            rank: Number of this process.
            world: Number of processes.
        """
        torch.manual_seed(recipe.seed)
        self.recipe, self.rank, self.world, self.step = recipe, rank, world, 0
        self.data = Dialogues(folder, tokenizer, recipe.strength, recipe.seed)
        self.model = build(host, tokenizer, recipe)
        self.model.set_attn_implementation("eager")  # faster than fused on CPU at this length
        some = min(64, len(self.data.rows))
        start_projector(self.model, look(self.model, self.data.batch(some).pixels))
        self.average = copy.deepcopy(self.model).eval()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizers = self._optimizers()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        matrices = [p for n, p in self.trained.items() if p.ndim == 2 and "embed" not in n]
        embeddings = [p for n, p in self.trained.items() if p.ndim == 2 and "embed" in n]
        plain = [p for p in self.trained.values() if p.ndim == 1]
        r = self.recipe
        return {
            "muon": torch.optim.Muon(
                matrices, lr=r.muon_rate, weight_decay=r.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                [
                    {"params": embeddings, "weight_decay": r.weight_decay},
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
                seed = self.recipe.seed + 1_000_003 * self.step + self.rank
                self.data.reseed(self.recipe.strength_at(self.step), seed)
            for name, value in self._one_step().items():
                sums[name] = sums.get(name, 0.0) + value / self.recipe.checkpoint
            self.step += 1
            if self.step % self.recipe.checkpoint and self.step < self.recipe.steps:
                continue
            if self.rank == 0:
                seconds = time.monotonic() - began
                rate = (self.step - first) * self.recipe.batch * self.world / seconds
                told = "  ".join(f"{k} {v:.3f}" for k, v in sums.items())
                print(f"{self.step:6} {seconds:6.0f} s {rate:5.0f} images/s  {told}", flush=True)
                self.save(checkpoint)
            sums = {}

    def _one_step(self) -> dict[str, float]:
        loss, told = self._loss(self.data.batch(self.recipe.batch))
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        share_gradients(list(self.trained.values()), self.world)
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        largest = {"muon": self.recipe.muon_rate, "adamw": self.recipe.learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = largest[name] * self.recipe.rate(self.step)
            optimizer.step()
        decay = min(self.recipe.average, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(
                [p for p in self.average.parameters() if p.requires_grad],
                list(self.trained.values()), 1 - decay,
            )  # fmt: skip
        return told

    def _loss(self, batch: Dialogue) -> tuple[Tensor, dict[str, float]]:
        """Weighted mean over the answers' tokens."""
        self.model.model.language_model.train()
        with torch.autocast("cpu", torch.bfloat16):
            image = self.model.model.multi_modal_projector(look(self.model, batch.pixels))
            asked = batch.targets >= 0
            logits = self.model.lm_head(read_packed(self.model, batch, image.float())[asked])
        targets, weights = batch.targets[asked], batch.weights[asked]
        losses = F.cross_entropy(
            logits.float(), targets, reduction="none", label_smoothing=self.recipe.smoothing
        )
        loss = (losses * weights).sum() / weights.sum()
        with torch.no_grad():
            right = (logits.argmax(1) == targets).float()
            kinds = {"name": 1.0, "who": 0.5, "background": 0.3, "caption": 0.4}
            told = {k: float(right[weights == w].mean()) for k, w in kinds.items()}
        return loss, {"loss": loss.item(), **told}

    def save(self, checkpoint: Path) -> None:
        """Write everything that a resumed run needs.

        Args:
            checkpoint: File to write.
        """
        tensors = {f"model.{k}": v for k, v in self.trained.items()}
        named = self.average.named_parameters()
        tensors |= {f"average.{k}": p for k, p in named if p.requires_grad}
        tensors |= optimizer_tensors(self.optimizers)
        facts = {"step": str(self.step), "recipe": self._told()}
        part = checkpoint.with_suffix(".part")
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, facts)
        part.replace(checkpoint)

    def _told(self) -> str:
        told = {k: v for k, v in asdict(self.recipe).items() if k != "steps"}
        return json.dumps(told | {"processes": self.world})

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
        restore(self.model, below(tensors, "model."))
        restore(self.average, below(tensors, "average."))
        load_optimizers(self.optimizers, tensors)


def restore(model: LlavaForConditionalGeneration, tensors: dict[str, Tensor]) -> None:
    """Give a model its trained weights; the vision tower's are not among them.

    Args:
        model: Changed in place.
        tensors: By the parameters' names.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if set(parameters) != set(tensors):
        raise ValueError(f"other weights: {sorted(set(parameters) ^ set(tensors))}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def read_packed(model: LlavaForConditionalGeneration, batch: Dialogue, image: Tensor) -> Tensor:
    """The decoder's last hidden states of several texts behind one image.

    Args:
        model: The model.
        batch: The texts.
        image: Projected features [batch, count, width].

    Returns:
        [batch, length, width], a row for each of the batch's ids.
    """
    decoder, count = model.model.language_model, image.shape[1]
    words = decoder.embed_tokens(batch.ids)
    positions = batch.positions + count * (batch.part > 0)
    between = torch.arange(1, count + 1).expand(len(image), -1)
    hidden: Tensor = decoder(
        inputs_embeds=torch.cat([words[:, :1], image, words[:, 1:]], 1),
        attention_mask=_mask(batch.part, count),
        position_ids=torch.cat([positions[:, :1], between, positions[:, 1:]], 1),
        use_cache=False,
    ).last_hidden_state
    return torch.cat([hidden[:, :1], hidden[:, count + 1 :]], 1)


def _mask(part: Tensor, count: int) -> Tensor:
    """What is added to attention scores, with the image's tokens behind the first."""
    image = torch.zeros(len(part), count, dtype=part.dtype)
    seen = visible(torch.cat([part[:, :1], image, part[:, 1:]], 1))
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
