"""Collect a host's activations at a site, to train a dictionary on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host, Model
from vlm_edit.measuring.pairs import Pairs, one_sided
from vlm_edit.measuring.reader import Reader


def collect(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    site: str = "joint",
    *,
    most: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    left_out: list[tuple[int, str]] | None = None,
) -> dict[str, Tensor]:
    """Collect activations of pairs at a site, by stream.

    Args:
        host: In eval mode, with its processor; or a pipeline, which encodes texts as prompts.
        pairs: Image-text pairs, or what ``Pairs.of`` takes; or a list of texts alone, or of
            images alone, whose stream alone comes back.
        site: The site's name.
        most: Tokens of a pair that are kept of each stream, drawn at random; None for all. At a
            joint embedding there is one.
        batch_size: Pairs per forward.
        seed: Of the draw.
        progress: Whether to show a bar.
        left_out: Takes the numbers of pairs whose image cannot be read, with the reason; without
            it a warning tells of them.

    Returns:
        [n, d] float32 per stream of the site, on the CPU. At a joint embedding row i of both is
        one pair, which is what a group-sparse penalty or matching asks for.

    Raises:
        VlmEditError: As in ``measure``.

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
    host, pairs = Host.of(host), _examples(pairs)
    place = host.site(site)
    wanted = [stream for stream in place.streams if pairs.only in (None, stream)]
    if place.streams == ("audio",):
        raise BadArgument(f"only sounds pass at site {site!r}, and pairs are images and texts")
    if not wanted:
        raise BadArgument(
            f"no {pairs.only} passes at site {site!r}, only {place.streams[0]}s: take another "
            f"site, or {place.streams[0]}s"
        )
    reader = Reader(
        host, Dictionary.identity(place.width), place.name, batch_size=batch_size, progress=progress
    )
    generator = torch.Generator().manual_seed(seed)
    chunks: dict[str, list[Tensor]] = {stream: [] for stream in wanted}
    for batch in reader.tokens(pairs):
        for stream in wanted:
            chunks[stream].append(_draw(batch[stream], most, batch_size, generator))
    if left_out is not None:
        left_out += reader.skipped
    elif reader.skipped:
        warnings.warn(
            f"{len(reader.skipped)} of {len(pairs)} pairs left out because their image could not "
            f"be read, the first: {reader.skipped[0][1]}",
            stacklevel=2,
        )
    return {stream: torch.cat(parts) for stream, parts in chunks.items()}


def _examples(source: Any) -> Pairs:
    """Return pairs, of texts alone or images alone where it is a list of those."""
    items = source if isinstance(source, list | tuple) else []
    if items and all(isinstance(one, str | Path | Image.Image) for one in items):
        return one_sided(items, "the list")
    return Pairs.of(source)


def _draw(rows: Tensor, most: int | None, pairs: int, generator: torch.Generator) -> Tensor:
    if most is None or len(rows) <= most * pairs:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[: most * pairs].sort().values]
