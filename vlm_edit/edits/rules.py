"""Rules: what becomes of the code of some features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vlm_edit.errors import VlmEditError


@dataclass(frozen=True)
class Rule:
    """A rule on the codes of some features.

    Attributes:
        features: Their numbers in the dictionary, at least one, each once.
        strength: How far to go from the code to what the rule makes of it; 0 changes nothing,
            1 is the rule, between and beyond is linear.
    """

    kind: ClassVar[str] = ""

    features: Sequence[int]
    strength: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check and normalise the features."""
        name = type(self).__name__
        listed = getattr(self.features, "tolist", lambda: self.features)()
        try:
            listed = tuple(listed)
            features = tuple(index(f) for f in listed)
        except TypeError as error:
            raise VlmEditError(
                f"{name}: features must be whole numbers, got {self.features!r}"
            ) from error
        if any(isinstance(f, bool) for f in listed):
            raise VlmEditError(
                f"{name}: features is a mask; give the numbers, such as mask.nonzero()[:, 0]"
            )
        if not features:
            raise VlmEditError(f"{name} needs at least one feature: features is empty")
        if len(set(features)) < len(features):
            twice = Counter(features).most_common(1)[0][0]
            raise VlmEditError(f"{name}: feature {twice} is listed more than once")
        if min(features) < 0:
            raise VlmEditError(f"{name}: feature {min(features)} is negative; they count from 0")
        object.__setattr__(self, "features", features)
        for item in fields(self):
            if item.name != "features":
                _expect_finite(name, item.name, getattr(self, item.name))

    def target(self, code: Tensor) -> Tensor:
        """What the rule makes of the features' code [..., t] at full strength."""
        raise NotImplementedError

    def __call__(self, code: Tensor) -> Tensor:
        """The features' code [..., t] after the rule."""
        target = self.target(code)
        return target if self.strength == 1.0 else code + self.strength * (target - code)

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON-able values; ``rule_from_dict`` reads it."""
        return {"kind": self.kind} | {item.name: getattr(self, item.name) for item in fields(self)}


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
        """Zeros."""
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
        """The code times the factor."""
        return code * self.factor


@dataclass(frozen=True)
class Clamp(Rule):
    """Set features to a value at every token, active or not: ``code' = value``.

    Attributes:
        value: In units of the dictionary's code.

    Example:
        >>> import torch
        >>> Clamp([0, 1], value=4.0)(torch.tensor([3.0, 0.0]))
        tensor([4., 4.])
    """

    kind: ClassVar[str] = "clamp"

    value: float

    def target(self, code: Tensor) -> Tensor:
        """The value everywhere."""
        return torch.full_like(code, self.value)


@dataclass(frozen=True)
class Steer(Rule):
    """Add to features at every token, active or not: ``code' = code + amount``.

    Attributes:
        amount: In units of the dictionary's code; negative steers away, and may leave a code
            below zero.

    Example:
        >>> import torch
        >>> Steer([0, 1], amount=1.5)(torch.tensor([3.0, 0.0]))
        tensor([4.5000, 1.5000])
    """

    kind: ClassVar[str] = "steer"

    amount: float

    def target(self, code: Tensor) -> Tensor:
        """The code plus the amount."""
        return code + self.amount


_KINDS: dict[str, type[Rule]] = {rule.kind: rule for rule in (Ablate, Scale, Clamp, Steer)}


def rule_from_dict(values: Mapping[str, Any]) -> Rule:
    """A rule from ``Rule.to_dict``.

    Raises:
        VlmEditError: An unknown kind of rule, or fields it does not have.

    Example:
        >>> rule_from_dict({"kind": "scale", "features": [4], "strength": 1.0, "factor": 0.5})
        Scale(features=(4,), strength=1.0, factor=0.5)
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise VlmEditError(f"unknown rule {kind!r}; known rules: {', '.join(_KINDS)}")
    rest = {key: value for key, value in values.items() if key != "kind"}
    known = {item.name for item in fields(_KINDS[kind])}
    if set(rest) != known:
        raise VlmEditError(
            f"rule {kind!r} has the fields {sorted(known)}, the file has {sorted(rest)}"
        )
    return _KINDS[kind](**rest)


def _expect_finite(rule: str, name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(cast("float", value)) <= torch.finfo(torch.float32).max:
        raise VlmEditError(f"{rule}: {name} must be a finite number, got {value!r}")
