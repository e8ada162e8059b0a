"""Adapters that are registered as entry points, by what they are for."""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from torch import nn

from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.registry import distinct, load_point
from vlm_edit.host.conventions import read_conventions
from vlm_edit.host.declare import Adapter, PipelineAdapter
from vlm_edit.host.pipelines import Model, Pipeline, PipelineHost, class_of, joined
from vlm_edit.host.resolve import find_module
from vlm_edit.host.wrappers import unwrap

ENTRY_POINTS = "vlm_edit.adapters"

# What hosts have told of themselves, which takes a walk through all their modules.
_READ: weakref.WeakKeyDictionary[nn.Module, Adapter] = weakref.WeakKeyDictionary()


def find_adapter(model: Model) -> Adapter:
    """Find a host's adapter: the one registered for it, or what it tells of itself.

    It is looked up by ``model.config.model_type``; failing that by the host's class or one it
    inherits from, named with its top-level package: ``open_clip.CLIP``. For a base there may
    be a table of adapters by class: that of the host's class counts, or of the nearest it inherits
    from. A pipeline's is put together from what is registered for its class and for the models
    inside it. A model of transformers for which none is registered, or which has other parts than
    its family, is read by the conventions of that library: ``read_conventions``.

    Raises:
        VlmEditError: No adapter is registered for either, nor does it keep the conventions; or
            one is registered of the other kind.
    """
    host = unwrap(model)
    adapter = registered_adapter(host)
    if isinstance(host, PipelineHost):
        if adapter is None:
            raise _unknown(host)
        return adapter
    if adapter is not None and _fits(host, adapter):
        return adapter
    own = _READ.get(host)
    if own is None or not _fits(host, own):
        own = read_conventions(host)
    if own is not None and (adapter is None or _fits(host, own)):
        _READ[host] = own
        return own
    if adapter is None:
        raise _unknown(host)
    return adapter


def _fits(host: nn.Module, adapter: Adapter) -> bool:
    """Return whether a host has the places that an adapter names, without looking at each layer."""
    return all(
        any(_has(host, path) for path in tap.paths)
        for rule in adapter.sites
        if not rule.optional
        for tap in rule.taps
    )


def _has(host: nn.Module, path: str) -> bool:
    """Return whether a host has a path, or the list of layers that it leads into."""
    stem = path.removesuffix("()").rpartition(".")[0] if path.endswith("()") else path
    return find_module(host, stem.split("{i}")[0].rstrip(".")) is not None


def registered_adapter(model: Model) -> Adapter | None:
    """Return the adapter that is registered for a host, as ``find_adapter`` does; None if none is.

    Raises:
        VlmEditError: One is registered of the other kind.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> tower = ViTModel(ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
        >>> registered_adapter(tower)
        >>> [rule.name for rule in find_adapter(tower).sites]
        ['vision.{i}']
    """
    host = unwrap(model)
    points, keys = _registered(), _keys(host)
    for key in keys:
        if key in points:
            table = _load(key, points[key])
            return _fitting(key, next(table[name] for name in keys if name in table), host)
    return None


def _required(model: Model) -> Adapter:
    """Return the registered adapter of a pipeline's model, of which the pipeline tells the rest."""
    adapter = registered_adapter(model)
    if adapter is None:
        raise _unknown(unwrap(model))
    return adapter


def _keys(host: nn.Module) -> list[str]:
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    classes = [_key(kind) for kind in class_of(host).__mro__]
    return [key for key in (*classes, model_type) if isinstance(key, str)]


