"""A gate: leave a token alone where the dictionary explains too little of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_edit.dictionaries import expect, move
from vlm_edit.ground.errors import BadArgument


@dataclass(frozen=True, eq=False)
class Gate:
    """A gate that opens where the dictionary's reconstruction is good enough.

    A token's explained share is ``1 - |x - decode(code)|^2 / |x - bias|^2``, x normed and
    centred, bias what the dictionary decodes to where no feature fires. An edit of features says
    little about a token that they do not describe; reconstruction gates are VS2's
    (arXiv 2506.01247).

    Attributes:
        least: Share that must be explained; at most 1.
        decoder: [m, d], of all features.
        bias: [d].
    """

    least: float
    decoder: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        """Check that the share is a number of at most 1."""
        number = isinstance(self.least, int | float) and not isinstance(self.least, bool)
        if not number or not self.least <= 1:  # and not NaN
            raise BadArgument(
                f"gate is {self.least!r}; it is the share of a token that the dictionary must "
                "explain, at most 1"
            )
        expect("decoder", self.decoder, (len(self.decoder), *self.bias.shape))
        expect("decoder bias", self.bias, (self.bias.numel(),))

    def opens(self, x: Tensor, codes: Tensor) -> Tensor:
        """Return where enough is explained.

        Args:
            x: [..., d], normed and centred.
            codes: [..., m].

        Returns:
            [..., 1] bool.
        """
        remainder = (x - self.bias - codes @ self.decoder).square().sum(-1, keepdim=True)
        whole = (x - self.bias).square().sum(-1, keepdim=True)
        return remainder <= (1 - self.least) * whole

    def to(self, device: torch.device | str) -> Gate:
        """Return the same on another device."""
        return replace(self, decoder=move(self.decoder, device), bias=move(self.bias, device))
