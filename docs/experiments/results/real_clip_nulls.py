"""What classes of features are found where there is nothing to be found.

The two Gaussians are to be replaced by vlm_edit.measures.nulls where it has them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from results.common import STREAMS
from vlm_edit import Dictionary

Streams = dict[str, Tensor]


def random_directions(dictionary: Dictionary, seed: int) -> Dictionary:
    """The same with directions that no data chose; centre, norm and k stay."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(dictionary.decoder.shape, generator=generator), dim=1)
    bias = torch.zeros_like(dictionary.encoder.bias)
    encoder = replace(dictionary.encoder, weight=rows.T.contiguous(), bias=bias)
    return replace(dictionary, encoder=encoder, decoder=rows)


def unpaired_gaussian(streams: Streams, seed: int) -> Streams:
    """Draws with each stream's mean and covariance, those of one stream apart from the other's."""
    generator = torch.Generator().manual_seed(seed)
    return {s: _normal(x, generator) for s, x in streams.items()}


def joint_gaussian(streams: Streams, seed: int) -> Streams:
    """Draws with the mean and covariance of image and text together."""
    both = _normal(torch.cat([streams[s] for s in STREAMS], 1),
                   torch.Generator().manual_seed(seed))  # fmt: skip
    width = streams["image"].shape[1]
    return dict(zip(STREAMS, both.split(width, 1), strict=True))


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    n, mean = len(x), x.mean(0)
    return mean + torch.randn(n, n, generator=generator) @ (x - mean) / (n - 1) ** 0.5


def other_images(streams: Streams, seed: int) -> Streams:
    """Half of the images called images, the other half texts: no modality, nor any pairing."""
    n = len(streams["image"])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    halves = order[: n // 2], order[n // 2 : n // 2 * 2]
    return {s: streams["image"][half] for s, half in zip(STREAMS, halves, strict=True)}
