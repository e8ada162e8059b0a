"""Modality gap: how far the images' embeddings lie from the texts'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument, DamagedFile


class GapAccumulator:
    """Gather the modality gap over embeddings that come in batches.

    Example:
        >>> import torch
        >>> gap = GapAccumulator()
        >>> gap.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        >>> gap.compute()
        1.4142135623730951
        >>> gap.means()["image"]
        tensor([2., 0.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        # [normalised, raw] x [d] per stream.
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, image: Tensor, text: Tensor) -> None:
        """Add embeddings [n, d] of the images and of the texts of some pairs.

        Raises:
            VlmEditError: Shapes that differ, also from earlier batches.
        """
        if image.shape != text.shape or image.ndim != 2:
            raise BadArgument(
                f"embeddings of pairs must both be [n, d], got {tuple(image.shape)} and "
                f"{tuple(text.shape)}"
            )
        self._expect_width(image.shape[1])
        for name, batch in (("image", image.double()), ("text", text.double())):
            self._add(name, torch.stack([F.normalize(batch, dim=-1).sum(0), batch.sum(0)]).cpu())
        self._count += len(image)

    def merge(self, other: GapAccumulator) -> None:
        """Add the embeddings of another accumulator.

        Raises:
            VlmEditError: Embeddings of another width.
        """
        for total in other._sums.values():
            self._expect_width(total.shape[1])
        for name, total in other._sums.items():
            self._add(name, total)
        self._count += other._count

    def centroids(self) -> Mapping[str, Tensor]:
        """Return the mean of the normalised embeddings per stream, [d] float64."""
        return self._per_pair(0)

    def means(self) -> Mapping[str, Tensor]:
        """Return the mean of raw embeddings per stream, [d] float64: what centring subtracts."""
        return self._per_pair(1)

    def compute(self) -> float:
        """Return the gap of all embeddings so far.

        Raises:
            VlmEditError: No pair yet.
        """
        centroids = self.centroids()
        return float((centroids["image"] - centroids["text"]).norm())

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on later: the number of pairs, and sums [2, d] per stream."""
        sums = {name: total.clone() for name, total in self._sums.items()}
        return {"count": torch.tensor(self._count), **sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken; what was here before is forgotten.

        Raises:
            VlmEditError: Not the state of such an accumulator.
        """
        sums = {name: total.clone() for name, total in state.items() if name != "count"}
        shapes = {tuple(total.shape[:-1]) for total in sums.values()}
        if "count" not in state or set(sums) not in (set(), {"image", "text"}) or shapes - {(2,)}:
            raise DamagedFile(f"not the state of a modality gap: it holds {sorted(state)}")
        self._sums, self._count = sums, int(state["count"])

    def _add(self, name: str, total: Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total

    def _expect_width(self, width: int) -> None:
        widths = {total.shape[1] for total in self._sums.values()} - {width}
        if widths:
            raise BadArgument(f"embeddings of width {width} after others of {widths.pop()}")

    def _per_pair(self, row: int) -> Mapping[str, Tensor]:
        if not self._count:
            raise BadArgument("no embeddings measured: the gap needs at least one pair")
        return {name: total[row] / self._count for name, total in self._sums.items()}


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Measure the distance between the centroids of the normalised embeddings (Liang et al. 2022).

    Args:
        image: [n, d] embeddings of images.
        text: [n, d] embeddings of texts.

    Returns:
        Between 0 and 2.

    Raises:
        VlmEditError: Shapes that differ, or no pair.

    Example:
        >>> import torch
        >>> modality_gap(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        1.4142135623730951
    """
    accumulator = GapAccumulator()
    accumulator.update(image, text)
    return accumulator.compute()
