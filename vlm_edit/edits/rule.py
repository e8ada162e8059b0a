"""What a rule is: features, a strength, and what becomes of their code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument


@dataclass(frozen=True)
class Rule:
    """A rule on the codes of some features.

    Every rule of an edit sees the code as the rules before it left it.

    Attributes:
        features: Their numbers in the dictionary, at least one, each once; a single number is
            one feature.
        strength: How far to go from the code to what the rule makes of it; 0 changes nothing,
            1 is the rule, between and beyond is linear.
    """

    kind: ClassVar[str] = ""
    # Whether it looks at the code at all: where no rule does, nothing is encoded.
    reads: ClassVar[bool] = True
    # Its fields that hold a value for each feature, in their order.
    by_feature: ClassVar[tuple[str, ...]] = ()

    features: Sequence[int]
    strength: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check and normalise the features."""
        name = type(self).__name__
        sequence = getattr(self.features, "tolist", lambda: self.features)()
        try:
            sequence = (sequence,) if hasattr(sequence, "__index__") else tuple(sequence)
            features = tuple(index(f) for f in sequence)
        except TypeError as error:
            raise BadArgument(
                f"{name}: features must be whole numbers, got {self.features!r}"
            ) from error
        if any(isinstance(f, bool) for f in sequence):
            raise BadArgument(
                f"{name}: features is a mask; give the numbers, such as mask.nonzero()[:, 0]"
            )
        if not features:
            raise BadArgument(f"{name} needs at least one feature: features is empty")
        if len(set(features)) < len(features):
            twice = Counter(features).most_common(1)[0][0]
            raise BadArgument(f"{name}: feature {twice} is listed more than once")
        if min(features) < 0:
            raise BadArgument(f"{name}: feature {min(features)} is negative; they count from 0")
        object.__setattr__(self, "features", features)
        for item in fields(self):
            if item.name != "features":
                object.__setattr__(self, item.name, self._checked(item.name))

    def _checked(self, name: str) -> object:
        """Return a field's value, as it is kept."""
        return finite(type(self).__name__, name, getattr(self, name))

    def touches(self, n_features: int) -> Sequence[int]:  # noqa: ARG002
        """Return the features whose code it changes, of a dictionary of so many."""
        return self.features

    def acting(self) -> Rule:
        """Return the rule that does it: this one, or what it is short for."""
        return self

    def target(self, code: Tensor) -> Tensor:
        """Return what the rule makes of the features' code [..., t] at full strength."""
        raise NotImplementedError

    def __call__(self, code: Tensor) -> Tensor:
        """Return the features' code [..., t] after the rule."""
        target = self.target(code)
        return target if self.strength == 1.0 else code + self.strength * (target - code)

    @property
    def step(self) -> Callable[[Tensor], Tensor]:
        """Return the shortest way to what the rule does: at full strength that is its target."""
        plain = self.strength == 1.0 and type(self).__call__ is Rule.__call__
        return self.target if plain else self

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON-able values; ``rule_from_dict`` reads it."""
        return {"kind": self.kind} | {item.name: getattr(self, item.name) for item in fields(self)}


def finite(rule: str, name: str, value: object) -> float:
    """Return a number that float32 can hold; refuse anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(cast("float", value)) <= torch.finfo(torch.float32).max:
        raise BadArgument(f"{rule}: {name} must be a finite number, got {value!r}")
    return cast("float", value)


def numbers(rule: str, name: str, values: object) -> tuple[float, ...]:
    """Return such numbers; refuse anything else."""
    sequence = getattr(values, "tolist", lambda: values)()
    if isinstance(sequence, str) or not isinstance(sequence, Iterable):
        raise BadArgument(f"{rule}: {name} must be a list of numbers, got {values!r}")
    return tuple(finite(rule, name, value) for value in sequence)


def flag(rule: str, name: str, value: object) -> bool:
    """Return a bool; refuse anything else."""
    if not isinstance(value, bool):
        raise BadArgument(f"{rule}: {name} must be True or False, got {value!r}")
    return value
