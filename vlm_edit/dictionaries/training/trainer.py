"""The steps of a run, and its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.training.archetypes import Archetypes, begin_archetypes
from vlm_edit.dictionaries.training.compiling import compiled
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.contrast import Contrast, fit_decoder
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.distributed import world
from vlm_edit.dictionaries.training.objective import Figures, Objective
from vlm_edit.dictionaries.training.start import Start
from vlm_edit.dictionaries.training.target import Codes, Target, raised, rescaled, shifted
from vlm_edit.ground.errors import VlmEditError

# Of kinds whose features have no thresholds; the others' is jumprelu.
_ACTIVATION = {"relu": "relu", "ncl": "relu", "topk": "topk", "archetypal": "topk"}


class Trainer:
    """Weights, optimiser, generator and counts of a run."""

    def __init__(
        self,
        data: Data,
        config: TrainConfig,
        device: torch.device,
        start: Dictionary | None = None,
    ) -> None:
        """Begin at step 0, with random rows or a dictionary's."""
        self.data, self.config, self.device = data, config, device
        self.rank, self.processes = world()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.objective = self._begin()
        self.threshold, self.start = torch.tensor(0.0), "" if start is None else start.digest()
        if start is not None:
            self._take_up(Start.of(start, data, config))
        self.engine: torch.nn.Module = self.objective
        if config.compile:
            self.engine = compiled(self.objective, device)
        if self.processes > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.engine = DistributedDataParallel(
                self.engine, device_ids=ids, broadcast_buffers=False
            )
        self.optimiser = torch.optim.Adam(
            self.objective.parameters(), lr=config.lr, betas=(0.9, 0.999)
        )
        self.idle = torch.zeros(config.n_features, dtype=torch.long, device=device)
        self.target = Target(config)
        self.done, self.cut = 0, 0.0

    def _begin(self) -> Objective | Contrast:
        """Return the weights that a run begins with, of its seed."""
        data, config = self.data, self.config
        median = config.middle == "median"
        middle = ((data.median() if median else data.mean) / data.scale).to(self.device)
        if config.kind == "archetypal":
            rows = begin_archetypes(data, middle, config, self.generator)
            return Objective(rows.to(self.device), middle, config)
        drawn = torch.randn(config.n_features, len(middle), generator=self.generator)
        kind = Contrast if config.kind == "ncl" else Objective
        return kind(F.normalize(drawn, dim=1).to(self.device), middle, config)

    @torch.no_grad()
    def _take_up(self, start: Start) -> None:
        """Put a dictionary's weights in place of those that were drawn."""
        objective = self.objective
        assert isinstance(objective, Objective)
        for name in ("weight", "bias", "decoder", "decoder_bias"):
            getattr(objective, name).copy_(getattr(start, name))
        if self.config.kind == "gated":  # with a gain of 1, opened where the threshold is
            objective.gate_bias.copy_(start.bias - start.threshold)
        elif self.config.kind == "jumprelu":
            # 0 has no logarithm, and that of something tiny hardly learns: with target_l0 the
            # penalty then grows until nothing is explained. Those begin as without a start.
            threshold = start.threshold.to(self.device)
            there = threshold > 0
            objective.log_threshold[there] = threshold[there].log()
        elif self.config.kind in ("batchtopk", "matryoshka"):
            self.threshold = start.threshold.mean().cpu()

    @property
    def figures(self) -> tuple[str, ...]:
        """Return the names of what a step tells."""
        if self.config.kind == "ncl":
            return ("loss", "accuracy", "l0", "dead")
        return ("explained", "l0", "dead", "coefficient")

    def step(self) -> dict[str, float]:
        """Take one optimiser step; return figures of the batch."""
        x, mask, rows = self._batch()
        dead = self.idle > self.config.patience
        count = int(dead.sum())
        warm = min(1.0, self.done / (0.05 * self.config.steps))
        if self.config.kind == "ncl":
            loss, figures = self.engine(x, rows)
        else:
            with torch.autocast(
                self.device.type, torch.bfloat16, self.config.precision == "bfloat16"
            ):
                # Compiled code takes numbers as they are, and would be made anew for each.
                given = torch.tensor if self.config.compile else float
                loss, figures = self.engine(
                    *(x, mask, dead if count else None, given(self.target.coefficient * warm)),
                    given(0.9 * self.cut),
                )
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * schedule(self.done / self.config.steps)
        self._expect_finite(figures)
        self.optimiser.zero_grad()
        loss.backward()
        if self.config.clip is not None:  # of several processes the mean, which all have by now
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip)
        self.objective.before_step()
        self.optimiser.step()
        self.objective.after_step()
        self._follow(figures)
        known = {
            **{name: float(value) for name, value in figures.told.items()},
            "l0": float(figures.l0),
            "dead": count,
            "coefficient": self.target.coefficient if self.config.penalised else 0.0,
        }
        return {name: known[name] for name in self.figures}

    def result(self, info: Mapping[str, str], progress: bool = False) -> Dictionary:
        """Return the dictionary in the units of the data, on the CPU."""
        objective, config = self.objective, self.config
        if not all(bool(values.isfinite().all()) for values in objective.parameters()):
            raise VlmEditError(
                f"the weights are not finite after {self.done} steps: train with a smaller lr than "
                f"{config.lr}"
            )
        codes, threshold = self._codes(), self._threshold()
        if isinstance(objective, Contrast):
            fitted = (self.data, codes.weight, codes.bias, config.ridge, progress)
            decoder, decoder_bias = fit_decoder(*fitted)
        else:
            decoder, decoder_bias = objective.rows().detach(), codes.subtract
            if config.kind == "archetypal":  # in the units of the activations, as rows are points
                decoder = decoder * self.data.scale
        bias, threshold = self._reached(codes, threshold)
        encoder = Encoder(
            weight=codes.weight.cpu().contiguous(),
            bias=bias.cpu(),
            subtract=None if config.kind == "ncl" else decoder_bias.cpu(),
            activation=_ACTIVATION.get(config.kind, "jumprelu"),
            k=config.k if _ACTIVATION.get(config.kind) == "topk" else None,
            threshold=None if threshold is None else threshold.cpu(),
            norm=config.norm,
            centers={name: center.cpu() for name, center in self.data.centers.items()},
        )
        return Dictionary(encoder, decoder.cpu(), decoder_bias.cpu(), info)

    def _threshold(self) -> Tensor | None:
        """Return thresholds [m] in the units of the data, of the kinds that have them."""
        config, scale = self.config, self.data.scale
        if config.kind in _ACTIVATION:
            return None
        if isinstance(self.objective, Objective) and config.kind == "jumprelu":
            return self.objective.thresholds * scale
        if isinstance(self.objective, Objective) and config.kind == "gated":
            # A gate opens where z + gate_bias > 0, and the size is z * gain + bias.
            opened = self.objective.gate_bias.detach() * self.objective.log_gain.detach().exp()
            return (self.objective.bias.detach() - opened).clamp_min(0) * scale
        return (self.threshold * scale).repeat(config.n_features)

    def _codes(self) -> Codes:
        """Return what decides which features are active, in the units of the data."""
        objective, scale = self.objective, self.data.scale
        weight, bias = objective.weight.detach(), objective.bias.detach() * scale
        if isinstance(objective, Contrast):
            return Codes(weight, objective.in_use() * scale, torch.zeros_like(weight[:, 0]))
        if self.config.kind == "gated":
            weight = weight * objective.log_gain.detach().exp()
        if self.config.kind == "archetypal":
            weight, bias = weight / scale, bias / scale
        return Codes(weight, bias, objective.decoder_bias.detach() * scale)

    def _reached(self, codes: Codes, threshold: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return bias and thresholds [m] with which as many are active as was asked for."""
        bias, wanted = codes.bias, self.config.target_l0
        if wanted is None:
            return bias, threshold
        if threshold is None:
            bias, reached = shifted(self.data, codes, wanted)
        elif self.config.kind == "gated":
            threshold, reached = raised(self.data, codes, threshold, wanted)
        else:
            threshold, reached = rescaled(self.data, codes, threshold, wanted)
        self.target.warn(reached)
        return bias, threshold

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything the next step depends on: tensors and numbers."""
        tensors = {"generator": self.generator.get_state(), "idle": self.idle}
        tensors["threshold"] = self.threshold.reshape(1)
        if self._points is not None:
            tensors["points"] = self._points
        for name, weight in self.objective.named_parameters():
            tensors[f"weight.{name}"] = weight
            for key, value in self.optimiser.state[weight].items():
                tensors[f"{key}.{name}"] = value.reshape(-1) if value.ndim == 0 else value
        target = self.target
        return tensors, {"done": self.done, "coefficient": target.coefficient, "l0": target.l0}

    @property
    def _points(self) -> Tensor | None:
        """Return the points of an archetypal dictionary, which do not learn."""
        decoder = getattr(self.objective, "decoder", None)
        return decoder.points if isinstance(decoder, Archetypes) else None

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.generator.set_state(tensors["generator"])
        self.idle.copy_(tensors["idle"])
        self.threshold = tensors["threshold"].reshape(()).clone()
        if self._points is not None:
            self._points.copy_(tensors["points"])
        for name, weight in self.objective.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            self.optimiser.state[weight] = {
                "step": tensors[f"step.{name}"].reshape(()).clone(),
                "exp_avg": tensors[f"exp_avg.{name}"].to(self.device, copy=True),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.device, copy=True),
            }
        self.done = int(numbers["done"])
        self.target.coefficient, self.target.l0 = (
            float(numbers["coefficient"]),
            float(numbers["l0"]),
        )

    def _batch(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return this process' share of the batch and of its mask, and the last stream's rows.

        Each process draws all, and takes its part.
        """
        config, streams = self.config, self.data.streams
        share = config.batch_size // len(streams)
        part = share // self.processes
        mine = slice(self.rank * part, (self.rank + 1) * part)
        rows: dict[str, Tensor] = {}
        for name, stream in streams.items():
            if config.paired and rows:
                rows[name] = next(iter(rows.values()))
            else:
                rows[name] = torch.randint(len(stream), (share,), generator=self.generator)[mine]
        mask = None
        if config.mask:
            choice = torch.rand(share, config.n_features, generator=self.generator) >= config.mask
            mask = choice[mine].repeat(2, 1).to(self.device, torch.float32)
        last = next(reversed(rows.values()))
        return self.data.batch(rows, self.device), mask, last.to(self.device)

    def _expect_finite(self, figures: Figures) -> None:
        """Refuse to go on from weights that are lost."""
        for name, value in figures.told.items():
            if not bool(value.isfinite()):
                raise VlmEditError(
                    f"training diverged: {name} is {float(value)} in step {self.done + 1} of "
                    f"{self.config.steps}; begin anew with a smaller lr than {self.config.lr}, or "
                    "look for activations that are not finite"
                )

    @torch.no_grad()
    def _follow(self, figures: Figures) -> None:
        """Update threshold, idle counts, coefficient and step after an optimiser step."""
        if figures.cut is not None:
            rate = max(0.01, 1 / (self.done + 1))
            cut = figures.cut.cpu()
            self.cut = float(cut)
            self.threshold = self.threshold + rate * (cut - self.threshold)
        self.idle = torch.where(figures.active, 0, self.idle + 1)
        self.target.follow(float(figures.l0))
        self.done += 1


def schedule(progress: float) -> float:
    """Return the learning rate's factor at a share of the run: warmed up, kept, decayed."""
    if progress < 0.05:
        return progress / 0.05 + 1e-3
    if progress > 0.8:
        return 0.5 * (1 + math.cos(math.pi * (progress - 0.8) / 0.2))
    return 1.0
