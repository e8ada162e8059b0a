"""What a host gives, tensor by tensor, to be compared with what it gave before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_edit.host.declare import brought_by
from vlm_edit.host.host import Host
from vlm_edit.host.resolve import Site


def answers(host: Host, inputs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors that a host's forward gives, none of them its cache.

    Example:
        >>> from torch import nn
        >>> from vlm_edit import Adapter
        >>> host = Host.of(nn.Linear(3, 2), adapter=Adapter.of({"it": ("", "image", 2)}))
        >>> [tuple(tensor.shape) for tensor in answers(host, {"input": torch.ones(1, 3)})]
        [(1, 2)]
    """
    return _tensors(host(**inputs, **host.uncached))


def is_reached(site: Site, inputs: Mapping[str, Any]) -> bool:
    """Return whether a forward with these inputs can pass a site: a sound's needs a sound.

    Example:
        >>> from torch import nn
        >>> from vlm_edit import Adapter
        >>> host = Host.of(nn.Linear(3, 2), adapter=Adapter.of({"it": ("", "audio", 2)}))
        >>> [is_reached(host.site("it"), {name: 1}) for name in ("input_ids", "input_features")]
        [False, True]
    """
    return site.streams != ("audio",) or any(brought_by(name) == "audio" for name in inputs)


def same_answers(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether two lists hold the same tensors, bit for bit.

    Example:
        >>> same_answers([torch.ones(2)], [torch.ones(2)])
        True
        >>> same_answers([torch.ones(2)], [])
        False
    """
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in _tensors(value)]
    return []
