"""What an edit of a transcoder's features needs at each of the places that they write."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from vlm_edit.dictionaries.dictionary import Slice
from vlm_edit.ground.errors import BadArgument


class Written(NamedTuple):
    """What an edit of some features needs at one of the places that they write.

    Attributes:
        part: Which place.
        slice: Its encoder is of the places read alone.
        reads: Which places are read; none where no code is.
    """

    part: int
    slice: Slice
    reads: tuple[int, ...]


def written(whole: Slice, parts: int, coded: bool, mixed: bool) -> list[Written]:
    """Cut a slice into those of the places that its features write.

    Args:
        whole: Of a transcoder's inner dictionary.
        parts: Into how many places its width is cut.
        coded: Whether codes are read.
        mixed: Whether what becomes of a feature may depend on the codes of others, so that all
            of them are needed at each place.

    Returns:
        One of each place that a feature writes to.

    Raises:
        BadArgument: A code is known only behind a place that it would have to change.
    """
    size = whole.decoder.shape[1] // parts
    blocks = [slice(i * size, (i + 1) * size) for i in range(parts)]
    encoder, cuts = whole.encoder, []
    for part, block in enumerate(blocks):
        decoder = whole.decoder[:, block].contiguous()
        here = decoder.any(1)
        if not bool(here.any()):
            continue
        reads: tuple[int, ...] = ()
        if coded:
            every = mixed or encoder.competes
            own = encoder.weight if every else encoder.weight[:, here]
            reads = tuple(j for j, read in enumerate(blocks) if bool(own[read].any()))
            late = [j for j in reads if j > part]
            if late:
                raise BadArgument(
                    f"these features write at place {part + 1} of {parts} and read at place "
                    f"{late[0] + 1}, which a forward reaches later: their codes are not known by "
                    "then. Rules that read no code, such as Steer, act everywhere; and "
                    "transcoder.writing(-1) writes at the last place alone, where all are known"
                )
        if not encoder.normaliser.plain:  # which may bring back a scale of what is read
            reads = tuple(range(parts))
        kept = torch.cat(
            [torch.arange(b.start, b.stop) for b in (blocks[j] for j in reads)]
            or [torch.arange(size)]
        )
        cut = replace(
            encoder,
            weight=encoder.weight[kept].contiguous(),
            subtract=None if encoder.subtract is None else encoder.subtract[kept],
            centers={name: center[kept] for name, center in encoder.centers.items()},
        )
        cuts.append(Written(part, replace(whole, encoder=cut, decoder=decoder), reads))
    return cuts
