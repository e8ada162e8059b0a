"""Activations to train on: in memory, or mapped from a file and read as batches need them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm_edit.dictionaries.activation_store import MappedRows, load_activations
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.outliers import without_long
from vlm_edit.ground.checksums import checksum
from vlm_edit.ground.errors import BadArgument

Activations = Tensor | MappedRows
Given = Mapping[str, Activations] | str | os.PathLike[str]

# Rows of statistics at a time, and the numbers up to which a normed copy is kept in memory.
_CHUNK = 8192
_KEPT = 1 << 27
_OF_MEDIAN = 4096


@dataclass(frozen=True, eq=False)
class Data:
    """Normed activations by stream.

    Attributes:
        streams: [n, d]; normed and centred already if ``ready``.
        ready: Whether they are.
        centers: [d] by stream; empty without.
        mean: [d], of all rows together, normed and centred.
        scale: Their root mean square norm.
        blank: Knows the norm.
        left_out: How many activations were longer than the config allows, by stream.
    """

    streams: Mapping[str, Activations]
    ready: bool
    centers: Mapping[str, Tensor]
    mean: Tensor
    scale: float
    blank: Encoder
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Given, config: TrainConfig) -> Data:
        """Check activations and take their statistics."""
        streams = opened(given)
        width = _expect(streams, config)
        blank = Encoder(torch.zeros(width, 1), torch.zeros(1), norm=config.norm)
        left_out: dict[str, int] = {}
        if config.longest is not None:
            streams, left_out = without_long(streams, blank, config.longest, config.paired)
        small = sum(data.numel() for data in streams.values()) <= _KEPT
        held = {
            name: data
            for name, data in streams.items()
            if isinstance(data, Tensor) and data.device.type == "cpu"
        }
        if small and len(held) == len(streams):
            result = _whole(held, blank, config.center)
        else:
            result = _streamed(streams, blank, config.center)
        if not math.isfinite(result.scale) or not result.scale > 0:
            raise BadArgument(
                f"the activations' root mean square norm is {result.scale}: they are all alike, or "
                "hold a number that is not finite"
            )
        return replace(result, left_out=left_out)

    def batch(self, rows: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Return [sum of rows, d] float32 of root mean square norm about 1, stream after stream."""
        parts = []
        for name, numbers in rows.items():
            stream = self.streams[name]
            x = stream[numbers.to(stream.device)].to(device)
            if not self.ready:
                x = self._prepared(name, x)
            parts.append(x)
        return torch.cat(parts) / self.scale

    def parts(self, rows: int, device: torch.device) -> Iterator[Tensor]:
        """Yield all activations of all streams, [rows, d] at a time, float32, normed, centred."""
        for name, stream in self.streams.items():
            for part in stream.split(rows):
                x = part.to(device)
                yield x if self.ready else self._prepared(name, x)

    def spread(self, rows: int, device: torch.device) -> Tensor:
        """Return up to so many rows of each stream, spread evenly over it, as ``batch`` does."""
        numbers = {}
        for name, stream in self.streams.items():
            count = min(rows, len(stream))
            numbers[name] = torch.arange(count) * len(stream) // count
        return self.batch(numbers, device)

    def median(self) -> Tensor:
        """Return the geometric median [d] of rows of all streams, by Weiszfeld's steps.

        It is of 4,096 rows of each stream, spread evenly over it.
        """
        x = self.spread(_OF_MEDIAN, torch.device("cpu")).double()
        middle = x.mean(0)
        for _ in range(100):
            weights = 1 / (x - middle).norm(dim=1, keepdim=True).clamp_min(1e-9)
            middle = (weights * x).sum(0) / weights.sum()
        return (middle * self.scale).float()

    def digest(self) -> str:
        """Return a digest of sizes, statistics and some rows: other data have another."""
        hasher = hashlib.sha256()
        for name, stream in self.streams.items():
            hasher.update(f"{name} {tuple(stream.shape)} {stream.dtype} {self.ready}".encode())
            rows = torch.linspace(0, len(stream) - 1, min(len(stream), 512)).long()
            some = stream[rows.to(stream.device)].float().cpu().contiguous()
            hasher.update(some.numpy().tobytes())
        for tensor in (self.mean, *self.centers.values()):
            hasher.update(tensor.cpu().contiguous().numpy().tobytes())
        hasher.update(float(self.scale).hex().encode())
        return hasher.hexdigest()

    def _prepared(self, name: str, x: Tensor) -> Tensor:
        x = self.blank.normalise(x.float())[0]
        return x - self.centers[name].to(x.device) if self.centers else x


