"""What a feature responds to: its most activating examples."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_edit.errors import VlmEditError


class TopExamples:
    """The examples that activate each feature most, over examples that come in batches.

    Equal activations go to the lower number, so that the result does not depend on how the
    examples are cut or on the order in which accumulators merge.

    Args:
        n_features: Size m of the dictionary.
        keep: Examples kept per feature.

    Attributes:
        values: [m, keep] float32, falling; 0 where fewer examples activate the feature.
        numbers: [m, keep] int64, numbers of the examples; -1 likewise.

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
            raise VlmEditError(f"keep is {keep}; at least one example must be kept")
        self.values = torch.zeros(n_features, keep)
        self.numbers = torch.full((n_features, keep), -1, dtype=torch.int64)

    def update(self, codes: Tensor, numbers: list[int]) -> None:
        """Add examples.

        Args:
            codes: [n, m]; compared by absolute value.
            numbers: The examples' numbers, n of them.
        """
        if tuple(codes.shape) != (len(numbers), len(self.values)):
            raise VlmEditError(
                f"codes of {len(numbers)} examples must be [{len(numbers)}, {len(self.values)}], "
                f"got {tuple(codes.shape)}"
            )
        values = codes.detach().abs().float().cpu().mT
        self._merge(values, torch.tensor(numbers, dtype=torch.int64).expand(len(values), -1))

    def merge(self, other: TopExamples) -> None:
        """Add the examples of another accumulator.

        Raises:
            VlmEditError: Another number of features, or another ``keep``.
        """
        if other.values.shape != self.values.shape:
            (m, keep), (n, kept) = self.values.shape, other.values.shape
            raise VlmEditError(
                f"accumulators of {m} features that keep {keep} and of {n} that keep {kept} "
                "do not merge"
            )
        self._merge(other.values, other.numbers)

    def of(self, feature: int) -> list[tuple[int, float]]:
        """Numbers and activations of one feature's examples, strongest first."""
        pairs = zip(self.numbers[feature].tolist(), self.values[feature].tolist(), strict=True)
        return [(number, value) for number, value in pairs if number >= 0]

    def _merge(self, values: Tensor, numbers: Tensor) -> None:
        if not values.shape[1]:
            return
        best, keep = values.amax(1), self.values.shape[1]
        touched = ((best > 0) & (best >= self.values[:, -1])).nonzero().flatten()
        values = torch.cat([self.values[touched], values[touched]], dim=1)
        numbers = torch.cat([self.numbers[touched], numbers[touched]], dim=1)
        order = numbers.argsort(dim=1, stable=True)
        values, numbers = values.gather(1, order), numbers.gather(1, order)
        order = values.argsort(dim=1, stable=True, descending=True)[:, :keep]
        values = values.gather(1, order)
        self.values[touched] = values
        self.numbers[touched] = numbers.gather(1, order).masked_fill(values == 0, -1)
