"""Adapters that are registered as entry points, by what they are for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from torch import nn

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.registry import distinct, load_point
from vlm_edit.host.declare import Adapter, PipelineAdapter
from vlm_edit.host.pipelines import Model, Pipeline, PipelineHost, class_of, joined
from vlm_edit.host.wrappers import unwrap

ENTRY_POINTS = "vlm_edit.adapters"


def find_adapter(model: Model) -> Adapter:
    """Find the adapter registered for a host.

    It is looked up by ``model.config.model_type``; failing that by the host's class or one it
    inherits from, named with its top-level package: ``open_clip.CLIP``. For a base there may
    be a table of adapters by class: that of the host's class counts, or of the nearest it inherits
    from. A pipeline's is put together from what is registered for its class and for the models
    inside it.

    Raises:
        VlmEditError: No adapter is registered for either, or one of the other kind.
    """
    host = unwrap(model)
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    points = _registered()
    classes = [_key(kind) for kind in class_of(host).__mro__]
    keys = [key for key in (model_type, *classes) if isinstance(key, str)]
    for key in keys:
        if key in points:
            table = _load(key, points[key])
            return _fitting(key, next(table[name] for name in keys if name in table), host)
    names = ", ".join(sorted(points)) or "none: is vlm-edit installed?"
    raise UnknownName(
        f"no adapter for {class_of(host).__name__} (config.model_type is {model_type!r}, the class "
        f"{classes[0]!r}; known: {names}). Pass Host.of(model, adapter=Adapter.of({{...}})) with "
        "the paths of its modules, or register one as an entry point of the group "
        f"{ENTRY_POINTS!r}: docs/writing-an-adapter.md shows both"
    )


def join_adapters(pipeline: Pipeline, rules: PipelineAdapter) -> Adapter:
    """Make the adapter of a pipeline, whose class has none, from those of its models.

    Args:
        pipeline: What holds the models.
        rules: What it encodes, and by which of its methods.

    Raises:
        VlmEditError: None of its encoders is of a kind that an adapter is known for.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.host import PipelineEncoder
        >>> class Mine:
        ...     components = {"eye": zoo.load_host()[0]}
        >>> pipeline = Mine()
        >>> adapter = join_adapters(pipeline, PipelineAdapter((PipelineEncoder("eye"),)))
        >>> list(Host.of(pipeline, adapter=adapter).sites)[:2]
        ['eye.joint', 'eye.vision.0']
    """
    return joined(cast("PipelineHost", unwrap(pipeline)), rules, find_adapter)


def _fitting(key: str, adapter: Adapter | PipelineAdapter, host: nn.Module) -> Adapter:
    if isinstance(host, PipelineHost) and isinstance(adapter, PipelineAdapter):
        return joined(host, adapter, find_adapter)
    if isinstance(host, PipelineHost) or isinstance(adapter, PipelineAdapter):
        kind = "PipelineAdapter" if isinstance(host, PipelineHost) else "Adapter"
        raise BadArgument(
            f"the entry point {key!r} of {ENTRY_POINTS} gives a {type(adapter).__name__}; "
            f"{class_of(host).__name__} needs {'a' if kind[0] == 'P' else 'an'} {kind}"
        )
    return adapter


def _key(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


@functools.cache
def _registered() -> Mapping[str, list[EntryPoint]]:
    return distinct(entry_points(group=ENTRY_POINTS))


def _load(key: str, points: list[EntryPoint]) -> Mapping[str, Adapter | PipelineAdapter]:
    """Return what an entry point registers, by what it is for, its own key among it."""
    entry = load_point("adapter", key, points, ", or say which with Host.of(adapter=)")
    table = entry if isinstance(entry, Mapping) else {key: entry}
    for name, adapter in table.items():
        if not isinstance(adapter, Adapter | PipelineAdapter):
            raise BadArgument(
                f"the entry point {key!r} of {ENTRY_POINTS} gives a {type(adapter).__name__} for "
                f"{name!r}, not an Adapter: it must name an Adapter instance, or a table of them"
            )
    if key not in table:
        raise BadArgument(
            f"the entry point {key!r} of {ENTRY_POINTS} gives a table without {key!r}, which "
            "classes that it does not name inherit from: add it"
        )
    return table