def opened(given: Given) -> dict[str, Activations]:
    """Return activations by stream; those of a file or a store stay there."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str | os.PathLike):
        raise BadArgument(
            f"streams is a {type(given).__name__}: give activations by stream, as {{'image': x}}, "
            "or the path of a safetensors file of them, or of a folder that collect wrote"
        )
    if os.path.isdir(given):
        return dict(load_activations(given))
    try:
        with safe_open(given, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadArgument(
            f"cannot read activations from {os.fspath(given)!r}: {error}; it must be a safetensors "
            "file with tensors 'image', 'text' or both, or a folder that collect wrote"
        ) from error
    return {name: _mapped(x) if x.ndim == 2 else x for name, x in tensors.items()}


def mark(rows: Activations) -> str:
    """Return what tells activations from others, 16 hexadecimal digits."""
    return checksum(rows) if isinstance(rows, Tensor) else rows.mark[:16]


def _mapped(x: Tensor) -> MappedRows:
    """Return the rows of a tensor that lies in a file."""
    return MappedRows([lambda: x], [len(x)], x.shape[1], x.dtype, lambda: checksum(x))


def _expect(streams: Mapping[str, Activations], config: TrainConfig) -> int:
    """Refuse activations that do not fit; return their width."""
    for name, data in streams.items():
        if not isinstance(data, Tensor | MappedRows):
            raise BadArgument(
                f"the activations of {name!r} are a {type(data).__name__}: give a tensor, such as "
                "torch.from_numpy(array)"
            )
    flat = all(data.ndim == 2 and data.is_floating_point() for data in streams.values())
    widths = {data.shape[-1] for data in streams.values()} if flat else set()
    if len(widths) != 1 or not set(streams) <= {"image", "text"}:
        raise BadArgument(
            "train on [n, d] activations of one width and floating dtype, by stream 'image' or "
            f"'text'; got { {name: (tuple(x.shape), x.dtype) for name, x in streams.items()} }"
        )
    sizes = [len(data) for data in streams.values()]
    if config.batch_size < len(streams) or not all(sizes):
        raise BadArgument(
            f"every batch takes activations of each stream: batch_size is {config.batch_size}, the "
            f"streams have {sizes}"
        )
    if config.paired and (len(sizes) != 2 or sizes[0] != sizes[1]):
        what = "ncl needs" if config.kind == "ncl" else "group, mask and align need"
        raise BadArgument(
            f"{what} both streams with as many rows, row i of both a pair; got "
            f"{ {name: len(data) for name, data in streams.items()} }"
        )
    if config.kind == "ncl" and sizes[0] < 2:
        raise BadArgument(f"ncl tells pairs apart, and needs at least 2; got {sizes[0]}")
    return int(widths.pop())


def _whole(streams: Mapping[str, Tensor], blank: Encoder, center: bool) -> Data:
    """Norm and centre all once, in memory."""
    normed = {name: blank.normalise(data.float())[0] for name, data in streams.items()}
    centers = {name: data.mean(0) for name, data in normed.items()} if center else {}
    ready = {name: x - centers[name] if center else x for name, x in normed.items()}
    pooled = torch.cat(list(ready.values()))
    scale = float(pooled.square().sum(1).mean().sqrt())
    return Data(ready, True, centers, pooled.mean(0), scale, blank)


def _streamed(streams: Mapping[str, Activations], blank: Encoder, center: bool) -> Data:
    """Leave all where they are; take statistics in chunks."""
    sums = {}
    for name, data in streams.items():
        first = torch.zeros(data.shape[1], dtype=torch.float64)
        second = 0.0
        for part in data.split(_CHUNK):
            x = blank.normalise(part.float())[0].double()
            first += x.sum(0).cpu()
            second += float(x.square().sum())
        sums[name] = (len(data), first, second)
    centers = {name: (first / n).float() for name, (n, first, _) in sums.items()} if center else {}
    count = sum(n for n, _, _ in sums.values())
    mean, squares = torch.zeros(blank.weight.shape[0], dtype=torch.float64), 0.0
    for name, (n, first, second) in sums.items():
        away = centers[name].double() if center else torch.zeros_like(first)
        mean += (first - n * away) / count
        squares += (second - 2 * float(first @ away) + n * float(away @ away)) / count
    scale = math.sqrt(squares) if squares > 0 else squares
    return Data(streams, False, centers, mean.float(), scale, blank)
