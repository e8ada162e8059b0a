"""What two patches have not in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_edit.dictionaries import Slice
from vlm_edit.edits import Rule
from vlm_edit.host import same_weights
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.card import (
    dictionary_text,
    features_text,
    host_text,
    more_text,
    rule_text,
)
from vlm_edit.patches.patch import Patch

_NONE = "-"


class Difference(NamedTuple):
    """One thing that differs.

    Attributes:
        where: A site, with a number from 1 where it has several edits; ``host`` or ``info``.
        what: Of it.
        first: In the first patch, in words.
        second: In the second.
    """

    where: str
    what: str
    first: str
    second: str


def differences(first: Patch, second: Patch) -> list[Difference]:
    """List what two patches have not in common; nothing where they do the same to the same host.

    Edits of one site are compared in their order. The versions that wrote the files, and
    dictionaries that only one of them names, are no difference.

    Example:
        >>> from vlm_edit import Ablate, Patch, Scale, zoo
        >>> dictionary = zoo.load_dictionary("joint")
        >>> a, b = (Patch("joint", dictionary, rule) for rule in (Ablate([7, 9]), Scale([7], 2.0)))
        >>> for difference in differences(a, b):
        ...     print(*difference, sep=" | ")
        joint | rule 1 | ablate | scale, factor 2
        joint | features of rule 1 | also 9 | none besides
    """
    entries = [*_host(first.host, second.host)]
    for key in sorted({*first.info, *second.info}):
        values = [patch.info.get(key, _NONE) for patch in (first, second)]
        entries += _unequal("info", key, *values)
    sites = dict.fromkeys(b.site for b in (*first.bindings, *second.bindings))
    for site in sites:
        mine, theirs = ([b for b in p.bindings if b.site == site] for p in (first, second))
        for number, (a, b) in enumerate(zip_longest(mine, theirs), 1):
            where = site if max(len(mine), len(theirs)) == 1 else f"{site} ({number})"
            if a is None or b is None:
                entries.append(Difference(where, "edit", _edit(a), _edit(b)))
            else:
                entries += [d._replace(where=where) for d in _bindings(a, b)]
    return entries


def _unequal(where: str, what: str, first: object, second: object) -> list[Difference]:
    return [] if first == second else [Difference(where, what, str(first), str(second))]


def _edit(binding: Binding | None) -> str:
    if binding is None:
        return _NONE
    return "; ".join(
        f"{rule_text(rule)}: {features_text(rule.features)}" for rule in binding.splice.rules
    )


def _host(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> list[Difference]:
    if first is None or second is None:
        return _unequal("host", "known", host_text(first), host_text(second))
    entries = []
    for key in ("architecture", "model_type"):
        entries += _unequal("host", key, first[key], second[key])
    if first.get("name") and second.get("name"):
        entries += _unequal("host", "name", first["name"], second["name"])
    for name in sorted({*first["sites"]} & {*second["sites"]}):
        a, b = first["sites"][name], second["sites"][name]
        entries += _unequal("host", f"width of {name}", a["width"], b["width"])
        if False in same_weights(a, b).values():
            entries.append(Difference("host", f"weights at {name}", "its own", "others"))
    return entries


def _bindings(a: Binding, b: Binding) -> Iterator[Difference]:
    yield from _unequal("", "tokens", str(a.selection), str(b.selection))
    yield from _unequal("", "more", more_text(a) or _NONE, more_text(b) or _NONE)
    for number, (x, y) in enumerate(zip_longest(a.splice.rules, b.splice.rules), 1):
        yield from _rules(number, x, y)
    if a.told() is not None and b.told() is not None:
        yield from _unequal("", "dictionary", dictionary_text(a), dictionary_text(b))
    yield from _slices(a.splice.slice, b.splice.slice)


def _rules(number: int, a: Rule | None, b: Rule | None) -> Iterator[Difference]:
    if a is not None and b is not None and _in_order(a) == _in_order(b):
        return
    texts = [_NONE if rule is None else rule_text(rule) for rule in (a, b)]
    yield from _unequal("", f"rule {number}", *texts)
    if a is None or b is None:
        return
    mine, theirs = ({*rule.features} for rule in (a, b))
    if mine != theirs:
        also = [
            f"also {features_text(sorted(own))}" if own else "none besides"
            for own in (mine - theirs, theirs - mine)
        ]
        yield Difference("", f"features of rule {number}", *also)
    elif texts[0] == texts[1]:
        yield Difference("", f"values of rule {number}", "its own", "others")


def _in_order(rule: Rule) -> dict[str, Any]:
    """Return a rule's values with its features in rising order, which decides nothing."""
    values = rule.to_dict()
    order = sorted(range(len(rule.features)), key=lambda i: rule.features[i])
    for name in ("features", *rule.by_feature):
        if isinstance(values[name], tuple):  # of those that may have one value for all features
            values[name] = [values[name][i] for i in order]
    return values


def _slices(a: Slice, b: Slice) -> Iterator[Difference]:
    for what in ("activation", "k", "norm", "soft_cap"):
        yield from _unequal("", what, *(getattr(part.encoder, what) for part in (a, b)))
    sizes = [(part.n_features, part.decoder.shape[1]) for part in (a, b)]
    if sizes[0] != sizes[1]:
        yield Difference("", "dictionary's size", *(f"{m} features, {d} wide" for m, d in sizes))
        return
    shared = sorted({*a.features} & {*b.features})
    for what, mine in _weights(a, shared).items():
        other = _weights(b, shared).get(what)
        if mine is None or other is None:
            yield from _unequal("", what, *("none" if t is None else "some" for t in (mine, other)))
        elif mine.shape == other.shape and not torch.equal(mine, other):
            distance = float((mine - other).abs().max())
            yield Difference("", what, "its own", f"off by {distance:.2g} at most")


def _weights(part: Slice, features: list[int]) -> dict[str, Tensor | None]:
    """Return what a slice has of some features, which two patches share."""
    places = {feature: i for i, feature in enumerate(part.features)}
    rows = [places[feature] for feature in features]
    columns = rows if part.columns is None else part.columns[rows].tolist()
    encoder = part.encoder
    threshold = None if encoder.threshold is None else encoder.threshold[columns]
    return {
        "decoder rows": part.decoder[rows],
        "encoder columns": encoder.weight[:, columns],
        "encoder bias": encoder.bias[columns],
        "threshold": threshold,
        "subtract": encoder.subtract,
        "center of image": encoder.centers.get("image"),
        "center of text": encoder.centers.get("text"),
    }
