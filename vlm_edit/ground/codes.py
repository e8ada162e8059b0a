"""Codes kept sparse: of many features, few are active for one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of n examples: the activations that are not zero.

    Attributes:
        rows: [nnz] int64, the example of each activation, rising.
        features: [nnz] int64, its feature; each at most once per row.
        values: [nnz] floating, none of them zero.
        shape: (n, m).

    Example:
        >>> import torch
        >>> codes = SparseCodes.of(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, -1.0]]))
        >>> codes.rows, codes.features
        (tensor([0, 2, 2]), tensor([1, 0, 1]))
        >>> codes.dense()
        tensor([[ 0.,  2.],
                [ 0.,  0.],
                [ 3., -1.]])
    """

    rows: Tensor
    features: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Check shapes; what they hold is checked where they are made."""
        if not self.rows.shape == self.features.shape == self.values.shape or self.rows.ndim != 1:
            raise BadArgument(
                "rows, features and values of codes must all be [nnz], got "
                f"{tuple(self.rows.shape)}, {tuple(self.features.shape)}, "
                f"{tuple(self.values.shape)}"
            )

    @classmethod
    def of(cls, codes: Tensor | SparseCodes) -> SparseCodes:
        """Make codes sparse; what is sparse already stays as it is.

        Args:
            codes: [n, m], any float dtype.

        Raises:
            VlmEditError: Another number of axes.
        """
        if isinstance(codes, SparseCodes):
            return codes
        if codes.ndim != 2:
            raise BadArgument(f"codes must be [n, m], got {tuple(codes.shape)}")
        n, m = codes.shape
        flat = active_places(codes)
        rows = flat.div(max(m, 1), rounding_mode="floor")
        return cls(rows, flat - rows * m, codes.reshape(-1)[flat], (n, m))

    @classmethod
    def of_top(cls, values: Tensor, indices: Tensor, n_features: int) -> SparseCodes:
        """Take codes of a TopK dictionary: the k largest of each row, zeros among them dropped.

        Args:
            values: [n, k].
            indices: [n, k] int64, their features, each once per row, in any order, which stays.
            n_features: Size m of the dictionary.

        Raises:
            VlmEditError: Shapes that differ.
        """
        if values.ndim != 2 or values.shape != indices.shape:
            raise BadArgument(
                f"values and indices of a top k must both be [n, k], got {tuple(values.shape)} and "
                f"{tuple(indices.shape)}"
            )
        n, k = values.shape
        flat = active_places(values)
        rows = flat.div(max(k, 1), rounding_mode="floor")
        shape = (n, n_features)
        return cls(rows, indices.reshape(-1)[flat], values.reshape(-1)[flat], shape)

    def __len__(self) -> int:
        """Return the number n of examples."""
        return self.shape[0]

    @property
    def n_features(self) -> int:
        """Return the size m of the dictionary."""
        return self.shape[1]

    def dense(self) -> Tensor:
        """Return the same codes dense, [n, m]."""
        full = self.values.new_zeros(self.shape)
        full[self.rows, self.features] = self.values
        return full

    @classmethod
    def cat(cls, parts: Sequence[Tensor | SparseCodes]) -> SparseCodes:
        """Put codes of the same features one below the other.

        Args:
            parts: [n_i, m] each, one at least.

        Example:
            >>> import torch
            >>> len(SparseCodes.cat([torch.eye(2), torch.eye(2)]))
            4
        """
        some = [cls.of(part) for part in parts]
        if len(some) == 1:
            return some[0]
        starts = np.cumsum([0, *map(len, some)]).tolist()
        rows = torch.cat([c.rows + start for c, start in zip(some, starts[:-1], strict=True)])
        features, values = (
            torch.cat([c.features for c in some]),
            torch.cat([c.values for c in some]),
        )
        return cls(rows, features, values, (starts[-1], some[0].n_features))

    def pick(self, numbers: Tensor) -> SparseCodes:
        """Return the codes of some examples.

        Args:
            numbers: [k] int64, rising, on the same device.

        Example:
            >>> import torch
            >>> codes = SparseCodes.of(torch.tensor([[0.0, 2.0], [5.0, 0.0], [3.0, -1.0]]))
            >>> codes.pick(torch.tensor([0, 2])).dense()
            tensor([[ 0.,  2.],
                    [ 3., -1.]])
        """
        place = self.rows.new_full((self.shape[0],), -1)
        place[numbers] = torch.arange(len(numbers), device=place.device)
        rows = place[self.rows]
        kept = rows >= 0
        shape = (len(numbers), self.shape[1])
        return SparseCodes(rows[kept], self.features[kept], self.values[kept], shape)

    @cached_property
    def by_feature(self) -> tuple[Tensor, Tensor]:
        """Return the order that sorts entries by feature, and where each begins, [nnz], [m + 1].

        Within a feature rows rise. Kept, because several accumulators want it.
        """
        order = self.features.argsort(stable=True)
        counts = self.features.bincount(minlength=self.n_features)
        starts = torch.zeros(self.n_features + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=starts[1:])
        return order, starts

    def to(self, device: torch.device | str) -> SparseCodes:
        """Return the same codes on another device."""
        rows, features, values = (t.to(device) for t in (self.rows, self.features, self.values))
        return SparseCodes(rows, features, values, self.shape)


def active_places(hidden: Tensor, floor: Tensor | float | None = None) -> Tensor:
    """Return where codes are not zero, or pre-activations are not at or below a floor.

    Args:
        hidden: [n, m], or [n].
        floor: [m] or a number; None to compare with zero instead, either side of it.

    Returns:
        [nnz] int64, rising: places in ``hidden`` flattened. NaN is never left out.

    Example:
        >>> active_places(torch.tensor([[0.0, -2.0], [3.0, 0.5]]))
        tensor([1, 2, 3])
        >>> active_places(torch.tensor([[0.0, -2.0], [3.0, 0.5]]), floor=1.0)
        tensor([2])
    """
    hidden = hidden.detach()
    if hidden.device.type == "cpu" and hidden.dtype in (torch.float32, torch.float64):
        # numpy compares and finds several times faster than torch does on a CPU.
        array = hidden.numpy()
        if floor is None:
            return torch.from_numpy(np.flatnonzero(array != 0))
        below = array <= (floor.detach().numpy() if isinstance(floor, Tensor) else floor)
        return torch.from_numpy(np.flatnonzero(np.logical_not(below, out=below)))
    mask = hidden != 0 if floor is None else ~(hidden <= floor)
    return mask.flatten().nonzero().flatten()
