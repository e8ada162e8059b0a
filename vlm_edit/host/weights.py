"""A host's tensors wherever they lie: in memory, in pieces on many processes, put away."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vlm_edit.ground.checksums import checksums, readable

_SAMPLES = 16


@dataclass(frozen=True)
class Sample:
    """A few entries of one tensor.

    Attributes:
        of: Entries that the whole tensor has.
        values: By their number in it, row after row.
    """

    of: int
    values: Mapping[int, float]

    @property
    def whole(self) -> bool:
        """Whether it is what ``spaced`` asks for, from the first entry to the last."""
        return list(self.values) == spaced(self.of)


def spaced(size: int) -> list[int]:
    """Return the numbers of the entries to look at in a tensor of a size, evenly spaced."""
    count = min(_SAMPLES, size)
    # Whole numbers: a float32 linspace runs past the end of a large parameter.
    return [i * (size - 1) // max(count - 1, 1) for i in range(count)]


def sample(
    module: nn.Module,
    at: Sequence[int] | None = None,
    host: nn.Module | None = None,
    path: str = "",
) -> Sample | str:
    """Read entries of a module's largest parameter; say why where they cannot be read.

    Of a parameter in pieces it reads what lies in this process, and waits for no other.

    Args:
        module: Part of a host.
        at: Numbers of the entries wanted; by default evenly spaced.
        host: The host, to look up what accelerate has put away.
        path: The module's in the host.
    """
    pair = max(module.named_parameters(), key=lambda item: item[1].numel(), default=None)
    if pair is None:
        return "it has no weights of its own"
    full = f"{path}.{pair[0]}" if path else pair[0]
    tensor = _fetched(host, full, pair[1]) if host is not None else pair[1]
    if tensor.is_meta:
        return "its weights are put away (meta)"
    if not tensor.numel():
        return "this process holds none of its weights"
    if not tensor.is_floating_point() or not readable(tensor):
        return f"its weights are quantised ({str(tensor.dtype).removeprefix('torch.')})"
    piece = _piece(tensor.detach())
    if isinstance(piece, str):
        return piece
    numbers = list(at) if at is not None else sorted({*spaced(tensor.numel()), *piece.spaced()})
    if at is None and not piece.cut:
        numbers = spaced(tensor.numel())
    values = piece.read([i for i in numbers if 0 <= i < tensor.numel()])
    return Sample(tensor.numel(), values) if values else "this process holds none of its weights"


@dataclass(frozen=True)
class _Piece:
    """The box of a tensor that this process holds.

    Attributes:
        local: The entries.
        start: Where the box begins.
        shape: Of the whole tensor.
    """

    local: Tensor
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def cut(self) -> bool:
        """Whether there is more of it elsewhere."""
        return tuple(self.local.shape) != self.shape

    def spaced(self) -> list[int]:
        """Return the numbers, in the whole tensor, of evenly spaced entries of the box."""
        number = [0] * len(spaced(self.local.numel()))
        own = torch.unravel_index(
            torch.tensor(spaced(self.local.numel()), dtype=torch.long), self.local.shape
        )
        for place, start, size in zip(own, self.start, self.shape, strict=True):
            number = [n * size + int(p) + start for n, p in zip(number, place, strict=True)]
        return number

    def read(self, numbers: Sequence[int]) -> dict[int, float]:
        """Read those of the entries that are here, rounded to six digits behind the point."""
        entries = torch.tensor(list(numbers), dtype=torch.long)
        places = torch.stack(torch.unravel_index(entries, self.shape))
        start = torch.tensor(self.start).unsqueeze(1)
        end = start + torch.tensor(self.local.shape).unsqueeze(1)
        here = ((places >= start) & (places < end)).all(0)
        own = (places - start)[:, here].to(self.local.device)
        values = self.local[tuple(own)].float().cpu().tolist()
        return {n: round(v, 6) for n, v in zip(entries[here].tolist(), values, strict=True)}


def _piece(tensor: Tensor) -> _Piece | str:
    """Return what lies here of a tensor, or why it cannot be told."""
    if not _is_sharded(tensor):
        shape = tuple(tensor.shape) or (1,)
        return _Piece(tensor.reshape(shape), (0,) * len(shape), shape)
    sharded: Any = tensor
    local: Tensor = sharded.to_local()
    mesh, place = sharded.device_mesh, sharded.device_mesh.get_coordinate()
    start, size = [0] * tensor.ndim, list(tensor.shape)
    for axis, placement in enumerate(sharded.placements):
        if placement.is_replicate():
            continue
        dim = getattr(placement, "dim", None)
        if dim is None or place is None:
            return f"its weights are placed as {placement}, which is not read"
        part = -(-size[dim] // mesh.size(axis))
        first = min(part * place[axis], size[dim])
        start[dim], size[dim] = start[dim] + first, min(part, size[dim] - first)
    if tuple(local.shape) != tuple(size) or any("Strided" in repr(p) for p in sharded.placements):
        return f"its weights are placed as {sharded.placements}, which is not read"
    return _Piece(local, tuple(start), tuple(tensor.shape))


def host_checksums(host: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Return checksums of a host's tensors by name, and why others have none, by name too.

    Each is worked out where the tensor lies. Of tensors in pieces every process looks at its own
    piece and they tell each other: all of them must call this, as they must to run the host.

    Args:
        host: The host; what shares a tensor has its checksum once.
    """
    unread: dict[str, str] = {}
    pieces: dict[str, Any] = {}

    def whole() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _tensors(host, unread):
            data = _fetched(host, name, tensor)
            if not readable(data):
                unread[name] = "put away (meta)" if data.is_meta else "of a layout not read"
            elif _is_sharded(data):
                pieces[name] = data.detach()
            else:
                yield name, data

    sums = checksums(whole())
    local = checksums((name, piece.to_local()) for name, piece in pieces.items())
    return sums | _told_together(pieces, local), unread


