"""A plain state dict: tensors in one file, and a ``Layout`` that says which is what.

Nothing in such a file says what it is, so it is never recognised: it is read where
``format="state_dict"`` and ``layout=`` are given.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.activations import activation_kind
from vlm_edit.dictionaries.formats.format import Format, Hints, Layout
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_scalar,
    expect_vector,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, CannotKnow, DamagedFile, VlmEditError

_MOST_LISTED = 30


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file by the layout that the user gives.

    Raises:
        VlmEditError: No layout, one that lacks what its activation needs, a name that the file
            does not have, a tensor that does not fit, or one that the layout does not name.
    """
    layout = hints.layout
    if layout is None:
        raise CannotKnow(
            f"{source.path}: a plain state dict does not say which tensor is what: say it with "
            "layout=Layout(encoder=..., decoder=..., ...)"
        )
    _expect_whole(source, layout, hints)
    state = _open(source)
    try:
        return _read(_named(state, layout), layout, hints)
    except VlmEditError as error:
        lines = [f"{name} {list(tensor.shape)}" for name, tensor in _tensors(state)]
        more = f" and {len(lines) - _MOST_LISTED} more" if len(lines) > _MOST_LISTED else ""
        raise DamagedFile(
            f"{source.path}: {error}; tensors in the file: "
            f"{', '.join(lines[:_MOST_LISTED]) or 'none'}{more}"
        ) from error


FORMAT = Format(
    "state_dict",
    "one safetensors or torch file, and is read with format='state_dict' and layout=",
    lambda _: False,
    read,
    frozenset({"layout", "k", "threshold"}),
)


def _expect_whole(source: Source, layout: Layout, hints: Hints) -> None:
    """Refuse a layout that lacks a part, or says it twice, before the file is opened."""
    takes = activation_kind(layout.activation).takes
    if "k" in takes and hints.k is None:
        raise BadArgument(f"{source.path}: activation {layout.activation!r} needs k=")
    if "k" not in takes and hints.k is not None:
        raise BadArgument(f"{source.path}: activation {layout.activation!r} has no k")
    count = (layout.threshold is not None) + (hints.threshold is not None)
    if count != ("threshold" in takes):
        raise BadArgument(
            f"{source.path}: activation {layout.activation!r} takes "
            f"{'one' if 'threshold' in takes else 'no'} threshold, in the layout or as "
            f"threshold=; it is given {count} times"
        )


def _open(source: Source) -> Mapping[Any, Any]:
    if source.is_folder:
        names = ", ".join(source.names()[:_MOST_LISTED])
        raise BadArgument(
            f"{source.path} is a folder: name the file in it with file=; it has: {names or 'none'}"
        )
    torch_file = source.path.suffix in (".pt", ".pth", ".bin") or zipfile.is_zipfile(source.path)
    state = source.torch() if torch_file else source.tensors(source.path.name)
    if not isinstance(state, Mapping):
        raise DamagedFile(f"{source.path} holds a {type(state).__name__}, expected a state dict")
    return state


def _named(state: Mapping[Any, Any], layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a layout by the name that it gives them.

    Raises:
        VlmEditError: One that is not there, or others where they lie that nobody would read.
    """
    tensors, folders = {}, set()
    for field, name in layout.names().items():
        places = [place for place in _find(state, name) if place[1] is not None]
        if len(places) != 1:
            what = "no tensor" if not places else f"{len(places)} tensors"
            raise BadArgument(f"the layout's {field} is {name!r}, and the file has {what} so named")
        folder, tensors[name] = places[0]
        folders.add(folder)
    rest = [
        name
        for name, _ in _tensors(state)
        if name not in tensors
        and any(name.startswith(folder) for folder in folders)
        and not any(fnmatchcase(name, pattern) for pattern in layout.unread)
    ]
    if rest:
        raise BadArgument(
            f"the layout does not name {', '.join(rest[:_MOST_LISTED])}: reading on could give "
            "other codes than the ones trained; put what does not change them in Layout.unread"
        )
    return tensors


def _find(state: Mapping[Any, Any], name: str, folder: str = "") -> Iterator[tuple[str, Any]]:
    """Yield tensors of a dotted name, through nested dicts, and what their names begin with."""
    if isinstance(state.get(name), Tensor):
        yield folder, state[name]
    for at, letter in enumerate(name):
        inner = state.get(name[:at]) if letter == "." else None
        if isinstance(inner, Mapping):
            yield from _find(inner, name[at + 1 :], f"{folder}{name[: at + 1]}")


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors by their dotted names, once each: a pickle's dicts may hold each other."""
    ids, stack = {id(state)}, [("", state)]
    while stack:
        folder, inner = stack.pop()
        for name, value in inner.items():
            if isinstance(value, Tensor):
                yield f"{folder}{name}", value
            elif isinstance(value, Mapping) and id(value) not in ids:
                ids.add(id(value))
                stack.append((f"{folder}{name}."[:200], value))


def _read(tensors: dict[str, Tensor], layout: Layout, hints: Hints) -> StoredDictionary:
    weight = expect_matrix("state dict", tensors, layout.encoder)
    weight = weight.T if layout.encoder_order == "dm" else weight
    decoder = weight
    if layout.decoder is not None:
        decoder = expect_matrix("state dict", tensors, layout.decoder)
        decoder = decoder.T if layout.decoder_order == "dm" else decoder
    m, d = weight.shape

    def vector(name: str | None, size: int) -> Tensor:
        return torch.zeros(size) if name is None else expect_vector("state dict", tensors, name)

    bias, decoder_bias = vector(layout.encoder_bias, m), vector(layout.decoder_bias, d)
    activation, gain, threshold = layout.activation, None, None
    if layout.gate_bias is not None:
        # Open where x W + gate_bias > 0, so where x W exp(gate_gain) + bias exceeds this.
        gain = vector(layout.gate_gain, m).exp()
        activation, threshold = "jumprelu", bias - vector(layout.gate_bias, m) * gain
    elif "threshold" in activation_kind(layout.activation).takes:
        threshold = _threshold(tensors, layout, hints, m)
    return StoredDictionary(
        weight=Rows(weight, layout.encoder, gain),
        bias=bias,
        decoder=Rows(decoder, layout.decoder or layout.encoder, unit=layout.unit_decoder_rows),
        decoder_bias=decoder_bias,
        activation=activation,
        threshold=threshold,
        k=hints.k,
        subtract=decoder_bias if layout.subtract_decoder_bias else None,
        norm=layout.norm,
        soft_cap=layout.soft_cap,
    )


def _threshold(tensors: dict[str, Tensor], layout: Layout, hints: Hints, m: int) -> Tensor:
    if layout.threshold is None:
        return torch.full((m,), float(hints.threshold or 0.0))
    if tensors[layout.threshold].numel() == 1:
        return torch.full((m,), expect_scalar("state dict", tensors, layout.threshold))
    return expect_vector("state dict", tensors, layout.threshold)
