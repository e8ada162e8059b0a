"""Decoder rows that are mixtures of activations, as archetypal dictionaries have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.distributed import of_first
from vlm_edit.ground.errors import BadArgument

# Activations for each point that k-means looks at, its steps, and distances held at once.
_FOR_EACH, _LLOYD, _DISTANCES = 16, 20, 1 << 24


class Archetypes(nn.Module):
    """Rows ``D = W C + L``: W mixes the points C, and L leads each row a little away from them.

    Rows of W are not negative and sum to 1, and rows of L are no longer than ``delta``, so that
    each row of D lies within ``delta`` of the points' convex hull (Fel et al. 2025, "Archetypal
    SAE: Adaptive and Stable Dictionary Learning for Concept Extraction in Large Vision Models").
    """

    points: Tensor

    def __init__(self, points: Tensor, begin: Tensor, delta: float) -> None:
        """Begin with rows that are points.

        Args:
            points: C, [n, d].
            begin: [m], the number of the point that each row is.
            delta: Bound of the rows of L.
        """
        super().__init__()
        self.delta = delta
        self.register_buffer("points", points.clone())
        mixtures = points.new_zeros(len(begin), len(points))
        mixtures[torch.arange(len(begin)), begin] = 1.0
        self.mixtures = nn.Parameter(mixtures)
        self.relaxed = nn.Parameter(points.new_zeros(len(begin), points.shape[1]))

    def forward(self) -> Tensor:
        """Return the rows [m, d]."""
        rows: Tensor = self.mixtures @ self.points + self.relaxed
        return rows

    @torch.no_grad()
    def hold(self) -> None:
        """Bring mixtures and relaxations back to what they may be, after a step.

        What is below 0 of a mixture is cut and the rest divided by its sum, as in the authors'
        library; a mixture of which nothing would be left is brought to its largest part alone.
        """
        weights = self.mixtures.clamp_min(0)
        sums = weights.sum(1, keepdim=True)
        largest = F.one_hot(self.mixtures.argmax(1), weights.shape[1]).to(weights.dtype)
        self.mixtures.copy_(torch.where(sums > 0, weights / sums.clamp_min(1e-12), largest))
        lengths = self.relaxed.norm(dim=1, keepdim=True)
        self.relaxed.mul_((self.delta / lengths.clamp_min(1e-12)).clamp(max=1.0))


def begin_archetypes(
    data: Data, middle: Tensor, config: TrainConfig, generator: torch.Generator
) -> Archetypes:
    """Find points of some activations, and begin each feature at one of them.

    Args:
        data: The activations.
        middle: [d], where the decoder's bias begins, from which the points are seen.
        config: With ``points``, or None for twice as many as features.
        generator: Draws the points that features begin at.

    Raises:
        BadArgument: More points than activations.
    """
    wanted, count = config.points or 2 * config.n_features, sum(map(len, data.streams.values()))
    if config.points is None:
        wanted = min(wanted, count)
    if wanted > count:
        raise BadArgument(f"points is {wanted}, and there are {count} activations: take fewer")
    x = data.spread(-(-_FOR_EACH * wanted // len(data.streams)), middle.device)
    # Another machine's k-means may end a rounding away, and buffers are not shared at the start.
    points = of_first(centroids(x - middle, min(wanted, len(x))))
    m, drawn = config.n_features, torch.randperm(len(points), generator=generator)
    return Archetypes(points, drawn.repeat(-(-m // len(drawn)))[:m], config.delta)


def centroids(x: Tensor, count: int) -> Tensor:
    """Return the centroids of k-means over activations.

    It begins with rows spread evenly over them, by no chance, and takes 20 of Lloyd's steps. A
    centroid that is nearest to none stays where it was.

    Args:
        x: [n, d].
        count: Up to n.

    Returns:
        [count, d].

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0], [11.0]])
        >>> centroids(x, 2)
        tensor([[ 0.5000],
                [10.0000]])
    """
    points = x[torch.arange(count, device=x.device) * len(x) // count].clone()
    for _ in range(_LLOYD):
        half = points.square().sum(1) / 2
        parts = x.split(max(1, _DISTANCES // count))
        nearest = torch.cat([(half - part @ points.T).argmin(1) for part in parts])
        sums = torch.zeros_like(points).index_add_(0, nearest, x)
        found = torch.bincount(nearest, minlength=count)[:, None]
        points = torch.where(found > 0, sums / found.clamp_min(1), points)
    return points