def _unknown(host: nn.Module) -> UnknownName:
    names = ", ".join(sorted(_registered())) or "none: is vlm-edit installed?"
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    return UnknownName(
        f"no adapter for {class_of(host).__name__} (config.model_type is {model_type!r}, the class "
        f"{_key(class_of(host))!r}; known: {names}), and it has no get_decoder() with layers below "
        "it, as models of transformers do. Pass Host.of(model, adapter=Adapter.of({...})) with "
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
    return joined(cast("PipelineHost", unwrap(pipeline)), rules, _required)


def import_adapter(reference: str) -> Adapter | PipelineAdapter:
    """Import the module of an adapter, and return the adapter.

    Args:
        reference: ``module:name``, such as ``my_package.adapters:llama_eye``.

    Raises:
        BadArgument: It is not of that form, the module cannot be imported, or the name in it is
            missing or no adapter.

    Example:
        >>> len(import_adapter("vlm_edit_adapters.clip:adapter").sites)
        3
        >>> import_adapter("vlm_edit_adapters.clip:nothing")
        Traceback (most recent call last):
        vlm_edit.ground.errors.BadArgument: adapter='vlm_edit_adapters.clip:nothing': the module
        vlm_edit_adapters.clip has no 'nothing'
    """
    module, _, name = reference.partition(":")
    said = f"adapter={reference!r}"
    if not module or not name:
        raise BadArgument(f"{said}: write module:name, such as my_package.adapters:mine")
    try:
        held: Any = importlib.import_module(module)
    except Exception as error:  # a module of the user's own fails in any way
        raise BadArgument(
            f"{said}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(held, part):
            raise BadArgument(f"{said}: the module {module} has no {name!r}")
        held = getattr(held, part)
    if not isinstance(held, Adapter | PipelineAdapter):
        raise BadArgument(f"{said} is a {type(held).__name__}, not an Adapter: see Adapter.of")
    return held


def fit_adapter(adapter: Adapter | PipelineAdapter | None, model: Model) -> Adapter | None:
    """Return an adapter as a model needs it: what a pipeline declares, joined from its encoders'.

    Raises:
        VlmEditError: It is of pipelines and the model is none, or the other way round.
    """
    if isinstance(adapter, PipelineAdapter):
        host = unwrap(model)
        if not isinstance(host, PipelineHost):
            raise BadArgument(
                f"adapter is a PipelineAdapter, and {class_of(host).__name__} is no pipeline: "
                "give an Adapter"
            )
        return joined(host, adapter, _required)
    return adapter


def other_family(model: Model, name: object) -> tuple[str, str] | None:
    """Return of which family a name tells, and of which a host is, where these are not the same.

    Families are told apart by the model types that adapters are known for.

    Args:
        model: The host.
        name: Of a model, such as ``Qwen/Qwen2.5-VL-7B-Instruct``.

    Returns:
        None where they are the same, or the name or the host tells of none; what a host is made
        of, such as the CLIP in a LLaVA, is its family too.

    Example:
        >>> from vlm_edit import zoo
        >>> model = zoo.load_host()[0]
        >>> other_family(model, "Qwen/Qwen2.5-VL-7B-Instruct")
        ('qwen2_5_vl', 'clip')
        >>> other_family(model, "openai/clip-vit-base-patch32")
    """
    own = _model_types(unwrap(model))
    word = _letters(str(name).rpartition("/")[2])
    known = [key for key in _registered() if len(_letters(key)) > 3 and _letters(key) in word]
    if not own or not known or not isinstance(name, str):
        return None
    theirs = max(known, key=len)
    kin = any(_letters(theirs) in _letters(k) or _letters(k) in _letters(theirs) for k in own)
    return None if kin else (theirs, own[0])


def _model_types(host: nn.Module) -> list[str]:
    """Return the model types of a host, or of a pipeline's models, and of what they are made of."""
    hosts = host.children() if isinstance(host, PipelineHost) else (host,)
    configs = [config for each in hosts if (config := getattr(each, "config", None)) is not None]
    parts = [part for config in configs for part in vars(config).values()]
    types = [getattr(config, "model_type", None) for config in (*configs, *parts)]
    return [kind for kind in types if isinstance(kind, str) and kind]


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _fitting(key: str, adapter: Adapter | PipelineAdapter, host: nn.Module) -> Adapter:
    if isinstance(host, PipelineHost) and isinstance(adapter, PipelineAdapter):
        return joined(host, adapter, _required)
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
