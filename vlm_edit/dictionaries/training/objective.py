"""A dictionary's weights while it is trained, and what they are trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_edit.dictionaries.training.archetypes import Archetypes
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.distributed import kth_largest, total, world

# Of jumprelu's thresholds at the start, in units of the scaled activations.
_FIRST_THRESHOLD = 0.05
# Archetypal rows shorter than this begin with an encoder as if they were so long; and codes shorter
# than this are divided by it in a cosine, whose gradient would otherwise be without bound.
_SHORT_ROW, _SHORT_CODE = 0.1, 1e-2


@dataclass(frozen=True, eq=False)
class Figures:
    """What a step found out, over all processes.

    Attributes:
        told: What is told of the kind: ``explained``, the share of the batch's variance; or what
            ``Contrast`` has in its place.
        l0: Features active per activation.
        active: [m] bool, features active for some activation of the batch.
        cut: The smallest code that stays, of the kinds that cut a batch.
    """

    told: Mapping[str, Tensor]
    l0: Tensor
    active: Tensor
    cut: Tensor | None


class Objective(nn.Module):
    """Weights and loss; its forward is one process' share of a batch.

    The losses of all processes have as mean the loss of the whole batch, which is what averaging
    gradients over processes needs.

    Attributes:
        apart: Methods that do not gain from being compiled.
    """

    apart = ("_cut", "_auxiliary")

    def __init__(self, rows: Tensor | Archetypes, bias: Tensor, config: TrainConfig) -> None:
        """Begin with decoder rows [m, d], or what makes them, and a decoder bias [d]."""
        super().__init__()
        self.config = config
        self.decoder: Tensor | Archetypes
        if isinstance(rows, Archetypes):
            self.decoder, columns = rows, _columns(rows)
        else:
            columns = rows
            if config.frozen is None:
                self.decoder = nn.Parameter(rows.clone())
            else:  # a buffer has no gradient, and of a resumed run the seed draws it again
                self.register_buffer("decoder", rows.clone())
        self.weight = nn.Parameter(columns.T.contiguous())
        self.bias = nn.Parameter(torch.zeros(len(columns), device=bias.device))
        self.decoder_bias = nn.Parameter(bias.clone())
        if config.kind == "jumprelu":
            first = torch.full_like(self.bias, _FIRST_THRESHOLD)
            self.log_threshold = nn.Parameter(first.log())
        if config.kind == "gated":
            self.gate_bias = nn.Parameter(torch.zeros_like(self.bias))
            self.log_gain = nn.Parameter(torch.zeros_like(self.bias))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        dead: Tensor | None,
        coefficient: float | Tensor,
        guess: float | Tensor,
    ) -> tuple[Tensor, Figures]:
        """Return the loss of a share of a batch.

        Args:
            x: [n, d].
            mask: [n, m], 0 for features that are dropped, else 1.
            dead: [m] bool, None when none is.
            coefficient: Of the penalty on sparsity.
            guess: Where the cut probably lies above.
        """
        rows = self.rows()
        hidden, gate = self._hidden(x)
        full = hidden
        if mask is not None:
            hidden, gate = hidden * mask, None if gate is None else gate * mask
        codes, cut, penalty = self._codes(hidden, rows, guess)
        if mask is not None and cut is not None:
            # In use nothing is masked: the threshold is that of all features.
            cut = self._cut(full, guess)
        errors = self._errors(x, codes, rows)
        variance = self._variance(x)
        losses = [self._mean(error.square().sum(1)) / variance for error in errors]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        explained = 1 - losses[-1].detach()
        if gate is not None:
            penalty = self._mean(gate.sum(1))
            alone = x - gate @ rows.detach() - self.decoder_bias.detach()
            loss = loss + self._mean(alone.square().sum(1)) / variance
        if dead is not None:
            strength = F.relu(hidden) if gate is None else gate
            left = self._auxiliary(strength, errors[-1].detach(), rows, dead)
            loss = loss + self.config.auxiliary * left
        if penalty is not None:
            loss = loss + coefficient * penalty
        if self.config.group:
            loss = loss + self.config.group * self._group(codes)
        if self.config.align:
            loss = loss - self.config.align * self._alike(codes)
        return loss, self._figures(codes, explained, cut)

    @torch.no_grad()
    def before_step(self) -> None:
        """Take the part of the decoder's gradient along its rows out."""
        rows = self.decoder
        if isinstance(rows, Archetypes) or rows.grad is None:  # or frozen
            return
        rows.grad -= (rows.grad * rows).sum(1, keepdim=True) * rows

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the decoder's rows back to norm 1, or into their hull; frozen ones never left."""
        if isinstance(self.decoder, Archetypes):
            self.decoder.hold()
        elif self.config.frozen is None:
            self.decoder.copy_(F.normalize(self.decoder, dim=1))

    def rows(self) -> Tensor:
        """Return the decoder's rows [m, d]."""
        decoder = self.decoder
        rows: Tensor = decoder() if isinstance(decoder, Archetypes) else decoder
        return rows

    @property
    def thresholds(self) -> Tensor:
        """Return the thresholds [m] of ``jumprelu``."""
        return self.log_threshold.detach().exp()

    def _hidden(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pre-activations, of ``jumprelu`` as they are, and of ``gated`` what its gates say.

        In bfloat16 the products are rounded; what is done with them is float32.
        """
        pre = ((x - self.decoder_bias) @ self.weight).float()
        if self.config.kind == "gated":
            gate = F.relu(pre + self.gate_bias)
            return F.relu(pre * self.log_gain.exp() + self.bias) * (gate > 0), gate
        pre += self.bias
        return (pre if self.config.kind == "jumprelu" else F.relu(pre)), None

    def _codes(
        self, hidden: Tensor, rows: Tensor, guess: float | Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return codes, the cut and the penalty on sparsity."""
        config = self.config
        if config.kind == "relu":
            weighted = hidden * rows.detach().norm(dim=1)
            return hidden, None, self._mean(weighted.sum(1))
        if config.kind == "gated":
            return hidden, None, None
        if config.kind == "jumprelu":
            threshold = self.log_threshold.exp()
            codes = _Jump.apply(hidden, threshold, config.bandwidth)  # type: ignore[no-untyped-call]
            active = _Step.apply(hidden, threshold, config.bandwidth)  # type: ignore[no-untyped-call]
            return codes, None, self._mean(active.sum(1))
        if config.kind in ("topk", "archetypal"):
            values, places = hidden.topk(config.k, dim=1)
            return torch.zeros_like(hidden).scatter(1, places, values), None, None
        cut = self._cut(hidden, guess)
        return torch.where(hidden >= cut.clamp_min(1e-12), hidden, 0.0), cut, None

    def _cut(self, hidden: Tensor, guess: float | Tensor) -> Tensor:
        """Return the smallest code of the batch that stays."""
        return kth_largest(hidden, self.config.k * self._count(hidden), float(guess))

    def _errors(self, x: Tensor, codes: Tensor, rows: Tensor) -> list[Tensor]:
        """Return what each nested dictionary leaves; the last has all features."""
        sizes = self.config.sizes
        if len(sizes) == 1:
            return [x - codes @ rows - self.decoder_bias]
        errors, remainder, start = [], x - self.decoder_bias, 0
        for size in sizes:
            remainder = remainder - codes[:, start:size] @ rows[start:size]
            errors.append(remainder)
            start = size
        return errors

    def _auxiliary(self, hidden: Tensor, error: Tensor, rows: Tensor, dead: Tensor) -> Tensor:
        """Return the share of the remaining error left by the strongest dead features."""
        columns = dead.nonzero().flatten()
        count = min(len(columns), hidden.shape[1] // 2, 2 * self.config.k)
        values, places = hidden[:, columns].topk(count, dim=1)
        codes = torch.zeros_like(hidden).scatter(1, columns[places], values)
        remainder = error - codes @ rows
        whole = total(error.square().sum()) / world()[1]
        return remainder.square().sum() / whole.clamp_min(1e-12)

    def _group(self, codes: Tensor) -> Tensor:
        """Sum norms over the two sides of each pair, the image's codes standing first."""
        return self._mean(torch.stack(codes.chunk(2)).norm(dim=0).sum(1))

    def _alike(self, codes: Tensor) -> Tensor:
        """Return the mean cosine of the codes of the two sides of each pair."""
        image, text = F.normalize(codes, dim=1, eps=_SHORT_CODE).chunk(2)
        return self._mean((image * text).sum(1))

    def _variance(self, x: Tensor) -> Tensor:
        if world()[1] == 1:
            return (x - x.mean(0)).square().sum(1).mean()
        count = self._count(x)
        return total((x - total(x.sum(0)) / count).square().sum()) / count

    def _figures(self, codes: Tensor, explained: Tensor, cut: Tensor | None) -> Figures:
        with torch.no_grad():
            counts = total((codes != 0).sum(0))
            return Figures(
                {"explained": total(explained) / world()[1]},
                counts.sum() / self._count(codes),
                counts > 0,
                cut,
            )

    @staticmethod
    def _count(x: Tensor) -> int:
        return len(x) * world()[1]

    @staticmethod
    def _mean(values: Tensor) -> Tensor:
        # The shares of all processes are equal, so that the mean of their means is the mean.
        return values.mean()


@torch.no_grad()
def _columns(archetypes: Archetypes) -> Tensor:
    """Return encoder columns, as rows, with which a code is how much of its row there is."""
    rows: Tensor = archetypes()
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(_SHORT_ROW).square()


class _Jump(torch.autograd.Function):
    """The jump function: z where z > threshold (Rajamanoharan et al. 2024, equation 11)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(z > threshold, z, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        inside = (z - threshold).abs() < ctx.bandwidth / 2
        slope = -(threshold / ctx.bandwidth) * (gradient * inside).sum(0)
        return gradient * (z > threshold), slope, None


class _Step(torch.autograd.Function):
    """The step function: 1 where z > threshold (equation 12)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        inside = (z - threshold).abs() < ctx.bandwidth / 2
        return None, -(gradient * inside).sum(0) / ctx.bandwidth, None
