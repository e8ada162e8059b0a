"""Sites: named places in a host, and the adapters that name them.

A host is any model of the user's. An adapter declares, for one family of hosts, which module
paths are sites and whose tokens flow there. This room knows no model: adapters are found through
the entry point group ``vlm_edit.adapters``, keyed by ``model.config.model_type``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from torch import nn

from vlm_edit.errors import VlmEditError

Stream = Literal["image", "text", "mixed"]

ENTRY_POINTS = "vlm_edit.adapters"

VISUAL_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "image_embeds",
    "video_embeds",
    "image_features",
    "mm_encoder_outputs",
)


@dataclass(frozen=True, eq=False)
class Tap:
    """One module of a site, resolved in a host, and the stream that flows through it.

    Attributes:
        path: Where it is: a module's path, with ``.name()`` at the end for a method of it.
        module: That module.
        stream: Whose tokens pass.
        axis: Which axis of the output is the width.
        method: The method whose result is the site; None for the module's own output.
    """

    path: str
    module: nn.Module
    stream: Stream
    axis: int = -1
    method: str | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """A named place in a host.

    Attributes:
        name: As the adapter declares it, e.g. ``joint`` or ``vision.2``.
        taps: The modules whose output is the site. A joint embedding has one per stream.
        width: Size of the last axis there.
        dead: Why an edit here can never reach the host's output; None where it can.
    """

    name: str
    taps: tuple[Tap, ...]
    width: int
    dead: str | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that can be told apart here, of ``image`` and ``text``."""
        found = {tap.stream for tap in self.taps}
        return ("image", "text") if "mixed" in found else tuple(sorted(found))


@dataclass(frozen=True)
class TapRule:
    """Where one stream of a site lies.

    Attributes:
        paths: Candidate module paths, tried in order (they move between releases of a host's
            library); ``{i}`` stands for a layer's number. A path that ends in ``()`` names a
            method, where a host has no module: ``encode_text()``. If the method takes
            ``normalize``, the site is what it gives before that.
        stream: ``image``, ``text``, or ``mixed`` where both share one sequence.
        axis: Which axis of the output is the width: 1 for images [B, D, H, W].
    """

    paths: tuple[str, ...]
    stream: Stream
    axis: int = -1


@dataclass(frozen=True)
class SiteRule:
    """How a family names a site.

    Attributes:
        name: ``joint``, or with a layer's number ``vision.{i}``.
        taps: One rule per module.
        width: Candidate dotted attributes of ``model.config`` that hold the width.
        consumed: Dotted attribute of the config that holds the index (or indices) into
            ``hidden_states`` the host reads from these layers; later layers are dead.
        optional: Whether hosts of the family may lack the site without being refused.
    """

    name: str
    taps: tuple[TapRule, ...]
    width: tuple[str, ...]
    consumed: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Adapter:
    """A declaration of what a family of hosts calls its places.

    Attributes:
        sites: The family's sites.
        image_token: Attribute of the config with the id of the placeholder that the host
            replaces by image features; None for hosts without a mixed sequence.
        visual_inputs: Arguments of the host's forward that carry images. Placeholder ids count
            as image tokens only in calls that carry one of them.
        calls: Paths of modules inside the host that the host's code also calls on their own,
            with a sequence of their own: a decoder that ``generate`` runs without the host's
            forward, a text tower behind ``get_text_features``. What a call's arguments do not
            tell is taken from the call around it. Paths the host lacks are passed over.
        grid: Argument of such a call, [images, 3], whose rows multiply to the number of patches
            that each image has in a packed sequence [patches, D]; None for batched images.

    Example:
        >>> from vlm_edit.sites import Adapter, SiteRule, TapRule
        >>> adapter = Adapter(
        ...     sites=(
        ...         SiteRule("vision.{i}", (TapRule(("blocks.{i}",), "image"),), ("hidden_size",)),
        ...     )
        ... )
        >>> [rule.name for rule in adapter.sites]
        ['vision.{i}']
    """

    sites: tuple[SiteRule, ...]
    image_token: str | None = None
    visual_inputs: tuple[str, ...] = VISUAL_INPUTS
    calls: tuple[str, ...] = ()
    grid: str | None = None


def find_sites(model: nn.Module, adapter: Adapter | None = None) -> dict[str, Site]:
    """Every site of a host, by name.

    Args:
        model: The host.
        adapter: Declares the sites; by default found through ``model.config.model_type``.

    Returns:
        Sites in the adapter's order, layers in theirs.

    Raises:
        VlmEditError: No adapter for this type of host, or none of a site's module paths exists.

    Example:
        >>> from vlm_edit import zoo
        >>> host, _ = zoo.load_host()
        >>> list(find_sites(host))[:2]
        ['joint', 'vision.0']
    """
    model = unwrap(model)
    adapter = adapter or find_adapter(model)
    found: dict[str, Site] = {}
    for rule in adapter.sites:
        try:
            found.update(_resolve(model, rule))
        except VlmEditError:
            if not rule.optional:
                raise
    return found


def find_site(model: nn.Module, name: str, adapter: Adapter | None = None) -> Site:
    """One site of a host.

    Raises:
        VlmEditError: The host has no such site; the message lists those it has.
    """
    found = find_sites(model, adapter)
    if name not in found:
        host = type(unwrap(model)).__name__
        raise VlmEditError(f"{host} has no site {name!r}; its sites are {_abridge(list(found))}")
    return found[name]


