"""Where features fire among pairs, one half to choose names on and one to score them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.reader import Reader

_CELLS = 1 << 23  # codes made dense at once

FEW = 5  # pairs of a half in which a feature must fire, and as many in which it must not


@dataclass(frozen=True, eq=False)
class Evidence:
    """Hold what features do in pairs.

    Attributes:
        pairs: Those that were read, n of them.
        images: [n] int64, which image each shows; images of one number are in one half.
        first: [n] bool, the half that names are chosen on.
        features: t of them, those looked at.
        streams: t of them, the stream in which each fires in more pairs of the first half.
        fires: [n, t] bool, in its stream.
        codes: [n, m] per stream.
        normed: [n, d] float32 per stream.
    """

    pairs: Pairs
    images: Tensor
    first: Tensor
    features: tuple[int, ...]
    streams: tuple[str, ...]
    fires: Tensor
    codes: dict[str, SparseCodes]
    normed: dict[str, Tensor]

    @cached_property
    def enough(self) -> Tensor:
        """Tell of which features there is enough in both halves to choose and to score, [t]."""
        counts = [
            side.sum(0)
            for half in (self.first, ~self.first)
            for side in (self.fires[half], ~self.fires[half])
        ]
        return torch.stack(counts).amin(0) >= FEW

    def strongest(self, place: int, most: int) -> list[int]:
        """Return pairs of the first half that a feature fires most in, an image once."""
        size = sizes(self.codes[self.streams[place]], [self.features[place]])[:, 0]
        order = size.where(self.first & self.fires[:, place], -1).argsort(descending=True)
        shown: dict[int, int] = {}
        for i in order[: int((self.first & self.fires[:, place]).sum())].tolist():
            shown.setdefault(int(self.images[i]), i)
        return list(shown.values())[:most]


def read_evidence(
    host: Host,
    dictionary: AnyDictionary,
    pairs: Pairs,
    site: str,
    features: Sequence[int],
    images: Tensor,
    seed: int,
    batch_size: int,
) -> Evidence:
    """Read pairs and cut them in two, whole images at a time.

    A feature fires where its code is not 0. Where it does so in more than half of the pairs, such
    as a raw neuron, it fires where its code is larger than in the middle one of the first half.

    Args:
        host: In eval mode, with its processor.
        dictionary: Of the site.
        pairs: To be read.
        site: The site's name.
        features: Those looked at.
        images: [n] int64, which image each pair shows.
        seed: Of the cut.
        batch_size: Pairs per forward.

    Raises:
        VlmEditError: As ``Reader``, or fewer than two images.
    """
    reader = Reader(host, dictionary, site, batch_size=batch_size, progress=False)
    streams = host.site(site).streams
    numbers: list[int] = []
    parts: dict[str, list[SparseCodes]] = {stream: [] for stream in streams}
    normed: dict[str, list[Tensor]] = {stream: [] for stream in streams}
    for batch in reader.read(pairs):
        numbers += batch.numbers
        for stream in streams:
            parts[stream].append(batch.codes[stream].to("cpu"))
            normed[stream].append(batch.normed[stream].cpu())
    codes = {stream: SparseCodes.cat(some) for stream, some in parts.items()}
    shown = images[numbers]
    first = _half(shown, seed)
    step = max(1, _CELLS // len(numbers))
    blocks = [
        _fires([sizes(c, features[i : i + step]) for c in codes.values()], first)
        for i in range(0, len(features), step)
    ]
    fires, own = torch.cat([b[0] for b in blocks], 1), torch.cat([b[1] for b in blocks])
    return Evidence(
        *(pairs.select(numbers), shown, first, tuple(features)),
        *(tuple(streams[i] for i in own.tolist()), fires, codes),
        {stream: torch.cat(some) for stream, some in normed.items()},
    )


def _half(images: Tensor, seed: int) -> Tensor:
    """Draw one half of the images, [n] bool."""
    known, place = images.unique(return_inverse=True)
    if len(known) < 2:
        raise BadArgument(
            "names are chosen on one half of the images and scored on the other: one image has no "
            "halves, so pass pairs of several"
        )
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    half = torch.zeros(len(known), dtype=torch.bool)
    half[order[: len(known) // 2]] = True
    chosen: Tensor = half[place]
    return chosen


def _fires(by_stream: list[Tensor], first: Tensor) -> tuple[Tensor, Tensor]:
    """Return where features fire, [n, t], and the number of the stream they do it in, [t]."""
    both = torch.stack(by_stream)
    counts = (both[:, first] > 0).sum(1)
    own = counts.argmax(0)
    size = both.gather(0, own.expand(1, *both.shape[1:]))[0]
    often = counts.amax(0) * 2 > int(first.sum())
    return size > torch.where(often, size[first].median(0).values, 0.0), own


def sizes(codes: SparseCodes, features: Sequence[int]) -> Tensor:
    """Return the sizes of some features' codes, dense, [n, t] float32.

    Example:
        >>> import torch
        >>> sizes(SparseCodes.of(torch.tensor([[0.0, -2.0, 1.0]])), [2, 1])
        tensor([[1., 2.]])
    """
    order, starts = codes.by_feature
    full = torch.zeros(len(features), len(codes))
    for i, feature in enumerate(features):
        part = order[int(starts[feature]) : int(starts[feature + 1])]
        full[i, codes.rows[part]] = codes.values[part].abs().float()
    return full.mT
