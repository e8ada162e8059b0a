"""From what an adapter declares to the modules of one host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.ground.sites import BESIDE
from vlm_edit.host.declare import MARKS, Adapter, Ids, Layout, SiteRule, Stream, TapRule
from vlm_edit.host.pipelines import class_of
from vlm_edit.host.wrappers import unwrap

Numbers = tuple[int, ...]  # of a layer: none, {i}, or {i} and {j}


@dataclass(frozen=True, eq=False)
class Tap:
    """One module of a site, resolved in a host, and the stream that flows through it.

    Attributes:
        path: Where it is: a module's path, with ``.name()`` at the end for a method of it.
        module: That module.
        stream: Whose tokens pass.
        axis: Which axis of the output is the width.
        method: The method whose result is the site; None for the module's own output.
        ends: What the module's output ends in, as in ``TapRule``; None where that is not known.
        tokens: How many tokens a row of the output must have; None for any number.
        field: The name of the state in an output with several tensors by name.
        columns: Which columns of what the module is called with are the state, from and up to;
            None where it is the module's output. So lie a layer's heads before they are projected.
    """

    path: str
    module: nn.Module
    stream: Stream
    axis: int = -1
    method: str | None = None
    ends: str | None = None
    tokens: int | None = None
    field: str | None = None
    columns: tuple[int, int] | None = None

    @property
    def owner(self) -> str:
        """Return the path of the module itself."""
        if self.method is None:
            return self.path
        return self.path.removesuffix("()").rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Site:
    """A named place in a host.

    Attributes:
        name: As the adapter declares it, e.g. ``joint`` or ``vision.2``.
        taps: The modules whose output is the site. A joint embedding has one per stream.
        width: Size of the last axis there.
        dead: Why an edit here can never reach the host's output; None where it can.
        parts: Of several sites side by side, as ``side_by_side`` makes one, those; else none.
    """

    name: str
    taps: tuple[Tap, ...]
    width: int
    dead: str | None = None
    parts: tuple[Site, ...] = ()

    @property
    def streams(self) -> tuple[str, ...]:
        """Return the streams that pairs are measured in here, of ``image`` and ``text``."""
        streams = {tap.stream for tap in self.taps}
        return ("image", "text") if "mixed" in streams else tuple(sorted(streams))


def side_by_side(parts: Sequence[Site]) -> Site:
    """Return several sites as one, of the states of a token at all of them, end to end.

    It can be recorded and measured, not edited: edits are made at its parts.

    Args:
        parts: In the order in which a forward passes them.

    Raises:
        BadArgument: Sites of several modules each, or of other streams.
    """
    name = BESIDE.join(part.name for part in parts)
    if any(len(part.taps) != 1 or part.parts for part in parts):
        raise BadArgument(
            f"{name!r}: only sites of one module each stand side by side, such as layers"
        )
    if len({part.taps[0].stream for part in parts}) > 1:
        raise BadArgument(
            f"{name!r}: other tokens pass at each of these sites: name sites of one tower, or of "
            "the language model"
        )
    dead = next((part.dead for part in parts if part.dead), None)
    taps = tuple(part.taps[0] for part in parts)
    return Site(name, taps, sum(part.width for part in parts), dead, tuple(parts))


def resolve(root: nn.Module, adapter: Adapter) -> dict[str, Site]:
    """Return the sites that an adapter declares, by name, in its order.

    Raises:
        VlmEditError: None of a site's module paths exists, or its width is not known.
    """
    sites: dict[str, Site] = {}
    for rule in adapter.sites:
        sites.update(_resolve(root, rule))
    return sites


def placeholder_ids(model: nn.Module, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Return the ids of the placeholders that a host replaces by features, by modality.

    Raises:
        VlmEditError: Neither the host's config nor the host has the first that the adapter names
            for images; what it names for videos and sounds may be missing.

    Example:
        >>> from torch import nn
        >>> from vlm_edit.host import Adapter
        >>> placeholder_ids(nn.Linear(2, 2), Adapter((), image_token=32000))
        {'image': (32000,)}
    """
    ids = {
        "image": _numbers(model, adapter.image_token),
        "video": _numbers(model, adapter.video_token),
        "audio": _numbers(model, adapter.audio_token),
    }
    if adapter.image_token is not None and not ids["image"]:
        host, token = type(unwrap(model)).__name__, adapter.image_token
        first = token[0] if isinstance(token, tuple) else token
        raise CannotKnow(
            f"the config of {host} has no {first!r}, nor has {host} itself: name the attribute "
            "with the id of its image placeholder in Adapter.image_token, or write the id there"
        )
    return {name: numbers for name, numbers in ids.items() if numbers}


