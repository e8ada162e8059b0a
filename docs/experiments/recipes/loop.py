"""The loop that trains every host of the zoo, and goes on after a kill as if without one."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes.augment import Strength
from recipes.checkpoints import load_optimizers, optimizer_tensors, read_facts


@dataclass(frozen=True)
class Recipe:
    """What every recipe says of its run.

    Attributes:
        batch: Images per step and process.
        checkpoint: Between checkpoints: steps, or seconds of a run that goes by the clock.
        learning_rate: Largest one of AdamW.
        weight_decay: Of all matrices.
        warm_up: Steps of linear warm-up.
        average: Decay of the moving average of the weights that ships.
        seed: Seed of everything.
    """

    batch: int
    checkpoint: float
    warm_up: int
    learning_rate: float
    weight_decay: float
    average: float
    seed: int = 0


R = TypeVar("R", bound=Recipe)


class Trainer(ABC, Generic[R]):
    """The state of a run: weights, their moving average, optimizers, step and time spent.

    What is trained fills in a step, its end, and what a checkpoint holds beside the optimizers.

    Attributes:
        recipe: What to do.
        rank: Number of this process.
        world: Number of processes.
        step: Steps done.
        spent: Seconds they took.
        history: A line for each checkpoint.
        optimizers: By name.
    """

    FREE: ClassVar[tuple[str, ...]]  # of the recipe, what a run that goes on may change
    UNIT: ClassVar[str] = "images"

    def __init__(self, recipe: R, rank: int = 0, world: int = 1) -> None:
        """Start from scratch."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.rank, self.world = recipe, rank, world
        self.step, self.spent = 0, 0.0
        self.history: list[str] = []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def one_step(self) -> dict[str, Tensor]:
        """Change the weights once, and return what the step lost, by name."""

    @abstractmethod
    def ended(self) -> bool:
        """Tell whether the run is at its end."""

    @abstractmethod
    def due(self) -> bool:
        """Tell whether a checkpoint is to be written."""

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Draw anew from a seed."""

    @abstractmethod
    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the weights of the moving average, and those they follow."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds beside the optimizers, by name."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def begin(self) -> None:
        """Get ready, behind the checkpoint there may be and before the first step."""

    def run(self, checkpoint: Path, ship: Callable[[], None] = lambda: None) -> None:
        """Train to the end, with a checkpoint now and then.

        Args:
            checkpoint: File to go on from, where there is one, and to write to.
            ship: Called after each checkpoint.
        """
        if checkpoint.is_file():
            self.load(checkpoint)
            self._say(f"going on from step {self.step} after {self.spent:.0f} s")
        self.begin()
        first, before, began = self.step, self.spent, time.monotonic()
        sums: dict[str, Tensor] = {}
        count = 0
        while not self.ended():
            for name, value in self.one_step().items():
                sums[name] = sums[name] + value if name in sums else value
            self.step, count = self.step + 1, count + 1
            self.spent = before + time.monotonic() - began
            if not (self.due() or self.ended()):
                continue
            speed = (self.step - first) * self.recipe.batch * self.world / (self.spent - before)
            losses = "  ".join(f"{k} {float(v) / count:.4f}" for k, v in sums.items())
            self.history.append(
                f"{self.step:6} {self.spent:6.0f} s {speed:7.0f} {self.UNIT}/s  {losses}"
            )
            self._say(self.history[-1])
            if self.rank == 0:
                self.save(checkpoint)
                ship()
            sums, count = {}, 0

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def chance(self) -> int:
        """Return the seed of what is drawn from this step on, in this process."""
        return self.recipe.seed + 1_000_003 * self.step + self.rank

    def descend(self, rates: Mapping[str, float]) -> None:
        """Take a step of each optimizer, at its rate."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            optimizer.step()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights, faster while the run is young."""
        average, weights = self.averaged()
        decay = min(self.recipe.average, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(average, weights, 1 - decay)

    def save(self, checkpoint: Path) -> None:
        """Write everything that a resumed run needs.

        Args:
            checkpoint: File to write.
        """
        tensors = self.state() | optimizer_tensors(self.optimizers)
        facts = {"step": str(self.step), "spent": str(self.spent), "recipe": self._fixed()}
        facts["history"] = "\n".join(self.history)
        part = checkpoint.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, facts)
        part.replace(checkpoint)

    def _fixed(self) -> str:
        fields = {k: v for k, v in asdict(self.recipe).items() if k not in self.FREE}
        return json.dumps(fields | {"processes": self.world})

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of the same recipe.

        Args:
            checkpoint: File that `save` wrote.

        Raises:
            ValueError: It belongs to another recipe.
        """
        facts = read_facts(checkpoint)
        if facts["recipe"] != self._fixed():
            raise ValueError(f"{checkpoint} is of another recipe: give another folder")
        tensors = load_file(checkpoint)  # the optimizers count their steps on the CPU
        self.step, self.spent = int(facts["step"]), float(facts["spent"])
        self.history = facts["history"].splitlines()
        self.restore(tensors)
        load_optimizers(self.optimizers, tensors)


@dataclass(frozen=True)
class StepRecipe(Recipe):
    """What recipes say of a run that ends after so many steps, with Muon and AdamW.

    Attributes:
        steps: Optimizer steps; may be changed on a resume before the decay starts.
        decay: Share of the steps, the last ones, in which the rates fall to nothing.
        strengthen: Steps until `strength` is reached.
        muon_rate: Largest learning rate of Muon.
        gentle: Share of augmentation at the very start and at the very end.
        strength: Full augmentation.
        learning_rate: See `Recipe`; it warms up to a constant rate.
        checkpoint: Steps between checkpoints, where all chance is seeded anew.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    average: float = 0.998
    steps: int = field(kw_only=True)
    decay: float = field(kw_only=True)
    strengthen: int = field(kw_only=True)
    muon_rate: float = 4e-3
    gentle: float = 0.4
    strength: Strength = field(default_factory=Strength)

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

    def optimizers(
        self, matrices: Sequence[Tensor], others: Sequence[Tensor], plain: Sequence[Tensor]
    ) -> dict[str, torch.optim.Optimizer]:
        """Make Muon for matrices of layers, and AdamW for the rest.

        Args:
            matrices: For Muon.
            others: For AdamW, with weight decay.
            plain: For AdamW, without.
        """
        groups = [
            {"params": others, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return {
            "muon": torch.optim.Muon(
                matrices, lr=self.muon_rate, weight_decay=self.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98)),
        }  # fmt: skip


S = TypeVar("S", bound=StepRecipe)


class StepTrainer(Trainer[S]):
    """A run of so many steps, on one or more processes.

    Attributes:
        parameters: All that are trained.
    """

    FREE = ("steps",)
    parameters: list[Tensor]

    @abstractmethod
    def losses(self) -> dict[str, Tensor]:
        """Return what a fresh batch loses: under `loss` what is descended, and parts to be told."""

    def ended(self) -> bool:
        """Tell whether all steps are done."""
        return self.step >= self.recipe.steps

    def due(self) -> bool:
        """Tell whether so many steps are done since the last checkpoint."""
        return self.step % self.recipe.checkpoint == 0

    def one_step(self) -> dict[str, Tensor]:
        """Descend what a fresh batch loses."""
        if self.due():
            self.reseed(self.chance())
        losses = self.losses()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        losses["loss"].backward()
        share_gradients(self.parameters, self.world)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        largest = {"muon": self.recipe.muon_rate, "adamw": self.recipe.learning_rate}
        rate = self.recipe.rate(self.step)
        self.descend({name: value * rate for name, value in largest.items()})
        self.follow()
        return {name: value.detach() for name, value in losses.items()}


def share_gradients(parameters: Sequence[Tensor], world: int) -> None:
    """Replace gradients by their mean over all processes.

    Args:
        parameters: The same in every process.
        world: Number of processes.
    """
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / world
    dist.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [f.view_as(g) for f, g in zip(parts, gradients, strict=True)])


@contextmanager
def one_of(rank: int, world: int, checkpoint: Path) -> Iterator[None]:
    """Be one of the processes of a run, with one thread.

    Args:
        rank: Number of this process.
        world: Number of processes.
        checkpoint: They meet by a file beside it.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if world == 1:
        yield
        return
    meeting = checkpoint.with_name(f"meeting-{checkpoint.stem}-{os.getppid()}")
    store = f"file://{meeting.resolve()}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    yield
    dist.destroy_process_group()
