"""Checksums of tensors, worked out where they lie: the same on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from vlm_edit.ground.errors import CannotKnow

_SIZE = 8
_WORDS = 1 << 16  # of a block: half a MiB, which stays in a core's cache
_BLOCKS = {"cpu": 1}  # at a time; the sums are the same however many
_MANY_BLOCKS = 64
_ODD = -7046029254386353131


def checksum(tensor: Tensor) -> str:
    """Return 16 hexadecimal digits of a tensor's dtype, shape and every bit of its values.

    Raises:
        VlmEditError: Its values are not there, or are not laid out in memory (meta, sparse).

    Example:
        >>> import torch
        >>> a, b = torch.zeros(3, 4), torch.zeros(3, 4)
        >>> b[1, 2] = -0.0
        >>> checksum(a) == checksum(a.clone()), checksum(a) == checksum(b)
        (True, False)
    """
    return checksums([("it", tensor)])["it"]


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return ``checksum`` of many tensors by name; each is let go before the next is asked for.

    Raises:
        VlmEditError: As ``checksum``; the message names the tensor.
    """
    heads: dict[str, str] = {}
    sums: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if not readable(tensor):
            raise CannotKnow(f"the values of {name} cannot be read: it is on {tensor.device}")
        heads[name] = f"{tensor.dtype} {list(tensor.shape)}"
        sums[name] = torch.cat([tensor.new_zeros(0, dtype=torch.int64), *_sums(tensor.detach())])
    digits = {}
    for name, values in _at_home(sums).items():
        hasher = hashlib.blake2b(heads[name].encode(), digest_size=_SIZE)
        hasher.update(values.numpy().astype("<i8").tobytes())
        digits[name] = hasher.hexdigest()
    return digits


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor's bits can be looked at."""
    return not (tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided)


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    """Sum each block of words to 64 bits, on the tensor's device.

    Every word is mixed before it is multiplied by its place's own odd number: a plain sum of
    products would not see the signs of two numbers change.
    """
    weights = _weights(tensor.device)
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    step = 8 * _WORDS * _BLOCKS.get(tensor.device.type, _MANY_BLOCKS)
    for start in range(0, len(data), step):
        words = _words(data[start : start + step])
        whole = len(words) // _WORDS * _WORDS
        for some in (words[:whole].view(-1, _WORDS), words[whole:].view(1, -1)):
            if some.numel():
                mixed = some * _ODD
                mixed += mixed >> 32
                mixed *= weights[: some.shape[1]]
                yield mixed.sum(1)


def _words(data: Tensor) -> Tensor:
    """View bytes as int64, with zeros behind them up to a whole number of words."""
    missing = -len(data) % 8
    if missing or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(missing)])
    return data.view(torch.int64)


@cache
def _weights(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(-(2**62), 2**62, (_WORDS,), generator=generator)
    return (2 * some + 1).to(device)


def _at_home(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring all values to the CPU, fetched from each device at once."""
    copies: dict[str, Tensor] = {}
    for device in {tensor.device for tensor in values.values()}:
        there = {name: tensor for name, tensor in values.items() if tensor.device == device}
        together = torch.cat(list(there.values())).cpu()
        parts = together.split([len(tensor) for tensor in there.values()])
        copies |= zip(there, parts, strict=True)
    return copies