def layouts_in(model: nn.Module, adapter: Adapter) -> dict[str, Layout]:
    """Return the layouts that hold in a host, by the path of the module that is called so.

    Their numbers are the host's own; one whose module the host lacks is passed over.

    Raises:
        VlmEditError: Neither the host's config nor the host has a number that one names.

    Example:
        >>> from torch import nn
        >>> from vlm_edit.host import Adapter, Layout
        >>> layouts = (Layout(("deep", "0"), ("text", "image"), ahead=1),)
        >>> list(layouts_in(nn.Sequential(nn.Linear(2, 2)), Adapter((), layouts=layouts)))
        ['0']
    """
    layouts = {}
    for layout in adapter.layouts:
        path = next((p for p in layout.paths if find_module(model, p) is not None), None)
        if path is not None:
            ahead, cut = (_number(model, path, layout, name) for name in ("ahead", "cut"))
            layouts[path] = replace(layout, ahead=ahead, cut=cut)
    return layouts


def _number(model: nn.Module, path: str, layout: Layout, name: str) -> int:
    said = getattr(layout, name)
    value = said if isinstance(said, int) else _attributes(unwrap(model), said)
    if not isinstance(value, int):
        raise CannotKnow(
            f"the layout of {path} in {class_of(model).__name__}: neither the config nor the model "
            f"has a number {said!r}; name the attribute that holds it, or write the number, in the "
            f"adapter's Layout.{name}"
        )
    return int(value)


def _numbers(model: nn.Module, token: Ids | None) -> tuple[int, ...]:
    """Return the ids that an adapter names; none where the first is missing."""
    names = token if isinstance(token, tuple) else () if token is None else (token,)
    host = unwrap(model)
    values = [name if isinstance(name, int) else _attributes(host, name) for name in names]
    if not values or not isinstance(values[0], int):
        return ()
    return tuple(dict.fromkeys(value for value in values if isinstance(value, int)))


def _resolve(model: nn.Module, rule: SiteRule) -> dict[str, Site]:
    columns = [_taps(model, tap) for tap in rule.taps]
    for tap, column in zip(rule.taps, columns, strict=True):
        if column:
            continue
        if rule.optional:
            return {}
        raise BadArgument(
            f"site {rule.name!r} of {class_of(model).__name__}: no module at "
            f"{' or '.join(tap.paths)}. The host's layout differs from the adapter's: pass "
            "Host.of(model, adapter=...) with the paths that model.named_modules() shows"
        )
    layers = max((numbers[0] for numbers in columns[0] if numbers), default=0) + 1
    last = _last_read(model, rule, layers)
    sites = {}
    for numbers in columns[0]:
        if any(numbers not in column for column in columns):
            continue
        dead = None
        if rule.consumed is not None and numbers[0] > last:
            source = f"hidden_states[{rule.consumed}]"
            if isinstance(rule.consumed, str):
                source = f"{rule.consumed}={_attributes(model, rule.consumed)}"
            latest = "none of them" if last < 0 else _fill(rule.name, (last,))
            dead = (
                f"the host reads {source} of {layers + 1} hidden states, "
                f"that is, {latest} at the latest"
            )
        name = _fill(rule.name, numbers)
        width = _width(model, rule, numbers)
        sites[name] = Site(name, tuple(column[numbers] for column in columns), width, dead)
    return sites


