"""What a feature responds to: its most activating examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument

# Entries wait until there are this many, or as many as are kept: sorting few of them often would
# move all that is kept each time.
_WAITING = 1 << 16
# Entries handled at once: those after profit from what was kept of those before.
_BLOCK = 1 << 19


class TopExamples:
    """Keep the examples that activate each feature most, over examples that come in batches.

    Equal activations go to the lower number, so that the result does not depend on how the
    examples are cut or on the order in which accumulators merge. Memory is some times m * keep,
    however many examples come.

    Args:
        n_features: Size m of the dictionary.
        keep: Examples kept per feature.

    Example:
        >>> import torch
        >>> top = TopExamples(n_features=2, keep=2)
        >>> top.update(torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.2, 5.0]]), [10, 11, 12])
        >>> top.numbers
        tensor([[11, 12],
                [12, -1]])
    """

    def __init__(self, n_features: int, keep: int = 9) -> None:
        if keep < 1:
            raise BadArgument(f"keep is {keep}; at least one example must be kept")
        self._values = torch.zeros(n_features, keep)
        self._numbers = torch.full((n_features, keep), -1, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_waiting = 0

    @property
    def keep(self) -> int:
        """Return the number of examples kept per feature."""
        return self._values.shape[1]

    @property
    def values(self) -> Tensor:
        """Return activations, [m, keep] float32, falling; 0 where fewer activate the feature."""
        self._settle()
        return self._values

    @property
    def numbers(self) -> Tensor:
        """Return numbers of the examples, [m, keep] int64; -1 where there are fewer."""
        self._settle()
        return self._numbers

    def ranks(self, values: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG002
        """Return by what examples are kept, the higher before the lower, [n] float32.

        Args:
            values: [n] float32, their activations; 0 for none.
            numbers: [n] int64, their numbers; -1 for none.
        """
        return values

    def update(self, codes: Tensor | SparseCodes, numbers: Sequence[int]) -> None:
        """Add examples, by their numbers.

        Args:
            codes: [n, m], dense or sparse; compared by absolute value.
            numbers: The examples' numbers, n of them, none below 0.

        Raises:
            VlmEditError: Codes of another shape, or a number below 0.
        """
        shape = (len(numbers), len(self._values))
        if tuple(codes.shape) != shape:
            raise BadArgument(
                f"codes of {len(numbers)} examples must be {list(shape)}, got {tuple(codes.shape)}"
            )
        indices = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        if len(indices) and indices.min() < 0:
            raise BadArgument(f"example number {int(indices.min())}: numbers start at 0")
        sparse = SparseCodes.of(codes.detach() if isinstance(codes, Tensor) else codes).to("cpu")
        values = sparse.values.detach().abs().float()
        self._add(sparse.features, values, indices[sparse.rows])

    def merge(self, other: TopExamples) -> None:
        """Add the examples of another accumulator.

        Raises:
            VlmEditError: Another number of features, or another ``keep``.
        """
        if other._values.shape != self._values.shape:
            (m, keep), (n, other_keep) = self._values.shape, other._values.shape
            raise BadArgument(
                f"accumulators of {m} features that keep {keep} and of {n} that keep {other_keep} "
                "do not merge"
            )
        self._add(*_entries(other.values, other.numbers))

    def of(self, feature: int) -> list[tuple[int, float]]:
        """Return numbers and activations of one feature's examples, strongest first."""
        pairs = zip(self.numbers[feature].tolist(), self.values[feature].tolist(), strict=True)
        return [(number, value) for number, value in pairs if number >= 0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was counted, to go on from: ``values`` and ``numbers``."""
        return {"values": self.values.clone(), "numbers": self.numbers.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            VlmEditError: A state of another number of features, or another ``keep``.
        """
        own = tuple(self._values.shape)
        for name in ("values", "numbers"):
            shape = tuple(state[name].shape) if name in state else "nothing"
            if shape != own:
                raise BadArgument(f"{name} of top examples must be {own}, the state has {shape}")
        self._waiting, self._n_waiting = [], 0
        self._values = state["values"].to("cpu", torch.float32, copy=True)
        self._numbers = state["numbers"].to("cpu", torch.int64, copy=True)

    def _add(self, features: Tensor, values: Tensor, numbers: Tensor) -> None:
        """Let entries wait that may be kept, some at a time: the weakest kept tells which."""
        for part in zip(*(t.split(_BLOCK) for t in (features, values, numbers)), strict=True):
            last = self.ranks(self._values[:, -1].contiguous(), self._numbers[:, -1].contiguous())
            enough = self.ranks(part[1], part[2]) >= last.index_select(0, part[0])
            alive = (enough & (part[1] > 0)).nonzero().flatten()
            self._waiting.append((part[0][alive], part[1][alive], part[2][alive]))
            self._n_waiting += len(alive)
            if self._n_waiting >= max(_WAITING, self._values.numel()):
                self._settle()

    def _settle(self) -> None:
        """Sort what waits into what is kept."""
        if not self._n_waiting:
            return
        entries = [_entries(self._values, self._numbers), *self._waiting]
        features, values, numbers = (torch.cat(parts) for parts in zip(*entries, strict=True))
        self._waiting, self._n_waiting = [], 0
        order = _strongest_first(features, self.ranks(values, numbers), numbers)
        features = features.index_select(0, order)
        counts = features.bincount(minlength=len(self._values))
        # What a feature's first entry, at place p of all, moves to its own first place.
        moves = torch.arange(len(counts)) * self.keep - (counts.cumsum(0) - counts)
        place = torch.arange(len(order)) + moves.repeat_interleave(counts)
        winners = (place < (features + 1) * self.keep).nonzero().flatten()
        place, order = place[winners], order[winners]
        self._values.put_(place, values[order])
        self._numbers.put_(place, numbers[order])


def _entries(values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features, places = (numbers >= 0).nonzero(as_tuple=True)
    return features, values[features, places], numbers[features, places]


def _strongest_first(features: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    """Sort by feature, then falling value, then rising number; return the order."""
    order = _falling(features, values)
    f, v, n = (t.index_select(0, order) for t in (features, values, numbers))
    if bool(((n[1:] < n[:-1]) & (v[1:] == v[:-1]) & (f[1:] == f[:-1])).any()):
        by_number = numbers.argsort(stable=True)
        order = by_number[_falling(features[by_number], values[by_number])]
    return order


def _falling(features: Tensor, values: Tensor) -> Tensor:
    """Sort by feature, then falling value, equals in their order; return the order."""
    # Positive floats order as their bits do. With its place in the low bits each key is its own
    # entry, and to sort keys takes a fifth of the time that argsort takes.
    keys = torch.arange(len(values)) - (values.view(torch.int32).long() << 32)
    order = torch.from_numpy(np.sort(keys.numpy())) & 0xFFFFFFFF
    ranked = features.index_select(0, order)
    short = ranked.to(torch.int16) if bool((ranked < 1 << 15).all()) else ranked
    return order.index_select(0, short.argsort(stable=True))
