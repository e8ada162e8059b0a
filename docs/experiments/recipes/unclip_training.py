"""One training run of `emoji-unclip`, bounded by wall time, that goes on after a kill."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.checkpoints import (
    below,
    load_optimizers,
    optimizer_tensors,
    read_facts,
)
from recipes.unclip_drawings import Supply
from vlm_edit.zoo.unclip import PATCH, UnclipPipeline, condition

TIMES = 1000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, but for the speed of the machine.

    Attributes:
        minutes: Wall time of the whole run, over which the rate falls to nothing.
        batch: Images per step.
        learning_rate: Of AdamW.
        weight_decay: Of all matrices.
        warm_up: Steps of linear warm-up.
        clip: Largest norm of the gradient.
        average: Decay of the moving average of the weights that ships.
        from_text: Share of images drawn from the embedding of a caption instead of their own.
        dropped: Share of images without an embedding, for classifier-free guidance.
        noise: Largest length of the noise on embeddings of length one.
        half: Whether to compute in bfloat16; the weights proper stay in single precision.
        checkpoint: Seconds between checkpoints.
        seed: Seed of everything.
    """

    minutes: float = 6.0
    batch: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: int = 300
    clip: float = 1.0
    average: float = 0.999
    from_text: float = 0.35
    dropped: float = 0.1
    noise: float = 0.15
    half: bool = True
    checkpoint: float = 45.0
    seed: int = 0

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


class Trainer:
    """The state of a run: weights, their moving average, optimizer, step and time spent."""

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
        torch.manual_seed(recipe.seed)
        self.recipe, self.supply, self.device = recipe, supply, supply.device
        self.layout = layout
        self.master = build().to(self.device, memory_format=layout).train()
        self.average = copy.deepcopy(self.master).eval().requires_grad_(False)
        self.worker = copy.deepcopy(self.master).bfloat16() if recipe.half else self.master
        self.forward = torch.compile(self.worker) if compiled else self.worker
        matrices = [p for p in self.master.parameters() if p.ndim > 1]
        others = [p for p in self.master.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate, betas=(0.9, 0.99),
        )  # fmt: skip
        self.step, self.spent = 0, 0.0
        self.history: list[str] = []

    def run(self, checkpoint: Path, ship: Callable[[], None], until: float = math.inf) -> None:
        """Train until the time is spent, with a checkpoint now and then.

        Args:
            checkpoint: File to go on from, where there is one, and to write to.
            ship: Writes the averaged weights, after each checkpoint.
            until: Reading of `time.monotonic` by which to be done, should that be earlier.
        """
        if checkpoint.is_file():
            self.load(checkpoint)
            print(f"unet: going on from step {self.step} after {self.spent:.0f} s")
        first, before, began = self.step, self.spent, time.monotonic()
        self.supply.reseed(self.recipe.seed + 1_000_003 * self.step)
        saved, total, count = began, torch.zeros((), device=self.device), 0
        seconds = min(60 * self.recipe.minutes, before + until - began)
        while self.spent < seconds:
            total += self._one_step(self.spent / seconds)
            self.step, count = self.step + 1, count + 1
            if self.step % 20 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()  # the clock is of work done, not of work queued
            now = time.monotonic()
            self.spent = before + now - began
            if now - saved > self.recipe.checkpoint or self.spent >= seconds:
                speed = (self.step - first) * self.recipe.batch / (now - began)
                self.history.append(
                    f"unet {self.step:6} {self.spent:6.0f} s {speed:7.0f} images/s  "
                    f"loss {total.item() / count:.4f}"
                )
                print(self.history[-1], flush=True)
                saved, count = now, 0
                total.zero_()
                self.save(checkpoint)
                ship()
        ship()

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
                loss = self._one_step(0.0)
            loss.item()  # waits for the device
        return steps * self.recipe.batch / (time.monotonic() - began)

    def _one_step(self, share: float) -> Tensor:
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
        for group in self.optimizer.param_groups:
            group["lr"] = r.learning_rate * r.rate(self.step, share)
        self.optimizer.step()
        for parameter in workers:
            parameter.grad = None
        with torch.no_grad():
            if r.half:
                torch._foreach_copy_(workers, masters)
            decay = min(r.average, (self.step + 1) / (self.step + 20))
            torch._foreach_lerp_(list(self.average.parameters()), masters, 1 - decay)
        return loss.detach()

    def _told(self) -> str:
        free = ("minutes", "checkpoint")
        return json.dumps({k: v for k, v in asdict(self.recipe).items() if k not in free})

    def save(self, checkpoint: Path) -> None:
        """Write everything that a resumed run needs.

        Args:
            checkpoint: File to write.
        """
        tensors = {f"master.{k}": v for k, v in self.master.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= optimizer_tensors({"adamw": self.optimizer})
        facts = {"step": str(self.step), "spent": str(self.spent), "recipe": self._told()}
        facts["history"] = "\n".join(self.history)
        part = checkpoint.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, facts)
        part.replace(checkpoint)

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
        tensors = load_file(checkpoint)  # the optimizer counts its steps on the CPU
        self.step, self.spent = int(facts["step"]), float(facts["spent"])
        self.history = facts["history"].splitlines()
        self.master.load_state_dict(below(tensors, "master."))
        self.average.load_state_dict(below(tensors, "average."))
        self.worker.load_state_dict(below(tensors, "master."))
        load_optimizers({"adamw": self.optimizer}, tensors)


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