def _told_together(pieces: Mapping[str, Any], local: Mapping[str, str]) -> dict[str, str]:
    """Return checksums of tensors in pieces, alike in all processes that hold them."""
    meshes: dict[Any, list[str]] = defaultdict(list)
    for name, piece in pieces.items():
        meshes[piece.device_mesh].append(name)
    sums = {}
    for mesh, names in meshes.items():
        hashes = torch.tensor([list(bytes.fromhex(local[name])) for name in names]).to(
            mesh.device_type, torch.uint8
        )
        for axis in range(mesh.ndim):
            parts = [torch.empty_like(hashes) for _ in range(mesh.size(axis))]
            distributed.all_gather(parts, hashes.contiguous(), group=mesh.get_group(axis))
            hashes = torch.stack(parts, dim=1).flatten(1)
        for name, row in zip(names, hashes.cpu(), strict=True):
            digest = hashlib.blake2b(bytes(row.tolist()), digest_size=8).hexdigest()
            sums[name] = f"{digest} of {mesh.size()} shards, {pieces[name].placements}"
    return sums


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _tensors(host: nn.Module, unread: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, buffers, and what modules that keep more, as quantised ones, would save."""
    names = set()
    for name, tensor in (*host.named_parameters(), *host.named_buffers()):
        names.add(name)
        yield name, tensor
    for path, module in host.named_modules():
        if type(module)._save_to_state_dict is nn.Module._save_to_state_dict:
            continue
        extras: dict[str, Any] = {}
        prefix = f"{path}." if path else ""
        try:
            module._save_to_state_dict(extras, prefix, keep_vars=True)
        except Exception as error:  # somebody else's code; what it cannot tell is not told
            unread[f"{prefix}*"] = f"it cannot be saved ({type(error).__name__})"
        for name, value in extras.items():
            if isinstance(value, Tensor) and name not in names:
                names.add(name)
                yield name, value


def device_of(host: nn.Module) -> torch.device:
    """Return where a host takes its inputs: at its first weight, or where accelerate brings it."""
    device = next(host.parameters()).device
    hook = getattr(host, "_hf_hook", None)
    runs = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", (hook,))]
    brought = next((where for where in runs if where is not None), device)
    return torch.device(brought) if device.type == "meta" else device


def _fetched(host: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Fetch a tensor that accelerate has put away; return any other as it is."""
    if not tensor.is_meta:
        return tensor
    words = name.split(".")
    module: Any = host
    for i, word in enumerate(words):
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            weights = getattr(part, "weights_map", None)
            key = ".".join(words[i:])
            if weights is not None and key in weights:
                weight: Tensor = weights[key]
                return weight
        module = getattr(module, word, None)
    return tensor