def _taps(model: nn.Module, rule: TapRule) -> dict[Numbers, Tap]:
    """Return what lies at the first candidate path that the host has, by layer."""
    for path in rule.paths:
        candidates = {n: _tap(model, rule, _fill(path, n)) for n in _layers(model, path)}
        taps = {numbers: tap for numbers, tap in candidates.items() if tap is not None}
        if taps:
            return taps
    return {}


def _layers(model: nn.Module, path: str) -> list[Numbers]:
    """List the numbers that a path's marks can stand for."""
    layers: list[Numbers] = [()]
    for mark in MARKS:
        if mark in path:
            stem = path.split(mark)[0].rstrip(".")
            stems = {numbers: find_module(model, _fill(stem, numbers)) for numbers in layers}
            counts = {n: len(list(m.children())) for n, m in stems.items() if m is not None}
            layers = [(*numbers, i) for numbers, n in counts.items() for i in range(n)]
    return layers


def _tap(model: nn.Module, rule: TapRule, path: str) -> Tap | None:
    if not path.endswith("()"):
        module = find_module(model, path)
        if module is None:
            return None
        ends = (end for end in rule.ends if find_module(module, end.removeprefix("+")) is not None)
        return Tap(
            *(path, module, rule.stream, rule.axis),
            ends=next(ends, None),
            tokens=_tokens(model, rule),
            field=rule.field,
        )
    parent, _, method = path.removesuffix("()").rpartition(".")
    module = find_module(model, parent)
    if module is None or not callable(getattr(module, method, None)):
        return None
    return Tap(path, module, rule.stream, rule.axis, method)


def _tokens(model: nn.Module, rule: TapRule) -> int | None:
    if rule.tokens is None or isinstance(rule.tokens, int):
        return rule.tokens
    value = _attributes(model, rule.tokens)
    if not isinstance(value, int):
        raise CannotKnow(
            f"the module at {rule.paths[0]} of {class_of(model).__name__}: neither the config nor "
            f"the model has a number {rule.tokens!r}; name the attribute that says how many tokens "
            "a row has, or write the number, in the adapter's TapRule.tokens"
        )
    return value


def _fill(text: str, numbers: Numbers) -> str:
    for mark, number in zip(MARKS, numbers, strict=False):
        text = text.replace(mark, str(number))
    return text


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path; None if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _width(model: nn.Module, rule: SiteRule, numbers: Numbers) -> int:
    for candidate in rule.width:
        value = candidate if isinstance(candidate, int) else _attributes(model, candidate)
        if isinstance(value, list | tuple) and numbers and numbers[0] < len(value):
            value = value[numbers[0]]
        if isinstance(value, int):
            return value
    raise CannotKnow(
        f"site {rule.name!r} of {class_of(model).__name__}: its width is not in the config under "
        f"{' or '.join(map(str, rule.width))}, nor on the model; name the attribute, or write "
        "the number, in the adapter's SiteRule.width"
    )


def _last_read(model: nn.Module, rule: SiteRule, layers: int) -> int:
    """Return the last layer whose output the host reads: hidden_states[k] is layer k - 1."""
    if rule.consumed is None:
        return layers - 1
    index: Any = rule.consumed
    if isinstance(index, str):
        index = _attributes(model, index)
    if index is None:
        return layers - 1
    indices = [index] if isinstance(index, int) else list(index)
    return max(i % (layers + 1) for i in indices) - 1


def _attributes(model: nn.Module, dotted: str) -> Any:
    """Return an attribute of the model's config, or else of the model."""
    value = _attribute(getattr(model, "config", None), dotted)
    return _attribute(model, dotted) if value is None else value


def _attribute(thing: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        thing = getattr(thing, name, None)
    return thing


def abridged(names: list[str]) -> str:
    """Write ``vision.0, vision.1, vision.2`` as ``vision.0 ... vision.2``."""
    return ", ".join(grouped(names))


def grouped(names: list[str]) -> dict[str, list[str]]:
    """Return the names that differ in numbers alone, by ``vision.0 ... vision.2``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[\d.]+$", "", name), []).append(name)
    return {g[0] if len(g) == 1 else f"{g[0]} ... {g[-1]}": g for g in groups.values()}
