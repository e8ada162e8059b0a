"""Whether what a group of features does in an image follows what another does in its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument

_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
# Below this share of the mean square, a variance is what rounding leaves of none.
_ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class Coactivation:
    """Correlations over pairs: rows are groups in the image, columns groups in the text.

    Attributes:
        names: Of the g groups.
        matched: [g, g] float64, each image with its own text.
        shuffled: [g, g], mean over shuffles of the texts.
        low: [g, g], below it lie 2.5 % of the shuffles.
        high: [g, g], above it 2.5 %.

    NaN where a group's activity does not vary, as that of an empty group.
    """

    names: tuple[str, ...]
    matched: Tensor
    shuffled: Tensor
    low: Tensor
    high: Tensor


def coactivation(
    image_codes: Tensor | SparseCodes,
    text_codes: Tensor | SparseCodes,
    groups: Mapping[str, Sequence[int]],
    draws: int = 200,
    seed: int = 0,
) -> Coactivation:
    """Correlate groups' summed |codes| over pairs, in the image against in the text (Pearson).

    Args:
        image_codes: [n, m].
        text_codes: [n, m], of the same pairs.
        groups: Features by name; a feature may be in several.
        draws: Shuffles of the texts.
        seed: Of those.

    Raises:
        VlmEditError: Shapes that differ, a feature that is not there, no draw.

    Example:
        >>> import torch
        >>> image = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
        >>> correlations = coactivation(image, 2 * image, {"a": [0], "b": [1]})
        >>> correlations.matched.round(decimals=6)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    image, text = SparseCodes.of(image_codes), SparseCodes.of(text_codes)
    if image.shape != text.shape:
        raise BadArgument(f"codes of pairs must both be [n, m], got {image.shape} and {text.shape}")
    if draws < 1:
        raise BadArgument(f"draws={draws}: chance needs at least one draw")
    a, b = (_standard(_summed(codes, groups)) for codes in (image, text))
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([a.T @ b[torch.randperm(len(b), generator=generator)]
                            for _ in range(draws)])  # fmt: skip
    low, high = shuffled.quantile(_ENDS, 0)
    return Coactivation(tuple(groups), (a.T @ b).clamp(-1, 1), shuffled.mean(0), low, high)


def _summed(codes: SparseCodes, groups: Mapping[str, Sequence[int]]) -> Tensor:
    """Sum |code| over each group's features, [n, g] float64."""
    n, m = codes.shape
    sums = torch.zeros(n, len(groups), dtype=torch.float64)
    rows, features = codes.rows.cpu(), codes.features.cpu()
    values = codes.values.detach().cpu().double().abs()
    for column, (name, members) in enumerate(groups.items()):
        wrong = [k for k in members if not 0 <= k < m]
        if wrong:
            raise BadArgument(
                f"feature {wrong[0]} of group {name!r} is not there: there are 0 to {m - 1}"
            )
        mask = torch.zeros(m, dtype=torch.bool)
        mask[torch.as_tensor(list(members), dtype=torch.int64)] = True
        hits = mask[features]
        sums[:, column] = rows[hits].bincount(values[hits], n)
    return sums


def _standard(columns: Tensor) -> Tensor:
    """Bring columns to mean 0 and length 1; NaN where one does not vary."""
    deviations = columns - columns.mean(0)
    squares = deviations.square().sum(0)
    constant = squares <= _ROUNDING * columns.square().sum(0)
    return torch.where(constant, torch.nan, deviations / squares.sqrt())
