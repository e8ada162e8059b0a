"""Codes kept sparse: of many features, few are active for one example."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlm_edit.errors import VlmEditError


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
            raise VlmEditError(
                "rows, features and values of codes must all be [nnz], got "
                f"{tuple(self.rows.shape)}, {tuple(self.features.shape)}, "
                f"{tuple(self.values.shape)}"
            )

    @classmethod
    def of(cls, codes: Tensor | SparseCodes) -> SparseCodes:
        """Codes made sparse; what is sparse already stays as it is.

        Args:
            codes: [n, m], any float dtype.

        Raises:
            VlmEditError: Another number of axes.
        """
        if isinstance(codes, SparseCodes):
            return codes
        if codes.ndim != 2:
            raise VlmEditError(f"codes must be [n, m], got {tuple(codes.shape)}")
        rows, features = codes.nonzero(as_tuple=True)
        return cls(rows, features, codes[rows, features], (codes.shape[0], codes.shape[1]))

    @classmethod
    def of_top(cls, values: Tensor, indices: Tensor, n_features: int) -> SparseCodes:
        """Codes of a TopK dictionary: the k largest of each row, zeros among them dropped.

        Args:
            values: [n, k].
            indices: [n, k] int64, their features, each once per row.
            n_features: Size m of the dictionary.
        """
        rows, columns = values.nonzero(as_tuple=True)
        return cls(rows, indices[rows, columns], values[rows, columns], (len(values), n_features))

    def __len__(self) -> int:
        """Number n of examples."""
        return self.shape[0]

    @property
    def n_features(self) -> int:
        """Size m of the dictionary."""
        return self.shape[1]

    def dense(self) -> Tensor:
        """The same codes, [n, m]."""
        full = self.values.new_zeros(self.shape)
        full[self.rows, self.features] = self.values
        return full

    @cached_property
    def by_feature(self) -> tuple[Tensor, Tensor]:
        """The order that sorts entries by feature, and where each feature begins, [nnz], [m + 1].

        Within a feature rows rise. Kept, because several accumulators want it.
        """
        order = self.features.argsort(stable=True)
        counts = self.features.bincount(minlength=self.n_features)
        starts = torch.zeros(self.n_features + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=starts[1:])
        return order, starts

    def to(self, device: torch.device | str) -> SparseCodes:
        """The same codes on another device."""
        moved = (t.to(device) for t in (self.rows, self.features, self.values))
        return SparseCodes(*moved, self.shape)
