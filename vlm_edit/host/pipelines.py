"""Pipelines: objects that hold several hosts, and are no ``torch.nn.Module`` themselves."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.host.declare import Adapter, PipelineAdapter, PipelineEncoder, SiteRule


class Pipeline(Protocol):
    """What holds models by name, as every pipeline of diffusers does."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Return models, tokenizers, schedulers, by the pipeline's names for them."""
        ...


Model: TypeAlias = nn.Module | Pipeline


class PipelineHost(nn.Module):
    """The models of a pipeline under its names for them: one host. It is never called.

    Attributes:
        kind: The pipeline's class.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.kind = type(pipeline)
        self._pipeline = weakref.ref(pipeline)

    @property
    def training(self) -> bool:
        """Return whether one of its models is in train mode: it has no mode of its own."""
        return any(model.training for model in self.children())

    @training.setter
    def training(self, mode: bool) -> None:
        """Leave it to the models, which ``train`` and ``eval`` reach by themselves."""

    @property
    def pipeline(self) -> Pipeline | None:
        """Return the pipeline; None once it is gone."""
        return self._pipeline()


_hosts: weakref.WeakKeyDictionary[Pipeline, PipelineHost] = weakref.WeakKeyDictionary()


def host_of_pipeline(pipeline: Pipeline, unwrap: Callable[[nn.Module], nn.Module]) -> PipelineHost:
    """Return the pipeline's models as they are now, as one host; the same for the same pipeline.

    Raises:
        VlmEditError: It is of a kind that cannot be told from others of its kind.
    """
    try:
        host = _hosts.get(pipeline)
    except TypeError as error:  # not hashable, or without weak references
        raise BadArgument(
            f"a {type(pipeline).__name__} cannot be followed as a pipeline ({error}): make it an "
            "object of a class of your own, with a property `components`"
        ) from error
    if host is None:
        host = _hosts[pipeline] = PipelineHost(pipeline)
    models = {
        name: unwrap(model)
        for name, model in pipeline.components.items()
        if isinstance(model, nn.Module)
    }
    for name in [name for name, model in host.named_children() if models.get(name) is not model]:
        delattr(host, name)
    for name, model in models.items():
        if name not in host._modules:
            host.add_module(name, model)
    return host


def class_of(host: nn.Module) -> type:
    """Return the host's class, or the pipeline's."""
    return host.kind if isinstance(host, PipelineHost) else type(host)


def joined(
    host: PipelineHost, rules: PipelineAdapter, find: Callable[[nn.Module], Adapter]
) -> Adapter:
    """Join the adapters of a pipeline's encoders to one for all.

    Args:
        host: The pipeline's models.
        rules: What the family says of them.
        find: The adapter of a model by itself.

    An encoder of a kind that no adapter is known for has no site, as the rest of a pipeline.

    Raises:
        VlmEditError: As ``find`` does, where it knows none of them.
    """
    sites: list[SiteRule] = []
    calls: list[str] = []
    errors: list[VlmEditError] = []
    for encoder in rules.encoders:
        model = host._modules.get(encoder.name)
        if model is None:
            continue
        try:
            own = find(model)
        except VlmEditError as error:
            errors.append(error)
            continue
        sites += [_within(encoder, r) for r in own.sites if r.name not in encoder.unread]
        calls += [encoder.name, *(f"{encoder.name}.{path}" for path in own.calls)]
    if errors and not sites:
        raise errors[0]
    return Adapter(tuple(sites), calls=tuple(calls), pipeline=rules)


def _within(encoder: PipelineEncoder, rule: SiteRule) -> SiteRule:
    """Return a rule of an encoder's site, seen from the pipeline."""
    name, consumed = encoder.name, rule.consumed
    if isinstance(consumed, str):
        consumed = f"{name}.config.{consumed}"
    if encoder.read is not None and rule.name.endswith(".{i}"):
        consumed = encoder.read
    taps = [replace(t, paths=tuple(f"{name}.{path}" for path in t.paths)) for t in rule.taps]
    values: dict[str, Any] = {
        "name": f"{name}.{rule.name}",
        "taps": tuple(taps),
        "width": tuple(_widths(name, rule)),
    }
    return replace(rule, **values, consumed=consumed)


def _widths(name: str, rule: SiteRule) -> Iterator[str | int]:
    """Yield where the width may stand: in the encoder's config, or on the encoder itself."""
    for width in rule.width:
        if isinstance(width, int):
            yield width
        else:
            yield f"{name}.config.{width}"
            yield f"{name}.{width}"


def encode(host: PipelineHost, rules: PipelineAdapter | None, texts: Sequence[str]) -> None:
    """Have a pipeline encode prompts as it would to draw them, without negative ones, and no more.

    Args:
        host: The pipeline's models.
        rules: What the family says of them.
        texts: The prompts.

    Raises:
        CannotKnow: It has no method that encodes prompts alone.
    """
    pipeline: Any = host.pipeline
    names = rules.methods if rules else ()
    own = [name for name in names if callable(getattr(type(pipeline), name, None))]
    # In older pipelines `_encode_prompt` is what `encode_prompt` was called before.
    own = [name for name in own if not (name[0] == "_" and name[1:] in own)]
    if not own or rules is None:
        raise CannotKnow(f"a {host.kind.__name__} has no method that encodes prompts: {_OTHERWISE}")
    device = getattr(pipeline, "_execution_device", None) or next(host.parameters()).device
    known = {"prompt": list(texts), "device": device, "num_images_per_prompt": 1}
    known["do_classifier_free_guidance"] = False
    with torch.no_grad():
        for name in own:
            arguments = _arguments(host.kind, name, known, rules.negative)
            getattr(pipeline, name)(**arguments)


_OTHERWISE = (
    "make a host of one of its models, or of it with Host.of(pipeline, prompt=function) that makes "
    "its call"
)


def _arguments(kind: type, method: str, known: Mapping[str, Any], negative: str) -> dict[str, Any]:
    """Return the arguments with which a pipeline's own call has a method encode some prompts.

    Args:
        kind: The pipeline's class.
        method: Of it.
        known: What is known of them.
        negative: What begins the names of arguments with negative prompts.

    Raises:
        CannotKnow: It needs more.
    """
    takes = inspect.signature(getattr(kind, method)).parameters
    call = inspect.signature(kind.__call__).parameters
    given = {key: value for key, value in known.items() if key in takes}
    for name, argument in takes.items():
        empty = argument.empty
        if name in given or name == "self" or argument.kind is argument.VAR_KEYWORD:
            continue
        if name in call and call[name].default is not empty and not name.startswith(negative):
            given[name] = call[name].default
        elif argument.default is empty and name.startswith(("prompt_", negative)):
            given[name] = None  # what a second encoder reads is then the first one's
        elif argument.default is empty:
            raise CannotKnow(f"{kind.__name__}.{method} needs {name!r}: {_OTHERWISE}")
    if "prompt" not in given:
        raise CannotKnow(f"{kind.__name__}.{method} takes no 'prompt': {_OTHERWISE}")
    return given
