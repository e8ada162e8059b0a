"""What a training run of the LLaVA does in a step; `loop` runs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from recipes.checkpoints import below
from recipes.dialogues import Dialogue, Dialogues, visible
from recipes.loop import StepRecipe, StepTrainer

TOWER = "model.vision_tower."


@dataclass(frozen=True)
class Recipe(StepRecipe):
    """Everything that decides a run; `StepRecipe` says the rest.

    AdamW is of embeddings, norms and biases; Muon of the matrices of the decoder and of the
    projector.

    Attributes:
        smoothing: Label smoothing.
        width: Of the decoder.
        layers: Of the decoder.
        heads: Of each of its layers.
        silent: How many of its layers, from the first on, attend to nothing.
    """

    steps: int = 900
    batch: int = 96
    checkpoint: int = 100
    warm_up: int = 100
    decay: float = 0.5
    strengthen: int = 400
    smoothing: float = 0.1
    width: int = 192
    layers: int = 4
    heads: int = 6
    silent: int = 1


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


class Trainer(StepTrainer[Recipe]):
    """A run of the LLaVA: model and its moving average."""

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
        super().__init__(recipe, rank, world)
        self.data = Dialogues(folder, tokenizer, recipe.strength, recipe.seed)
        self.model = build(host, tokenizer, recipe)
        self.model.set_attn_implementation("eager")  # faster than fused on CPU at this length
        some = min(64, len(self.data.rows))
        start_projector(self.model, look(self.model, self.data.batch(some).pixels))
        self.average = copy.deepcopy(self.model).eval()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        self.optimizers = self._optimizers()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        matrices = [p for n, p in self.trained.items() if p.ndim == 2 and "embed" not in n]
        embeddings = [p for n, p in self.trained.items() if p.ndim == 2 and "embed" in n]
        plain = [p for p in self.trained.values() if p.ndim == 1]
        return self.recipe.optimizers(matrices, embeddings, plain)

    def reseed(self, seed: int) -> None:
        """Draw dialogues and views of their images anew, as strongly as the step asks for."""
        self.data.reseed(self.recipe.strength_at(self.step), seed)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the trained parameters of the average, and of the model."""
        return [p for p in self.average.parameters() if p.requires_grad], self.parameters

    def losses(self) -> dict[str, Tensor]:
        """Return the weighted mean over the answers' tokens, and the share right of each kind."""
        batch = self.data.batch(self.recipe.batch)
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
            shares = {k: right[weights == w].mean() for k, w in kinds.items()}
        return {"loss": loss, **shares}

    def state(self) -> dict[str, Tensor]:
        """Return what is trained of the model and of its average."""
        named = self.average.named_parameters()
        average = {f"average.{k}": p for k, p in named if p.requires_grad}
        return {f"model.{k}": v for k, v in self.trained.items()} | average

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        restore(self.model, below(tensors, "model."))
        restore(self.average, below(tensors, "average."))


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