def expect_width(model: nn.Module, site: Site, width: int) -> None:
    """Refuse a dictionary of another width than the site's.

    Raises:
        VlmEditError: The widths differ.
    """
    if width != site.width:
        raise VlmEditError(
            f"the dictionary is {width} wide, site {site.name!r} of "
            f"{type(unwrap(model)).__name__} is {site.width}: it belongs to another site or host"
        )


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter registered for ``model.config.model_type``.

    Raises:
        VlmEditError: The host has no such attribute, or no adapter is registered for its value.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = _registered()
    if isinstance(model_type, str) and model_type in known:
        return _load(model_type, known[model_type])
    names = ", ".join(sorted(known)) or "none: is vlm-edit installed?"
    raise VlmEditError(
        f"no adapter for {type(model).__name__} (config.model_type is {model_type!r}; known: "
        f"{names}). Pass adapter=Adapter(sites=(...)), or register one as an entry point of the "
        f"group {ENTRY_POINTS!r}: docs/writing-an-adapter.md shows both"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The host inside torch.compile, DistributedDataParallel and peft wrappers.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(linear)) is linear
        True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if inner is None and hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            inner = cast(Callable[[], nn.Module], model.get_base_model)()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


@functools.cache
def _registered() -> Mapping[str, list[EntryPoint]]:
    points: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        points.setdefault(point.name, {})[point.value] = point
    return {name: list(found.values()) for name, found in points.items()}


def _load(model_type: str, points: list[EntryPoint]) -> Adapter:
    if len(points) > 1:
        names = " and ".join(point.value for point in points)
        raise VlmEditError(
            f"two adapters are registered for {model_type!r}: {names}; uninstall one, or say "
            "which with adapter="
        )
    try:
        adapter = points[0].load()
    except (ImportError, AttributeError) as error:
        raise VlmEditError(
            f"the adapter for {model_type!r} ({points[0].value}) cannot be imported: {error}"
        ) from error
    if not isinstance(adapter, Adapter):
        raise VlmEditError(
            f"the entry point {model_type!r} of {ENTRY_POINTS} gives a "
            f"{type(adapter).__name__}, not an Adapter: it must name an Adapter instance"
        )
    return adapter


def _resolve(model: nn.Module, rule: SiteRule) -> dict[str, Site]:
    width = _width(model, rule)
    numbered = "{i}" in rule.name
    columns = [_taps(model, rule, tap, numbered) for tap in rule.taps]
    layers = max(columns[0]) + 1
    last = _last_read(model, rule, layers) if numbered else 0
    found = {}
    for i in columns[0]:
        if any(i not in column for column in columns):
            continue
        name = rule.name.replace("{i}", str(i))
        dead = None
        if i > last:
            value = _attribute(model.config, rule.consumed or "")
            latest = "none of them" if last < 0 else rule.name.replace("{i}", str(last))
            dead = (
                f"the host reads {rule.consumed}={value} of {layers + 1} hidden states, "
                f"that is, {latest} at the latest"
            )
        found[name] = Site(name, tuple(column[i] for column in columns), width, dead)
    return found


def _taps(model: nn.Module, rule: SiteRule, tap: TapRule, numbered: bool) -> dict[int, Tap]:
    """The modules of the first candidate path that the host has, by layer; 0 where there is one."""
    for path in tap.paths:
        layers = range(1)
        if numbered:
            stem = _module(model, path.split(".{i}")[0])
            layers = range(0 if stem is None else len(list(stem.children())))
        paths = {i: path.replace("{i}", str(i)) for i in layers}
        modules = {i: _module(model, p) for i, p in paths.items()}
        found = {
            i: Tap(paths[i], m, tap.stream, tap.axis) for i, m in modules.items() if m is not None
        }
        if found:
            return found
    raise VlmEditError(
        f"site {rule.name!r} of {type(model).__name__}: no module at {' or '.join(tap.paths)}. "
        "The host's layout differs from the adapter's: pass adapter= with the paths that "
        "model.named_modules() shows"
    )


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _width(model: nn.Module, rule: SiteRule) -> int:
    for name in rule.width:
        value = _attribute(getattr(model, "config", None), name)
        if isinstance(value, int):
            return value
    raise VlmEditError(
        f"site {rule.name!r} of {type(model).__name__}: its width is not in the config under "
        f"{' or '.join(rule.width)}; name the attribute in the adapter's SiteRule.width"
    )


def _last_read(model: nn.Module, rule: SiteRule, layers: int) -> int:
    """Number of the last layer whose output the host reads: hidden_states[k] is layer k - 1."""
    if rule.consumed is None:
        return layers - 1
    index = _attribute(model.config, rule.consumed)
    if index is None:
        return layers - 1
    indices = [index] if isinstance(index, int) else list(index)
    return max(i % (layers + 1) for i in indices) - 1


def _attribute(thing: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        thing = getattr(thing, name, None)
    return thing


def _abridge(names: list[str]) -> str:
    """``vision.0, vision.1, vision.2`` as ``vision.0 ... vision.2``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+$", "", name), []).append(name)
    parts = [g[0] if len(g) == 1 else f"{g[0]} ... {g[-1]}" for g in groups.values()]
    return ", ".join(parts)
