"""Pipelines: objects that hold several hosts, and are no ``torch.nn.Module`` themselves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from torch import nn

from vlm_edit.ground.errors import BadArgument, VlmEditError
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
