"""Activations: what becomes of pre-activations, a class for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.topk import top_k
from vlm_edit.ground.codes import active_places
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.registry import Registry


@dataclass(frozen=True, eq=False)
class Activation:
    """What turns pre-activations into codes.

    Subclasses give ``dense``; the rest follows from it, and is written anew where it can be had
    faster. Files keep the name, ``k`` and ``threshold``; ``Encoder`` and whatever is made of one
    find the class by its name once ``register_activation`` knows it.

    Attributes:
        k: A whole number, if it takes one.
        threshold: [m], if it takes one.

    Example:
        >>> class Square(Activation):
        ...     name = "square"
        ...
        ...     def dense(self, hidden):
        ...         return hidden.relu() ** 2
        >>> Square().sparse(torch.tensor([[3.0, -1.0, 0.5]]))
        (tensor([0, 2]), tensor([9.0000, 0.2500]))
    """

    name: ClassVar[str] = ""
    # What it needs, of ``k`` and ``threshold``.
    takes: ClassVar[tuple[str, ...]] = ()
    # Whether a feature's code depends on the others' pre-activations.
    competes: ClassVar[bool] = False
    # Whether codes are the pre-activations themselves.
    linear: ClassVar[bool] = False
    # Whether an edit passes over rows where no touched pre-activation is above 0, whose codes must
    # then be 0 whatever the others' are. Only where features compete: else it never sees others.
    sifts: ClassVar[bool] = False

    k: int | None = None
    threshold: Tensor | None = None

    def expect(self, m: int) -> None:
        """Refuse a number of features that it cannot be used with."""

    def dense(self, hidden: Tensor) -> Tensor:
        """Return the codes [..., m] of pre-activations [..., m], differentiable."""
        raise NotImplementedError

    def in_place(self, hidden: Tensor) -> None:
        """Write the codes over the pre-activations [n, m]."""
        hidden.copy_(self.dense(hidden))

    def sparse(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return where codes of [n, m] are not zero, as rising flat places, and those codes."""
        codes = self.dense(hidden)
        places = active_places(codes)
        return places, codes.view(-1)[places]

    def some(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Return the codes [n, t] of some features, from the pre-activations [n, m] of all."""
        return self.dense(hidden)[:, columns]

    def group(self, m: int) -> int | None:  # noqa: ARG002
        """Return how many neighbours compete with each other; None where all m may."""
        return None if self.competes else 1

    def share(self, count: int, m: int) -> int | None:  # noqa: ARG002
        """Return the k of whole groups, ``count`` of m features, by themselves."""
        return self.k

    def narrow(self, hidden: Tensor) -> Tensor:
        """Return which of some features' pre-activations [n, w] may matter, [n, at most w].

        Where all features compete, those of a part come after those of others, and only what may
        still matter is kept of each.
        """
        return torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape)

    def settle(self, kept: Tensor) -> Tensor:
        """Return the codes of what ``narrow`` kept of all features, [n, w], in rising order."""
        return self.dense(kept)


ACTIVATIONS: Registry[type[Activation]] = Registry(
    "activation", "vlm_edit.activations", type, Activation
)
_Kind = TypeVar("_Kind", bound=type[Activation])


def register_activation(kind: _Kind) -> _Kind:
    """Make an activation known by its name; a decorator.

    A package that others install declares it as an entry point of the group
    ``vlm_edit.activations`` instead, under the same name.

    Raises:
        VlmEditError: No name, or one that another class has.
    """
    ACTIVATIONS.add(kind.name, kind)
    return kind


def activation_kind(name: str) -> type[Activation]:
    """Return the class of an activation.

    Raises:
        VlmEditError: An unknown name.
    """
    return ACTIVATIONS.find(name)


def activation_of(
    name: str, m: int, k: int | None = None, threshold: Tensor | None = None
) -> Activation:
    """Return the activation of m features.

    Raises:
        VlmEditError: An unknown name, or options that do not go with it or with m.
    """
    kind = activation_kind(name)
    for option, value in (("threshold", threshold), ("k", k)):
        if (value is not None) != (option in kind.takes):
            raise BadArgument(f"{option} goes with {_takers(option)}")
    if k is not None and not 1 <= k <= m:
        raise BadArgument(f"k is {k}; it must lie between 1 and the {m} features")
    activation = kind(k, threshold)
    activation.expect(m)
    return activation


def _takers(option: str) -> str:
    names = [kind.name for kind in ACTIVATIONS if option in kind.takes]
    if len(names) == 1:
        return f"activation={names[0]!r}, and only with it"
    return f"activations {', '.join(names)}, and only with them"


@register_activation
class Relu(Activation):
    """The activation h where h is above 0."""

    name = "relu"

    def dense(self, hidden: Tensor) -> Tensor:
        """Return the codes, as ``Activation.dense`` does."""
        return F.relu(hidden)

    def in_place(self, hidden: Tensor) -> None:
        """Write the codes in place, as ``Activation.in_place`` does."""
        hidden.relu_()

    def sparse(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes that are not zero, as ``Activation.sparse``; zeros are never written."""
        places = active_places(hidden, 0.0)
        return places, hidden.view(-1)[places]


@register_activation
class JumpRelu(Activation):
    """The activation h where h is above the feature's threshold, and above 0."""

    name = "jumprelu"
    takes = ("threshold",)

    def dense(self, hidden: Tensor) -> Tensor:
        """Return the codes, as ``Activation.dense`` does."""
        return torch.where(hidden <= self._floor(), 0.0, hidden)

    def in_place(self, hidden: Tensor) -> None:
        """Write the codes in place, as ``Activation.in_place`` does."""
        hidden.masked_fill_(hidden <= self._floor(), 0.0)

    def sparse(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes that are not zero, as ``Activation.sparse``; zeros are never written."""
        places = active_places(hidden, self._floor())
        return places, hidden.view(-1)[places]

    def _floor(self) -> Tensor:
        """Return the values [m] up to which codes are zero."""
        assert self.threshold is not None
        return self.threshold.clamp_min(0)


class _Strongest(Activation):
    """An activation by which k features stay, and the others' codes are 0."""

    takes = ("k",)
    competes = True

    def strongest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes [..., k] of those that stay, in no order, and their numbers."""
        raise NotImplementedError

    def dense(self, hidden: Tensor) -> Tensor:
        """Return the codes, as ``Activation.dense`` does."""
        values, indices = self.strongest(hidden)
        return torch.zeros_like(hidden).scatter(-1, indices, values)

    def in_place(self, hidden: Tensor) -> None:
        """Write the codes in place, as ``Activation.in_place`` does."""
        values, indices = self.strongest(hidden)
        hidden.zero_().scatter_(-1, indices, values)

    def sparse(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes that are not zero, as ``Activation.sparse``; read only those that stay."""
        values, indices = self.strongest(hidden)
        indices, order = indices.sort(-1)
        values = values.gather(-1, order).view(-1)
        first = torch.arange(len(hidden), device=hidden.device) * hidden.shape[1]
        nonzero = active_places(values)
        return (indices + first[:, None]).view(-1)[nonzero], values[nonzero]

    @property
    def count(self) -> int:
        """Return how many features stay."""
        assert self.k is not None
        return self.k


@register_activation
class TopK(_Strongest):
    """The relu of the k largest."""

    name = "topk"
    sifts = True

    def strongest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return those that stay, as ``_Strongest.strongest`` does."""
        values, indices = top_k(hidden, self.count)
        return self.settle(values), indices

    def some(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Return codes, as ``Activation.some``; of features that equal the k-th largest all stay.

        Whether a feature is among the k largest takes the k-th value, not the codes of all.
        """
        own = hidden[:, columns]
        if len(columns) == 1:
            stays = (hidden > own).sum(-1, keepdim=True) < self.count
        else:
            stays = own >= top_k(hidden, self.count)[0].amin(-1, keepdim=True)
        return torch.where(stays, self.settle(own), 0.0)

    def narrow(self, hidden: Tensor) -> Tensor:
        """Return the k largest, as ``Activation.narrow`` does."""
        return top_k(hidden, min(self.count, hidden.shape[1]))[1]

    def settle(self, kept: Tensor) -> Tensor:
        """Return their codes, as ``Activation.settle`` does."""
        return F.relu(kept)


@register_activation
class TopKSigned(TopK):
    """The k largest, with those below zero."""

    name = "topk_signed"
    sifts = False

    def settle(self, kept: Tensor) -> Tensor:
        """Return their codes, as ``Activation.settle`` does."""
        return kept


@register_activation
class TopKAbs(_Strongest):
    """The k of largest absolute value."""

    name = "topk_abs"

    def strongest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return those that stay, as ``_Strongest.strongest`` does."""
        _, indices = top_k(hidden.abs(), self.count)
        return hidden.gather(-1, indices), indices

    def narrow(self, hidden: Tensor) -> Tensor:
        """Return the k of largest absolute value, as ``Activation.narrow`` does."""
        return top_k(hidden.abs(), min(self.count, hidden.shape[1]))[1]

    def settle(self, kept: Tensor) -> Tensor:
        """Return their codes, as ``Activation.settle`` does."""
        return kept


@register_activation
class TopKDistance(_Strongest):
    """The code 2 - sqrt(2 - 2 h) of the k largest h: 2 minus the distance of two unit vectors.

    What equals the largest that goes, goes too: of a vector of zeros all are equal, and none stays.
    """

    name = "topk_distance"

    def expect(self, m: int) -> None:
        """Refuse a k that leaves nothing out, as ``Activation.expect`` does."""
        if self.count >= m:
            raise BadArgument(f"k is {self.count}; {self.name} of {m} features needs a smaller one")

    def strongest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return those that stay, and of what goes the largest, whose code is 0."""
        values, indices = top_k(hidden, self.count + 1)
        return self._above(values, values), indices

    def some(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Return codes, as ``Activation.some`` does."""
        return self._above(hidden[:, columns], top_k(hidden, self.count + 1)[0])

    def narrow(self, hidden: Tensor) -> Tensor:
        """Return the k largest and the next, as ``Activation.narrow`` does."""
        return top_k(hidden, min(self.count + 1, hidden.shape[1]))[1]

    @staticmethod
    def _above(values: Tensor, largest: Tensor) -> Tensor:
        """Return the codes of values above the least of the k + 1 largest."""
        # A gradient at a distance of 0 would be infinite; float32 cannot tell it from this one.
        distances = (2 - 2 * values).clamp_min(1e-14).sqrt()
        return torch.where(values > largest.amin(-1, keepdim=True), 2 - distances, 0.0)


@register_activation
class GroupMax(_Strongest):
    """The relu of the largest of each of k groups of neighbours."""

    name = "groupmax"

    def expect(self, m: int) -> None:
        """Refuse groups of more than one size, as ``Activation.expect`` does."""
        if m % self.count:
            raise BadArgument(f"{m} features cannot be cut into {self.count} groups of one size")

    def strongest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return those that stay, as ``_Strongest.strongest`` does."""
        size = hidden.shape[-1] // self.count
        values, within = hidden.unflatten(-1, (self.count, size)).max(-1)
        first = torch.arange(self.count, device=hidden.device) * size
        return F.relu(values), within + first

    def group(self, m: int) -> int:
        """Return the size of a group, as ``Activation.group`` does."""
        return m // self.count

    def share(self, count: int, m: int) -> int:
        """Return the k of some groups, as ``Activation.share`` does."""
        return self.count * count // m


@register_activation
class Identity(Activation):
    """The activation h itself, as of raw neurons."""

    name = "identity"
    linear = True

    def dense(self, hidden: Tensor) -> Tensor:
        """Return the pre-activations, as ``Activation.dense`` does."""
        return hidden

    def in_place(self, hidden: Tensor) -> None:
        """Leave the pre-activations as they are, as ``Activation.in_place`` does."""
