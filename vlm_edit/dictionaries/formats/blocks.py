"""Dictionaries of several layers, a file for each, read as one whose rows lie where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile


class Block(NamedTuple):
    """Some rows of a matrix, zero but for their columns.

    Attributes:
        tensor: [rows, columns], any float dtype; usually a view of a mapped file.
        first: The first column that they are for.
    """

    tensor: Tensor
    first: int


@dataclass(frozen=True, eq=False)
class BlockRows(Rows):
    """A matrix with a row per feature, of blocks one below the other, left where they lie.

    ``tensor`` tells its shape alone.

    Example:
        >>> rows = BlockRows.of([Block(torch.ones(1, 2), 0), Block(torch.ones(1, 2), 2)], 4)
        >>> rows.take()
        tensor([[1., 1., 0., 0.],
                [0., 0., 1., 1.]])
    """

    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, blocks: Sequence[Block], width: int, name: str = "a matrix") -> BlockRows:
        """Return rows so wide of blocks.

        Raises:
            DamagedFile: A block that is wider than the rest of a row.
        """
        for tensor, first in blocks:
            if tensor.ndim != 2 or first < 0 or first + tensor.shape[1] > width:
                raise DamagedFile(
                    f"a part of {name} of shape {tuple(tensor.shape)} does not fit {width} columns"
                )
        shape = (sum(len(tensor) for tensor, _ in blocks), width)
        return cls(torch.empty(shape, device="meta"), name, blocks=tuple(blocks))

    def take(self, features: Sequence[int] | None = None) -> Tensor:
        """Return rows of some features, of all if None, as ``Rows.take``.

        Raises:
            VlmEditError: A number that is not finite.
        """
        wanted = range(len(self.tensor)) if features is None else features
        index = torch.as_tensor(wanted, dtype=torch.long)
        rows, begin = torch.zeros(len(index), self.tensor.shape[1]), 0
        for tensor, first in self.blocks:
            own = ((index >= begin) & (index < begin + len(tensor))).nonzero()[:, 0]
            part = Rows(tensor, self.name).take((index[own] - begin).tolist())
            rows[own, first : first + tensor.shape[1]] = part
            begin += len(tensor)
        rows = F.normalize(rows, dim=1) if self.unit else rows
        rows = rows if self.gain is None else rows * self.gain[index].float()[:, None]
        return rows if self.scale is None else rows * self.scale.float()


class LayerFile(NamedTuple):
    """The features that read one layer, as its file has them.

    Attributes:
        reads: Rows of the encoder, [features, d].
        bias: Of the encoder, [features].
        writes: Rows of the decoder in the last layers that are written, [features, layers, d].
        decoder_bias: Of the layer, [d].
        threshold: [features], or None for ReLU.
    """

    reads: Tensor
    bias: Tensor
    writes: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None = None


def joined(where: object, files: Sequence[LayerFile], info: Mapping[str, str]) -> StoredDictionary:
    """Return the dictionary of all layers' features, which reads and writes them end to end.

    Args:
        where: The folder, for messages.
        files: A file for each layer, in order.
        info: What is known of the dictionary, as ``Encodes.info``.

    Raises:
        DamagedFile: Files that do not fit each other.
    """
    count, size = len(files), files[0].reads.shape[1]
    for number, file in enumerate(files):
        _expect_fit(where, number, file, size)
    width = count * size
    reads = [Block(file.reads, i * size) for i, file in enumerate(files)]
    writes = [
        Block(file.writes.flatten(1), (count - file.writes.shape[1]) * size) for file in files
    ]
    thresholds = [file.threshold for file in files if file.threshold is not None]
    return StoredDictionary(
        weight=BlockRows.of(reads, width, "the encoder"),
        bias=torch.cat([file.bias for file in files]),
        decoder=BlockRows.of(writes, width, "the decoder"),
        decoder_bias=torch.cat([file.decoder_bias for file in files]),
        activation="jumprelu" if thresholds else "relu",
        threshold=torch.cat(thresholds) if thresholds else None,
        info=info,
    )


def _expect_fit(where: object, number: int, file: LayerFile, size: int) -> None:
    """Refuse parts of a layer that do not fit each other, or are not as wide as the others'."""
    features, layers = len(file.reads), file.writes.shape[1]
    for name, tensor, shape in (
        ("encoder", file.reads, (features, size)),
        ("encoder's bias", file.bias, (features,)),
        ("decoder", file.writes, (features, layers, size)),
        ("decoder's bias", file.decoder_bias, (size,)),
        ("threshold", file.threshold, (features,)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise DamagedFile(
                f"{where}: the {name} of layer {number}, counted from 0, has shape "
                f"{tuple(tensor.shape)}, expected {shape}: its file is damaged or of another "
                "dictionary, fetch it anew"
            )
