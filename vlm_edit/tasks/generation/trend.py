"""Whether more of an edit does more: shares over strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate, middle, share_difference


@dataclass(frozen=True, eq=False)
class Trend:
    """What drawings show, at each strength of an edit.

    Attributes:
        strengths: s of them, rising.
        values: [s, n], of each drawing: hit or miss (bool), or a similarity.
        groups: [n] int, which reference each drawing is from, where one gives several.

    Example:
        >>> import torch
        >>> trend = Trend([0.0, 0.5, 1.0], torch.tensor([[0, 0], [0, 1], [1, 1]]).bool())
        >>> [e.value for e in trend.estimates()]
        [0.0, 0.5, 1.0]
        >>> trend.monotony().value
        1.0
    """

    strengths: Sequence[float]
    values: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and order."""
        rising = list(self.strengths)
        if len(rising) < 2 or sorted(set(rising)) != rising:
            raise BadArgument(f"strengths are {rising}: give two or more, rising")
        if self.values.ndim != 2 or len(self.values) != len(rising) or not self.values.numel():
            raise BadArgument(
                f"values are {tuple(self.values.shape)} for {len(rising)} strengths: give "
                "[strengths, drawings]"
            )

    def estimates(self) -> list[Estimate]:
        """Estimate the mean at each strength, with a 95 % interval: of hits Wilson's."""
        return [mean_estimate(row, self.groups) for row in self.values]

    def changes(self) -> list[Estimate]:
        """Estimate how far the mean at each strength lies above that at the first, paired."""
        first, *others = self.values
        if self.values.dtype == torch.bool:
            return [share_difference(row, first, self.groups) for row in others]
        return [mean_estimate(row.double() - first.double(), self.groups) for row in others]

    def monotony(self, draws: int = 2000, seed: int = 0) -> Estimate:
        """Correlate the mean with the strength by Spearman's rank, bootstrapped over drawings.

        1 where every step does more, -1 where every step does less, 0 where nothing changes.
        """
        values = self.values.double()
        generator = torch.Generator().manual_seed(seed)
        n = values.shape[1]
        correlations = torch.tensor(
            [
                spearman(values[:, torch.randint(n, (n,), generator=generator)].mean(1))
                for _ in range(draws)
            ]
        )
        return Estimate(spearman(values.mean(1)), *middle(correlations), n)


def spearman(values: Tensor) -> float:
    """Return Spearman's rank correlation of values [s] with their order; ties share a mean rank.

    Example:
        >>> import torch
        >>> spearman(torch.tensor([1.0, 5.0, 7.0])), spearman(torch.tensor([2.0, 2.0, 2.0]))
        (1.0, 0.0)
    """
    values = values.double()
    below = (values[:, None] > values[None]).sum(1).double()
    rank = below + ((values[:, None] == values[None]).sum(1).double() - 1) / 2
    order = torch.arange(len(values), dtype=torch.float64)
    rank, order = rank - rank.mean(), order - order.mean()
    scale = rank.norm() * order.norm()
    return round(float(rank @ order / scale), 12) if scale > 0 else 0.0
