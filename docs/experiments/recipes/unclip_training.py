"""What a training run of `emoji-unclip` does in a step, until its time is spent; `loop` runs it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from recipes import loop
from recipes.checkpoints import below
from recipes.unclip_drawings import Supply
from vlm_edit.zoo.unclip import PATCH, UnclipPipeline, condition

TIMES = 1000


@dataclass(frozen=True)
class Recipe(loop.Recipe):
    """Everything that decides a run, but for the speed of the machine; `loop.Recipe` says the rest.

    Attributes:
        minutes: Wall time of the whole run, over which the rate falls to nothing.
        clip: Largest norm of the gradient.
        from_text: Share of images drawn from the embedding of a caption instead of their own.
        dropped: Share of images without an embedding, for classifier-free guidance.
        noise: Largest length of the noise on embeddings of length one.
        half: Whether to compute in bfloat16; the weights proper stay in single precision.
        checkpoint: Seconds between checkpoints.
    """

    batch: int = 512
    checkpoint: float = 45.0
    warm_up: int = 300
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    average: float = 0.999
    minutes: float = 6.0
    clip: float = 1.0
    from_text: float = 0.35
    dropped: float = 0.1
    noise: float = 0.15
    half: bool = True

    def rate(self, step: int, share: float) -> float:
        """Learning rate at a step, after a share of the time, as a share of the largest."""
        return min(1.0, (step + 1) / self.warm_up) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def build() -> UNet2DConditionModel:
    """Build the untrained UNet: 5.7 million weights, 32x32 pixels of 12 channels inside.

    Every residual branch and the output start at zero, as in Dhariwal and Nichol 2021
    (https://arxiv.org/abs/2105.05233).
    """
    unet = UNet2DConditionModel(
        sample_size=64 // PATCH, in_channels=3 * PATCH**2, out_channels=3 * PATCH**2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 160), layers_per_block=1, norm_num_groups=16,
        attention_head_dim=32, class_embed_type="projection",
        projection_class_embeddings_input_dim=192, time_embedding_dim=256,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if name.rsplit(".", 1)[0].endswith(("conv2", "to_out.0", "conv_out")):
            torch.nn.init.zeros_(parameter)
    return unet


def flow_loss(
    unet: Callable[..., Any],
    images: Tensor,
    embeds: Tensor,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Error of the velocity from an image to noise, at a time drawn for each image.

    Times are drawn as in Esser et al. 2024 (https://arxiv.org/abs/2403.03206), equation 19.

    Args:
        unet: Predicts the velocity; a UNet, or what `torch.compile` made of one.
        images: In [0, 1], shape (batch, 3, 64, 64).
        embeds: What `condition` gives, or zeros, shape (batch, dim).
        generator: Draws times and noise.
        dtype: Type of the UNet's weights.
        layout: How the UNet's input lies in memory.
    """
    clean = F.pixel_unshuffle(2 * images - 1, PATCH)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    sigma = torch.randn(len(clean), generator=generator, device=clean.device).sigmoid()
    at = sigma[:, None, None, None]
    noised = torch.lerp(clean, noise, at).to(dtype, memory_format=layout)
    found = unet(noised, sigma * TIMES, None, class_labels=embeds.to(dtype)).sample
    return F.mse_loss(found.float(), noise - clean)


class Trainer(loop.Trainer[Recipe]):
    """A run until its time is spent."""

    FREE = ("minutes", "checkpoint")

    def __init__(
        self,
        recipe: Recipe,
        supply: Supply,
        layout: torch.memory_format = torch.channels_last,
        compiled: bool = False,
    ) -> None:
        """Start from scratch.

        Args:
            recipe: What to do.
            supply: The training drawings, on the device to work on.
            layout: How images and kernels lie in memory; it decides the speed alone.
            compiled: Whether to compile the UNet.
        """
        super().__init__(recipe)
        self.supply, self.device, self.layout = supply, supply.device, layout
        self.master = build().to(self.device, memory_format=layout).train()
        self.average = copy.deepcopy(self.master).eval().requires_grad_(False)
        self.worker = copy.deepcopy(self.master).bfloat16() if recipe.half else self.master
        self.forward = torch.compile(self.worker) if compiled else self.worker
        matrices = [p for p in self.master.parameters() if p.ndim > 1]
        others = [p for p in self.master.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.optimizers = {"adamw": adamw}
        self.until, self.seconds, self.saved = math.inf, 60 * recipe.minutes, 0.0

    def train(self, checkpoint: Path, ship: Callable[[], None], until: float = math.inf) -> None:
        """Train until the time is spent, with a checkpoint now and then.

        Args:
            checkpoint: File to go on from, where there is one, and to write to.
            ship: Writes the averaged weights, after each checkpoint.
            until: Reading of `time.monotonic` by which to be done, should that be earlier.
        """
        self.until = until
        self.run(checkpoint, ship)
        ship()

    def begin(self) -> None:
        """Take the time there is, and draw by the seed of the step that is next."""
        self.seconds = min(self.seconds, self.spent + self.until - time.monotonic())
        self.saved = self.spent
        self.reseed(self.chance())

    def ended(self) -> bool:
        """Tell whether the time is spent."""
        return self.spent >= self.seconds

    def _share(self) -> float:
        return 1.0 if self.ended() else self.spent / self.seconds

    def due(self) -> bool:
        """Tell whether the last checkpoint is so many seconds ago."""
        return self.spent - self.saved > self.recipe.checkpoint

    def save(self, checkpoint: Path) -> None:
        """Write everything that a resumed run needs, and note when."""
        self.saved = self.spent
        super().save(checkpoint)

    def reseed(self, seed: int) -> None:
        """Draw images, embeddings, times and noise anew."""
        self.supply.reseed(seed)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters of the average, and those in single precision."""
        return list(self.average.parameters()), list(self.master.parameters())

    def speed(self, steps: int) -> float:
        """Tell how fast steps are, after as many that warm up; they count as no steps of the run.

        Args:
            steps: How many to time.

        Returns:
            Images per second.
        """
        for _ in range(2):
            began = time.monotonic()
            for _ in range(steps):
                loss = self.one_step()["loss"]
            loss.item()  # waits for the device
        return steps * self.recipe.batch / (time.monotonic() - began)

    def one_step(self) -> dict[str, Tensor]:
        """Descend the error of the velocity in a fresh batch, at the rate of the time spent."""
        r, supply = self.recipe, self.supply
        images, embeds = supply.batch(r.batch, r.from_text, r.noise)
        kept = torch.rand(r.batch, generator=supply.generator, device=self.device) >= r.dropped
        loss = flow_loss(
            self.forward, images, condition(embeds) * kept[:, None], supply.generator,
            next(self.worker.parameters()).dtype, self.layout,
        )  # fmt: skip
        loss.backward()
        masters, workers = list(self.master.parameters()), list(self.worker.parameters())
        if r.half:
            for master in masters:
                master.grad = torch.empty_like(master) if master.grad is None else master.grad
            gradients = [w.grad for w in workers if w.grad is not None]
            torch._foreach_copy_([m.grad for m in masters if m.grad is not None], gradients)
        torch.nn.utils.clip_grad_norm_(masters, r.clip)
        self.descend({"adamw": r.learning_rate * r.rate(self.step, self._share())})
        for parameter in workers:
            parameter.grad = None
        if r.half:
            with torch.no_grad():
                torch._foreach_copy_(workers, masters)
        self.follow()
        if (self.step + 1) % 20 == 0 and self.device.type == "cuda":
            torch.cuda.synchronize()  # the clock is of work done, not of work queued
        return {"loss": loss.detach()}

    def state(self) -> dict[str, Tensor]:
        """Return the weights in single precision, and their average."""
        tensors = {f"master.{k}": v for k, v in self.master.state_dict().items()}
        return tensors | {f"average.{k}": v for k, v in self.average.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.master.load_state_dict(below(tensors, "master."))
        self.average.load_state_dict(below(tensors, "average."))
        self.worker.load_state_dict(below(tensors, "master."))


def pipeline(unet: UNet2DConditionModel, guidance: float = 2.0) -> UnclipPipeline:
    """Join a UNet and a scheduler; the host stays outside, since the zoo has it already."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
    return UnclipPipeline(unet, scheduler, guidance_scale=guidance)


def export(unet: UNet2DConditionModel, folder: Path, guidance: float = 2.0) -> None:
    """Write a pipeline without the host, in half precision.

    Args:
        unet: The averaged weights.
        folder: Folder for `UnclipPipeline.from_pretrained`.
        guidance: What a call takes that names none.
    """
    copied = copy.deepcopy(unet).cpu().half().to(memory_format=torch.contiguous_format)
    pipeline(copied, guidance).save_pretrained(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
