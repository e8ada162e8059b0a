"""What the processes of a run have to know of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vlm_edit.dictionaries.training.data import Activations, mark
from vlm_edit.ground.errors import BadArgument

_STREAMS = ("image", "text")


def world() -> tuple[int, int]:
    """Return this process' rank and the number of processes, (0, 1) when there is one alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def total(value: Tensor) -> Tensor:
    """Sum over processes, without gradient; return the tensor itself when there is one process."""
    if world()[1] == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gathered(value: Tensor) -> Tensor:
    """Join [n, ...] of every process, in turn; of one shape in all, without gradient."""
    count = world()[1]
    if count == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(count)]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def of_first(value: Tensor) -> Tensor:
    """Return the first process' tensor, of one shape in all, in all of them."""
    if world()[1] > 1:
        value = value.contiguous()
        dist.broadcast(value, 0)
    return value


def expect_alike(streams: Mapping[str, Activations], config: str, device: torch.device) -> None:
    """Refuse to train where a process has other activations, or another config, than the first.

    Every process draws the same batches by their numbers, and takes its part of each.

    Args:
        streams: Activations as they were given.
        config: All settings, as text.
        device: Where processes can tell each other.

    Raises:
        VlmEditError: In every process; it names those that differ and in what.
    """
    if world()[1] == 1:
        return
    tensors = {name: streams[name] for name in _STREAMS if name in streams}
    marks = [int.from_bytes(hashlib.sha256(config.encode()).digest()[:7], "big")]
    for name in _STREAMS:
        marks.append((*tensors[name].shape, 0)[0] if name in tensors else 0)
        marks.append(int(mark(tensors[name])[:14], 16) if name in tensors else 0)
    rows = gathered(torch.tensor([marks], device=device)).cpu().tolist()
    kinds = ("config", *(f"{what} of {name}" for name in _STREAMS for what in ("rows", "values")))
    differing = {
        rank: [kind for kind, a, b in zip(kinds, row, rows[0], strict=True) if a != b]
        for rank, row in enumerate(rows)
        if row != rows[0]
    }
    if differing:
        words = "; ".join(f"process {rank}: {', '.join(of)}" for rank, of in differing.items())
        sizes = ", ".join(str(row[1] + row[3]) for row in rows)
        raise BadArgument(
            f"the processes of a training must all have the same, and differ from process 0 in "
            f"{words} (rows in all, by process: {sizes}): give every process all activations, it "
            "takes its part of each batch"
        )


def joined(value: Tensor) -> Tensor:
    """Join [processes * n, ...] of every process, one after the other, with gradients to each.

    Args:
        value: [n, ...], of one shape in all processes.

    Returns:
        The tensor itself when there is one process. Otherwise each process' part gets the sum of
        the gradients that all processes give it.
    """
    if world()[1] == 1:
        return value
    parts: Tensor = _Join.apply(value)  # type: ignore[no-untyped-call]
    return parts


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        return gathered(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        begin = world()[0] * ctx.rows
        return total(gradient.contiguous())[begin : begin + ctx.rows]


def kth_largest(values: Tensor, k: int, guess: float = 0.0) -> Tensor:
    """Return the k-th largest number of all processes' values.

    Args:
        values: Any shape, the same in all processes.
        k: At most as many as all processes have together.
        guess: Where it should lie above; a wrong one costs time, not truth.

    Returns:
        A scalar, exact.

    Example:
        >>> kth_largest(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(2.)
    """
    flat = values.detach().flatten()
    if world()[1] > 1:
        flat = gathered(flat.topk(min(k, len(flat))).values)
    if flat.device.type != "cpu":
        return flat.topk(k).values[-1]
    # Far from all values are near the cut: to find those above a guess takes one cheap pass. Behind
    # a ReLU many are 0, and to part equal numbers is slow.
    candidates = flat.numpy()
    for bound in (guess, 0.0):
        above = candidates[candidates > bound]
        if len(above) >= k:
            candidates = above
            break
    place = len(candidates) - k
    return torch.from_numpy(np.partition(candidates, place)[place : place + 1])[0]
