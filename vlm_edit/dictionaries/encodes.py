"""What can be measured: anything that turns activations into codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from vlm_edit.codes import SparseCodes


class Encodes(Protocol):
    """A dictionary in memory, one left on disk, or one per stream: what measuring asks of it."""

    @property
    def width(self) -> int:
        """Size d of the activations."""

    @property
    def n_features(self) -> int:
        """Number m of features."""

    @property
    def info(self) -> Mapping[str, str]:
        """What it was trained on."""

    def encode(self, x: Tensor, stream: str | None = None, image: Tensor | None = None) -> Tensor:
        """Codes [..., m] of activations [..., d]."""

    def encode_sparse(
        self, x: Tensor, stream: str | None = None, image: Tensor | None = None
    ) -> SparseCodes:
        """The same of [n, d], kept sparse."""

    def normalise(self, x: Tensor, stream: str | None = None) -> Tensor:
        """Activations [..., d] after the norm."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""

    def digest(self) -> str:
        """32 hexadecimal digits that another's weights do not have."""

    def summary(self) -> dict[str, Any]:
        """Activation, norm and which streams are centred, JSON-able."""
