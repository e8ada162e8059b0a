"""Collect a host's activations at a site, to train a dictionary on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, StoredActivations
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host, Model, Site
from vlm_edit.measuring.drawing import Draw
from vlm_edit.measuring.pairs import Pairs, one_sided
from vlm_edit.measuring.reader import Reader
from vlm_edit.measuring.storing import PART_SIZE, store

Kept = Literal["float32", "bfloat16"]

_BLOCK = 1 << 26  # bytes: above what the C library gives back to the system only as a whole


@overload
def collect(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    site: str = "joint",
    *,
    most: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: None = None,
    dtype: Kept = "float32",
    progress: bool = True,
    left_out: list[tuple[int, str]] | None = None,
) -> dict[str, Tensor]: ...
@overload
def collect(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    site: str = "joint",
    *,
    most: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: str | os.PathLike[str],
    dtype: Kept = "float32",
    part_size: int = PART_SIZE,
    overwrite: bool = False,
    progress: bool = True,
    left_out: list[tuple[int, str]] | None = None,
) -> StoredActivations: ...
def collect(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    site: str = "joint",
    *,
    most: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    dtype: Kept = "float32",
    part_size: int = PART_SIZE,
    overwrite: bool = False,
    progress: bool = True,
    left_out: list[tuple[int, str]] | None = None,
) -> dict[str, Tensor] | StoredActivations:
    """Collect activations of pairs at a site, by stream, in memory or on the disk.

    Args:
        host: In eval mode, with its processor; or a pipeline, which encodes texts as prompts.
        pairs: Image-text pairs, or what ``Pairs.of`` takes; or a list of texts alone, or of
            images alone, whose stream alone comes back.
        site: The site's name.
        most: Tokens of a pair that are kept of each stream, on average over a batch, drawn at
            random; None for all. At a joint embedding there is one.
        batch_size: Pairs per forward.
        seed: Of the draw.
        out: A folder to write to, part after part, as ``load_activations`` reads it; memory then
            holds one part, however many pairs there are. If the process dies, the same call goes
            on from the last whole part, to the bit as if it had not died; a call that had finished
            returns at once.
        dtype: ``float32``, or ``bfloat16``, which takes half as much and rounds what a host in
            float32 gives.
        part_size: Bytes of a part; it ends earlier after 8,192 pairs.
        overwrite: Whether other activations in the folder may go, once these are whole.
        progress: Whether to show a bar.
        left_out: Takes the numbers of pairs whose image cannot be read, with the reason; without
            it a warning tells of them.

    Returns:
        [n, d] per stream of the site, on the CPU; with ``out`` they stay on the disk. At a joint
        embedding row i of both is one pair, which is what a group-sparse penalty or matching asks
        for.

    Raises:
        VlmEditError: As in ``measure``; a folder with other activations, or with some that were
            begun on another host, processor, prompt, pairs, images, seed or site: it says which.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measuring import collect
        >>> host = Host.of(*zoo.load_host())
        >>> streams = collect(host, zoo.load_pairs().select(range(8)), progress=False)
        >>> {name: tuple(x.shape) for name, x in streams.items()}
        {'image': (8, 192), 'text': (8, 192)}
        >>> {name: tuple(x.shape) for name, x in collect(host, ["a cat"], progress=False).items()}
        {'text': (1, 192)}
    """
    if most is not None and most < 1:
        raise BadArgument(f"most is {most}; keep at least 1 token of a pair")
    if dtype not in ("float32", "bfloat16"):
        raise BadArgument(f"dtype is {dtype!r}; keep activations as 'float32' or 'bfloat16'")
    host, pairs = Host.of(host), _examples(pairs)
    place = host.site(site)
    draw = Draw(_streams(place, pairs), most, seed)
    reader = Reader(
        host, Dictionary.identity(place.width), place.name, batch_size=batch_size, progress=progress
    )
    if out is not None:
        stored = store(reader, pairs, draw, Path(out), dtype, part_size, overwrite)
        _tell(stored.index.left_out, len(pairs), left_out)
        return stored
    held = {stream: _Held(place.width, getattr(torch, dtype)) for stream in draw.streams}
    for _, rows in draw.batches(reader, pairs):
        for stream, (x, _) in rows.items():
            held[stream].add(x)
    _tell(reader.skipped, len(pairs), left_out)
    return {stream: one.joined() for stream, one in held.items()}


class _Held:
    """Rows that come one after the other, held once, also while they are joined."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.blocks: list[Tensor] = []
        self.shape, self.dtype, self.used = (max(1, _BLOCK // (4 * width)), width), dtype, 0

    def add(self, rows: Tensor) -> None:
        while len(rows):
            if not self.blocks or self.used == len(self.blocks[-1]):
                self.blocks.append(torch.empty(self.shape, dtype=self.dtype))
                self.used = 0
            some = rows[: len(self.blocks[-1]) - self.used]
            self.blocks[-1][self.used : self.used + len(some)] = some
            self.used, rows = self.used + len(some), rows[len(some) :]

    def joined(self) -> Tensor:
        """Return all of them; each block is let go once it is copied."""
        count, width = self.shape
        full = count * max(0, len(self.blocks) - 1)
        out = torch.empty(full + self.used, width, dtype=self.dtype)
        for start in range(0, len(out), count):
            block = self.blocks.pop(0)
            out[start : start + count] = block[: len(out) - start]
        return out


def _streams(place: Site, pairs: Pairs) -> tuple[str, ...]:
    """Return the streams to collect, of which there is one at least."""
    if place.streams == ("audio",):
        raise BadArgument(
            f"only sounds pass at site {place.name!r}, and pairs are images and texts"
        )
    wanted = tuple(stream for stream in place.streams if pairs.only in (None, stream))
    if not wanted:
        raise BadArgument(
            f"no {pairs.only} passes at site {place.name!r}, only {place.streams[0]}s: take "
            f"another site, or {place.streams[0]}s"
        )
    return wanted


def _tell(
    skipped: Iterable[tuple[int, str]], pairs: int, left_out: list[tuple[int, str]] | None
) -> None:
    skipped = list(skipped)
    if left_out is not None:
        left_out += skipped
    elif skipped:
        warnings.warn(
            f"{len(skipped)} of {pairs} pairs left out because their image could not "
            f"be read, the first: {skipped[0][1]}",
            stacklevel=3,
        )


def _examples(source: Any) -> Pairs:
    """Return pairs, of texts alone or images alone where it is a list of those."""
    items = source if isinstance(source, list | tuple) else []
    if items and all(isinstance(one, str | Path | Image.Image) for one in items):
        return one_sided(items, "the list")
    return Pairs.of(source)
