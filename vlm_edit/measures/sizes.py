"""How large a feature's activations are, token by token: sums, the largest, any high quantile."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, DamagedFile

# Cells of a feature: those down from its largest activation, each of a 32nd of a power of two.
CELLS = 128
# Bits of a float32 that tell no cell: sign and exponent stay, and 5 bits behind the point.
_SHIFT = 23 - 5
_MOST = 2**31 - 1


class ActivationSizes:
    """Count activations of each feature by size, over tokens that come in batches.

    A cell reaches from a float32 to the next with the same five bits behind the point, so that
    what lies in it is off by at most 1/64 of itself (1.6 %) from the cell's middle. Of each feature
    the 128 cells below its largest activation are kept, down to a sixteenth of that; what is
    smaller is counted as one. Counts and the largest do not depend on how tokens are cut or merged;
    sums do to rounding. Memory is 524 bytes per feature, twice that beyond 2^31 activations.

    Args:
        n_features: Size m of the dictionary.

    Example:
        >>> import torch
        >>> sizes = ActivationSizes(1)
        >>> sizes.update(torch.arange(1.0, 101.0)[:, None])
        >>> sizes.quantile(0.99), sizes.quantile(1.0)
        (tensor([99.], dtype=torch.float64), tensor([100.], dtype=torch.float64))
    """

    def __init__(self, n_features: int) -> None:
        self.largest = torch.zeros(n_features)
        self.sums = torch.zeros(n_features, dtype=torch.float64)
        # Column j counts the cell j below that of the largest, the last all that is smaller.
        self._counts = torch.zeros(n_features, CELLS, dtype=torch.int32)
        self._seen = 0

    @property
    def active(self) -> Tensor:
        """Return the tokens in which each feature is active, [m] int64."""
        return self._counts.sum(1, dtype=torch.int64)

    @property
    def mean(self) -> Tensor:
        """Return the mean over tokens in which a feature is active, [m] float64; NaN if none."""
        return self.sums / self.active

    def update(self, codes: Tensor | SparseCodes) -> None:
        """Add tokens.

        Args:
            codes: [n, m], dense or sparse, on any device; signs are dropped.

        Raises:
            BadArgument: Codes of another size.
        """
        if codes.shape[-1] != len(self.sums):
            raise BadArgument(f"codes of {codes.shape[-1]} features, and {len(self.sums)} counted")
        sparse = SparseCodes.of(codes).to("cpu")
        features, values = sparse.features, sparse.values.detach().abs().float()
        self._make_room(len(values))
        self._raise(self.largest.scatter_reduce(0, features, values, "amax"))
        below = (_cell(self.largest)[features] - _cell(values)).clamp(max=CELLS - 1)
        cells = features * CELLS + below
        ones = torch.ones(len(cells), dtype=self._counts.dtype)
        self._counts.view(-1).index_add_(0, cells, ones)
        self.sums += features.bincount(values.double(), len(self.sums))

    def merge(self, other: ActivationSizes) -> None:
        """Add the tokens of another."""
        if len(other.sums) != len(self.sums):
            raise BadArgument(f"{len(other.sums)} features do not merge with {len(self.sums)}")
        self._make_room(other._seen)
        largest = torch.maximum(self.largest, other.largest)
        self._raise(largest)
        self._counts += other._moved(largest)[0].to(self._counts.dtype)
        self.sums += other.sums

    def together(self, other: ActivationSizes) -> ActivationSizes:
        """Return the tokens of both, as a new one."""
        both = ActivationSizes(len(self.sums))
        both.merge(self)
        both.merge(other)
        return both

    def quantile(self, level: float) -> Tensor:
        """Return the size below or at which that share of a feature's activations lies, [m].

        Of tokens in which it is active alone, by nearest rank (``inverted_cdf``), off by at most
        1.6 % of itself; exactly the largest where that is it.

        Args:
            level: Above 0 and at most 1.

        Returns:
            float64; NaN where no token activates the feature, or the quantile is smaller than a
            sixteenth of the largest.
        """
        if not 0 < level <= 1:
            raise BadArgument(f"a quantile lies above 0 and up to 1, got {level}")
        active = self.active
        above = active - (level * active.double() - 1e-9).ceil().long()
        column = (self._counts.cumsum(1, dtype=torch.int64) <= above[:, None]).sum(1)
        cell = (_cell(self.largest) - column).clamp(min=0)
        middle = (_edge(cell).double() + _edge(cell + 1).double()) / 2
        largest = self.largest.double()
        middle = torch.where(above == 0, largest, torch.minimum(middle, largest))
        return torch.where(column < CELLS - 1, middle, torch.nan).where(active > 0, torch.nan)

    def by_size(self, bins: int = 16) -> Tensor:
        """Count activations by size, on a logarithmic axis, the largest first.

        Args:
            bins: A power of 2 up to 128. With 16 a bin is a quarter of a power of two: the first
                ends at the largest activation of the feature, and the last holds all that is
                smaller as well.

        Returns:
            [m, bins] int64; a row sums to ``active``.

        Raises:
            BadArgument: Another number of bins.

        Example:
            >>> import torch
            >>> sizes = ActivationSizes(1)
            >>> sizes.update(torch.tensor([[8.0], [7.9], [1.0], [0.001]]))
            >>> sizes.by_size(4).tolist()
            [[2, 0, 0, 2]]
        """
        if not 1 <= bins <= CELLS or CELLS % bins:
            raise BadArgument(f"{bins} bins: use a power of 2 from 1 to {CELLS}")
        return self._counts.view(len(self.sums), bins, -1).sum(2, dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is, to go on from."""
        return {name: tensor.clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            DamagedFile: A state of another number of features.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self._state().items()}
        there = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if own != there:
            raise DamagedFile(f"sizes of activations must be {own}, the state has {there}")
        self.largest, self.sums, self._counts = (state[name].clone() for name in own)
        self._seen = int(self.active.sum())

    def _state(self) -> dict[str, Tensor]:
        return {"largest": self.largest, "sums": self.sums, "counts": self._counts}

    def _raise(self, largest: Tensor) -> None:
        self._counts, self.largest = self._moved(largest)

    def _moved(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the counts as they stand below other largest activations, and those."""
        by = _cell(largest) - _cell(self.largest)
        rows = (by > 0).nonzero().flatten()
        if not len(rows):
            return self._counts, largest
        moved = self._counts.clone()
        places = (torch.arange(CELLS) + by[rows, None]).clamp(max=CELLS - 1)
        moved[rows] = torch.zeros_like(moved[rows]).scatter_add_(1, places, moved[rows])
        return moved, largest

    def _make_room(self, more: int) -> None:
        """Count in int64 before an int32 may overflow."""
        self._seen += more
        if self._counts.dtype == torch.int32 and self._seen > _MOST:
            self._counts = self._counts.long()


def _cell(values: Tensor) -> Tensor:
    """Return the number of the cell of float32 values, [n] int64, rising with them."""
    # Floats that are not negative order as their bits do.
    return values.view(torch.int32).long() >> _SHIFT


def _edge(cells: Tensor) -> Tensor:
    """Return where cells begin."""
    return (cells << _SHIFT).to(torch.int32).view(torch.float32)
