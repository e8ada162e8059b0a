"""Rules on the hidden state, along directions that features give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlm_edit.edits.rule import Rule, numbers
from vlm_edit.ground.errors import BadArgument


class Move(Rule):
    """A rule on the hidden state itself, along directions that the features give.

    Its ``prepared`` is worked out once per patch, of the features' decoder rows; ``move`` makes
    the change at every token.
    """

    def prepare(self, rows: Tensor) -> Tensor:
        """Return what ``move`` needs, of the features' decoder rows [t, d]."""
        raise NotImplementedError

    def move(self, hidden: Tensor, code: Tensor | None, prepared: Tensor) -> Tensor:
        """Return the change of hidden states [..., d] at full strength.

        Args:
            hidden: As the rules before left it, float32.
            code: [..., t], of the features; None where no rule of the edit reads codes.
            prepared: As ``prepare`` gave it, on the same device.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Project(Move):
    """Take the span of the features' directions out: ``x' = x - x Q' Q``.

    Q [r, d] is an orthonormal basis of their decoder rows. Nothing along them is left, whether
    the features fire or not, the stream's mean included; the literature finds that better against
    bias than zeroing codes (DIAL, ICLR 2026).

    Example:
        >>> import torch
        >>> project = Project([0])
        >>> x = torch.tensor([3.0, 5.0])
        >>> x + project.move(x, None, project.prepare(torch.tensor([[2.0, 0.0]])))
        tensor([0., 5.])
    """

    kind: ClassVar[str] = "project"
    reads: ClassVar[bool] = False

    def prepare(self, rows: Tensor) -> Tensor:
        """Return Q [r, d]; rows that depend on the others, up to rounding, add nothing."""
        _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
        rank = int((sizes > sizes.max() * 1e-6).sum()) if sizes.numel() else 0
        span: Tensor = basis[:rank].float()
        return span

    def move(self, hidden: Tensor, code: Tensor | None, prepared: Tensor) -> Tensor:  # noqa: ARG002
        """Return minus the part in the span."""
        return -(hidden @ prepared.mT) @ prepared


@dataclass(frozen=True)
class Detect(Move):
    """Where a feature fires, put a vector: the dictionary only decides where.

    ``x' = vector`` at tokens where any of the features' codes is above the threshold; with
    ``mode="add"``, ``x' = x + vector`` there. Latent steering leaves the distribution of
    activations (PER, arXiv 2606.31699); a vector that comes from it does not.

    Attributes:
        vector: [d], in the host's space, such as the mean of activations without the feature.
        threshold: In units of the dictionary's code.
        mode: ``replace`` or ``add``.

    Example:
        >>> import torch
        >>> detect = Detect([0], vector=[1.0, 1.0])
        >>> x, code = torch.tensor([[3.0, 5.0], [2.0, 2.0]]), torch.tensor([[0.7], [0.0]])
        >>> x + detect.move(x, code, detect.prepare(torch.ones(1, 2)))
        tensor([[1., 1.],
                [2., 2.]])
    """

    kind: ClassVar[str] = "detect"

    vector: Sequence[float]
    threshold: float = 0.0
    mode: Literal["replace", "add"] = "replace"

    def _checked(self, name: str) -> object:
        if name == "vector":
            return numbers("Detect", name, self.vector)
        if name != "mode":
            return super()._checked(name)
        if self.mode not in ("replace", "add"):
            raise BadArgument(f"Detect: mode is {self.mode!r}; use 'replace' or 'add'")
        return self.mode

    def prepare(self, rows: Tensor) -> Tensor:
        """Return the vector, if it is as wide as the rows."""
        if len(self.vector) != rows.shape[1]:
            raise BadArgument(
                f"Detect: vector has {len(self.vector)} numbers, the dictionary's activations "
                f"{rows.shape[1]}: it must be of the site's width"
            )
        return torch.tensor(self.vector)

    def move(self, hidden: Tensor, code: Tensor | None, prepared: Tensor) -> Tensor:
        """Return the change to the vector, or by it, where the features fire."""
        assert code is not None
        fires = (code > self.threshold).any(-1, keepdim=True)
        change = prepared.expand_as(hidden) if self.mode == "add" else prepared - hidden
        return torch.where(fires, change, 0.0)


@dataclass(frozen=True)
class Push(Move):
    """What ``Steer(relative=True)`` does to the hidden state."""

    reads: ClassVar[bool] = False

    amount: float

    def prepare(self, rows: Tensor) -> Tensor:
        """Return the direction, [d], of length 1."""
        direction = rows.double().sum(0)
        if not float(direction.norm()) > 1e-9 * float(rows.double().norm()):
            raise BadArgument(
                f"Steer: the directions of features {tuple(self.features)[:5]} cancel each other: "
                "steer by fewer"
            )
        unit: Tensor = (direction / direction.norm()).float()
        return unit

    def move(self, hidden: Tensor, code: Tensor | None, prepared: Tensor) -> Tensor:  # noqa: ARG002
        """Return the change along the direction, by a share of the token's norm."""
        change: Tensor = self.amount * hidden.norm(dim=-1, keepdim=True) * prepared
        return change
