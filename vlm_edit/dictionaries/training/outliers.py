"""Leave activations out that are far longer than the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from vlm_edit.dictionaries.activation_store import MappedRows
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.ground.errors import VlmEditWarning

_CHUNK = 8192
_FEW = 0.01  # share that goes without a warning


def without_long(
    streams: Mapping[str, Tensor | MappedRows], blank: Encoder, most: float, paired: bool
) -> tuple[dict[str, Tensor | MappedRows], dict[str, int]]:
    """Leave out activations longer than so many times the median of their stream's.

    Args:
        streams: [n, d] by stream; those on the disk stay there.
        blank: Knows the norm, behind which they are looked at.
        most: How many times the median an activation may be long.
        paired: Whether row i of both streams is one pair, which is left out whole.

    Returns:
        The rest, and how many were left out, by stream.
    """
    kept = {name: _short(rows, blank, most) for name, rows in streams.items()}
    if paired:
        both = torch.stack([*kept.values()]).all(0)
        kept = dict.fromkeys(kept, both)
    left_out = {name: int((~short).sum()) for name, short in kept.items()}
    for name, count in left_out.items():
        if count > _FEW * len(streams[name]):
            warnings.warn(
                f"{count:,} of {len(streams[name]):,} {name} activations are left out: they are "
                f"more than {most:g} times as long as their median, and no few exceptions. Allow "
                "longer ones, or train on all",
                VlmEditWarning,
                stacklevel=6,
            )
    rest = {name: _select(rows, kept[name].nonzero()[:, 0]) for name, rows in streams.items()}
    return {name: rest[name] if left_out[name] else streams[name] for name in streams}, left_out


def _short(rows: Tensor | MappedRows, blank: Encoder, most: float) -> Tensor:
    """Return which activations are no longer than that, [n] bool on the CPU.

    Where one holds NaN there is no median, and all stay: the run refuses them itself.
    """
    parts = [blank.normalise(part.float())[0].norm(dim=1).cpu() for part in rows.split(_CHUNK)]
    lengths = torch.cat(parts)
    return ~(lengths > most * lengths.median())


def _select(rows: Tensor | MappedRows, numbers: Tensor) -> Tensor | MappedRows:
    if isinstance(rows, MappedRows):
        return rows.select(numbers)
    return rows[numbers.to(rows.device)]
