"""Codes and reconstructions of a dictionary of which only a part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.activations import Activation
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.modality import Modality, part_of

_HIDDEN = 1 << 24  # pre-activations held at once: 64 MiB


@torch.no_grad()
def encode_parts(
    parts: Iterable[Encoder],
    n_features: int,
    x: Tensor,
    stream: Modality | None = None,
    contest: Contest | None = None,
) -> SparseCodes:
    """Return the codes of all features, from encoders of some of them, one after the other.

    Args:
        parts: Encoders of neighbouring features, in order.
        n_features: Of all parts together.
        x: [n, d].
        stream: As in ``Encoder``.
        contest: Where all features compete; parts give pre-activations then.

    Returns:
        What the whole encoder gives, up to rounding: products are cut otherwise.

    Raises:
        VlmEditError: Another number of axes; otherwise as ``Encoder``.
    """
    if x.ndim != 2:
        raise BadArgument(f"activations to encode sparsely are [n, d], got {tuple(x.shape)}")
    pieces, begin = [], 0
    for part in parts:
        if contest is not None:
            contest.add(part, begin, x, stream)
        else:
            pieces.append((begin, part.sparse(x, stream)))
        begin += part.weight.shape[1]
    if contest is not None:
        return contest.codes(n_features)
    rows = torch.cat([codes.rows for _, codes in pieces])
    features = torch.cat([codes.features + begin for begin, codes in pieces])
    order = (rows * n_features + features).argsort()
    values = torch.cat([codes.values for _, codes in pieces])
    return SparseCodes(rows[order], features[order], values[order], (len(x), n_features))


class Contest:
    """What may still become a code of each row, among the features seen so far.

    Args:
        activation: Of all features.
        soft_cap: As in ``Encoder``.
    """

    def __init__(self, activation: Activation, soft_cap: float | None) -> None:
        self.activation, self.soft_cap = activation, soft_cap
        self.values: Tensor | None = None
        self.features: Tensor | None = None

    def add(self, part: Encoder, begin: int, x: Tensor, stream: Modality | None) -> None:
        """Look at some more features, the first of which has number ``begin``."""
        m = part.weight.shape[1]
        step, new = max(1, _HIDDEN // m), []
        for first in range(0, max(1, len(x)), step):
            some = slice(first, first + step)
            hidden, _ = part(x[some], part_of(stream, some))
            places = self.activation.narrow(hidden)
            new.append((hidden.gather(1, places), places + begin))
        values, features = (torch.cat(parts) for parts in zip(*new, strict=True))
        if self.values is not None and self.features is not None:
            values = torch.cat([self.values, values], 1)
            features = torch.cat([self.features, features], 1)
            places = self.activation.narrow(values)
            values, features = values.gather(1, places), features.gather(1, places)
        self.values, self.features = values, features

    def codes(self, n_features: int) -> SparseCodes:
        """Return the codes of every row."""
        assert self.values is not None and self.features is not None
        features, order = self.features.sort(1)
        values = self.activation.settle(self.values.gather(1, order))
        if self.soft_cap is not None:
            values = self.soft_cap * torch.tanh(values / self.soft_cap)
        return SparseCodes.of_top(values, features, n_features)


@torch.no_grad()
def decode_parts(
    take: Callable[[Sequence[int]], Tensor], codes: SparseCodes, bias: Tensor, rows: int
) -> Tensor:
    """Return ``codes @ decoder + bias``, [n, d], from decoder rows of active features alone.

    Args:
        take: Gives rows [t, d] of features.
        codes: Of n examples.
        bias: [d].
        rows: At most so many at a time.
    """
    device = codes.values.device
    decoded = bias.to(device).repeat(len(codes), 1)
    order, starts = codes.by_feature
    active = codes.features.unique()
    for some in active.split(rows) if len(active) else ():
        # By feature, the entries of these features lie between two starts.
        entries = order[int(starts[some[0]]) : int(starts[some[-1] + 1])].sort().values
        counts = codes.rows[entries].bincount(minlength=len(codes))
        decoded += F.embedding_bag(
            torch.searchsorted(some, codes.features[entries]),
            take(some.tolist()).to(device),
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=codes.values[entries].float(),
        )
    return decoded
