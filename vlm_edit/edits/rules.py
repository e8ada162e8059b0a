"""Rules on the code of some features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from vlm_edit.edits.moves import Push
from vlm_edit.edits.rule import Rule, flag, numbers
from vlm_edit.ground.errors import BadArgument


class Measured(Protocol):
    """What knows how large activations are, such as a ``Measurement``."""

    def quantile(self, features: Any, level: float) -> float | list[float]:
        """Return the quantile of each feature's activations, or of one."""


@dataclass(frozen=True)
class Ablate(Rule):
    """Set features to zero: ``code' = 0``.

    Example:
        >>> import torch
        >>> Ablate([0, 2])(torch.tensor([3.0, 5.0]))
        tensor([0., 0.])
    """

    kind: ClassVar[str] = "ablate"

    def target(self, code: Tensor) -> Tensor:
        """Return zeros for these features."""
        return torch.zeros_like(code)


@dataclass(frozen=True)
class Scale(Rule):
    """Multiply features: ``code' = factor * code``.

    Attributes:
        factor: One for all features.

    Example:
        >>> import torch
        >>> Scale([0], factor=2.0)(torch.tensor([3.0]))
        tensor([6.])
    """

    kind: ClassVar[str] = "scale"

    factor: float

    def target(self, code: Tensor) -> Tensor:
        """Return the code times the factor."""
        return code * self.factor


@dataclass(frozen=True)
class Clamp(Rule):
    """Set features to a value at every token, active or not: ``code' = value``.

    What a feature is when it is strongly active differs from feature to feature;
    ``Clamp(features, quantile=0.99, of=measurement)`` gives each the value that 99 % of its
    activations measured do not exceed. The rule keeps the values, and the quantile no more.

    Attributes:
        value: In units of the dictionary's code; one for all features, or one for each.
        quantile: Instead of a value, the quantile of each feature's activations among the tokens
            that activate it, of both streams; for those of one stream pass
            ``value=measurement.quantile(features, 0.99, "image")``.
        of: The ``Measurement`` that knows it.

    Example:
        >>> import torch
        >>> Clamp([0, 1], value=4.0)(torch.tensor([3.0, 0.0]))
        tensor([4., 4.])
        >>> Clamp([0, 1], value=[4.0, 2.0])(torch.tensor([3.0, 0.0]))
        tensor([4., 2.])
    """

    kind: ClassVar[str] = "clamp"
    by_feature: ClassVar[tuple[str, ...]] = ("value",)

    value: float | Sequence[float] | None = None
    quantile: InitVar[float | None] = field(default=None, kw_only=True)
    of: InitVar[Measured | None] = field(default=None, kw_only=True)

    def __post_init__(self, quantile: float | None, of: Measured | None) -> None:
        """Look the quantile up, and check all."""
        if (self.value is None) == (quantile is None) or (quantile is None) != (of is None):
            raise BadArgument(
                "Clamp needs a value, or a quantile and what was measured: "
                "Clamp(features, 4.0) or Clamp(features, quantile=0.99, of=measurement)"
            )
        if quantile is not None and of is not None:
            if not hasattr(of, "quantile") or isinstance(of, Tensor):
                raise BadArgument(f"Clamp: of is a {type(of).__name__}; give a Measurement")
            object.__setattr__(self, "value", of.quantile(self.features, quantile))
        super().__post_init__()

    def _checked(self, name: str) -> object:
        if name != "value" or not isinstance(self.value, Sequence | Tensor | np.ndarray):
            return super()._checked(name)
        if getattr(self.value, "ndim", 1) == 0:
            return super()._checked(name)
        return _by_feature(self, name, self.value)

    def target(self, code: Tensor) -> Tensor:
        """Return the value everywhere."""
        if isinstance(self.value, tuple):
            return code.new_tensor(self.value).expand_as(code)
        return torch.full_like(code, cast("float", self.value))


@dataclass(frozen=True)
class Steer(Rule):
    """Add to features at every token, active or not: ``code' = code + amount``.

    With ``relative`` the hidden state moves along the features' directions by a share of its own
    length, whatever the layer's scale: ``x' = x + amount * |x| * d / |d|``, d the sum of the
    features' decoder rows (as SSL does, arXiv 2505.16146).

    Attributes:
        amount: In units of the dictionary's code, or of the token's norm; negative steers away,
            and may leave a code below zero.
        relative: Whether it is a share of the token's norm.

    Example:
        >>> import torch
        >>> Steer([0, 1], amount=1.5)(torch.tensor([3.0, 0.0]))
        tensor([4.5000, 1.5000])
    """

    kind: ClassVar[str] = "steer"

    amount: float
    relative: bool = field(default=False, kw_only=True)

    def _checked(self, name: str) -> object:
        return flag("Steer", name, self.relative) if name == "relative" else super()._checked(name)

    def acting(self) -> Rule:
        """Return itself, or the push that it is short for."""
        return Push(self.features, self.amount, strength=self.strength) if self.relative else self

    def target(self, code: Tensor) -> Tensor:
        """Return the code plus the amount."""
        return code + self.amount


@dataclass(frozen=True)
class Keep(Rule):
    """Set all features but these to zero: ``code' = 0`` outside, ``code' = code`` inside.

    The reconstruction error stays; it is what the dictionary does not know.

    Example:
        >>> Keep([0, 2]).touches(n_features=4)
        (1, 3)
    """

    kind: ClassVar[str] = "keep"

    def touches(self, n_features: int) -> Sequence[int]:
        """Return all other features."""
        own = set(self.features)
        return tuple(k for k in range(n_features) if k not in own)

    def target(self, code: Tensor) -> Tensor:
        """Return zeros for all other features."""
        return torch.zeros_like(code)


@dataclass(frozen=True)
class Cap(Rule):
    """Let features be no larger than a value: ``code' = min(code, most)``.

    Attributes:
        most: In units of the dictionary's code.

    Example:
        >>> import torch
        >>> Cap([0, 1], most=2.0)(torch.tensor([3.0, 1.0]))
        tensor([2., 1.])
    """

    kind: ClassVar[str] = "cap"

    most: float

    def target(self, code: Tensor) -> Tensor:
        """Return the code, cut off above."""
        return code.clamp(max=self.most)


@dataclass(frozen=True)
class Blend(Rule):
    """Go toward a reference's code: ``code' = (1 - strength) * code + strength * reference``.

    Attributes:
        reference: The wanted code of each feature, in their order, such as
            ``dictionary.encode(x, "image")[features].tolist()`` of another image.

    Example:
        >>> import torch
        >>> Blend([0, 1], [4.0, 0.0], strength=0.5)(torch.tensor([2.0, 1.0]))
        tensor([3.0000, 0.5000])
    """

    kind: ClassVar[str] = "blend"
    by_feature: ClassVar[tuple[str, ...]] = ("reference",)

    reference: Sequence[float]

    def _checked(self, name: str) -> object:
        if name != "reference":
            return super()._checked(name)
        return _by_feature(self, name, self.reference)

    def target(self, code: Tensor) -> Tensor:
        """Return the reference everywhere."""
        return code.new_tensor(self.reference).expand_as(code)


def _by_feature(rule: Rule, name: str, values: object) -> tuple[float, ...]:
    """Return a number for each of a rule's features; refuse more or fewer."""
    given = numbers(type(rule).__name__, name, values)
    if len(given) != len(rule.features):
        raise BadArgument(
            f"{type(rule).__name__}: {name} has {len(given)} values for {len(rule.features)} "
            "features: give one for each, in their order"
        )
    return given
