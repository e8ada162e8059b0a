"""How well a transcoder predicts what is written from what is read."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.check import POOR, Check
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.modality import Mixed, Modality, part_of

if TYPE_CHECKING:
    from vlm_edit.dictionaries.transcoder import Transcoder

_ROWS = 4096


def check_prediction(
    transcoder: Transcoder[Any],
    activations: Tensor,
    stream: Modality | None = None,
    *,
    warn: bool = True,
    trained_here: bool = False,
) -> Check:
    """Check a transcoder as ``Transcoder.check`` does.

    Args:
        transcoder: What predicts.
        activations: [n, 2 d], what is read and what is written, end to end.
        stream: As in ``encode``.
        warn: Whether to tell what looks wrong by Python's warnings too.
        trained_here: Whether it is known to be of this host and place.
    """
    flat = activations.reshape(-1, activations.shape[-1])
    if len(flat) < 2:
        raise BadArgument("a check needs at least two activations")
    streams = stream.flatten() if isinstance(stream, Mixed) else stream
    error = active = torch.zeros((), dtype=torch.float64)
    fired = torch.zeros(transcoder.n_features, dtype=torch.bool, device=flat.device)
    mean = transcoder.split(flat)[1].double().mean(0)
    spread = error
    for begin in range(0, len(flat), _ROWS):
        index = torch.arange(begin, min(begin + _ROWS, len(flat)), device=flat.device)
        x, y = transcoder.split(flat[index])
        part = part_of(streams, index)
        codes = transcoder.encode(x, part)
        fired |= (codes != 0).any(0)
        active = active + (codes != 0).sum()
        error = error + (y.double() - transcoder.predict(x, part)).square().sum()
        spread = spread + (y.double() - mean).square().sum()
    if not float(spread):
        raise BadArgument("all that is written is the same: take activations that differ")
    explained = float(1 - error / spread)
    told: tuple[str, ...] = ()
    if explained < POOR and not trained_here:
        told = (
            f"it predicts {explained:.2f} of the variance of what is written: it was trained on "
            f"another layer or host, or on other places than {transcoder.way()}",
        )
    if warn and told:
        warnings.warn(told[0], stacklevel=3)
    return Check(
        explained, float(active) / len(flat), 1 - float(fired.float().mean()), len(flat), told
    )
