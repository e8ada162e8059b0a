"""Whether two edits are one and the same, and whether they act on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_edit.patches.active import Run
from vlm_edit.patches.binding import Binding


def same_edit(one: Binding, other: Binding) -> bool:
    """Return whether two bindings do the same: site, tokens, rules and weights are equal.

    Weights are compared last, and only those that the edits keep.
    """
    if one is other:
        return True
    first, second = one.splice, other.splice
    return (
        (one.site, one.reads, one.selection, one.schedule)
        == (other.site, other.reads, other.selection, other.schedule)
        and _same_rules(one, other)
        and _alike(first.gate, second.gate)
        and _alike(first.slice, second.slice)
    )


def of_one_edit(one: Binding, other: Binding) -> bool:
    """Return whether two bindings are one edit, whose features write several places."""
    if not one.across or one.across != other.across:
        return False
    held, there = one.dictionary, other.dictionary
    if held is not there and (isinstance(held, Mapping) or isinstance(there, Mapping)):
        held, there = one.told(), other.told()
    return (
        (held is there or (isinstance(held, Mapping) and held == there))
        and (one.selection, one.schedule) == (other.selection, other.schedule)
        and _same_rules(one, other)
    )


def act_on_the_same(one: Run, other: Run) -> bool:
    """Return whether two runs may edit one token: their rows, masks and choices meet."""
    a, b = one.mask, other.mask
    if a is not None and b is not None and a.shape == b.shape and not _meet(a, b):
        return False
    values = {chosen.choice.name: chosen.value for chosen in other.chosen or ()}
    if any(values.get(c.choice.name, c.value) != c.value for c in one.chosen or ()):
        return False
    return any(_meet(one.acts(stream), other.acts(stream)) for stream in ("image", "text"))


def _same_rules(one: Binding, other: Binding) -> bool:
    return _alike([_said(r) for r in one.splice.rules], [_said(r) for r in other.splice.rules])


def _said(rule: Any) -> tuple[type, Any]:
    return type(rule), rule.to_dict()


def _meet(a: Tensor, b: Tensor) -> bool:
    """Return whether two masks may have a place in common; one value is for all places."""
    a, b = a.cpu(), b.cpu()
    if a.shape == b.shape:
        return bool((a & b).any())
    return bool(a.any()) and bool(b.any())


def _alike(one: Any, other: Any) -> bool:
    """Return whether two values hold the same, tensor by tensor."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and torch.equal(one, other.to(one.device))
    if is_dataclass(one) and not isinstance(one, type):
        names = [field.name for field in fields(one) if field.init]
        return all(_alike(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
