"""What an nnsight model wraps, and a host's sites in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.host import Host, Model, Stream, unwrap

if TYPE_CHECKING:
    from nnsight import NNsight
    from nnsight.intervention.envoy import Envoy


def host_of(model: Host | Model | NNsight) -> Host:
    """Return the host that an nnsight model wraps, or the one of a model; a host is its own.

    A pipeline's models are one host together.

    Raises:
        VlmEditError: None of these, or an nnsight model that has not loaded its weights.

    Example:
        >>> import nnsight
        >>> from vlm_edit import zoo
        >>> from vlm_edit.hooks import tracing
        >>> host, _ = zoo.load_host()
        >>> tracing.host_of(nnsight.NNsight(host)).model is host
        True
    """
    if isinstance(model, Host | nn.Module):
        return Host.of(model)
    inner = getattr(model, "_module", None)
    if not isinstance(inner, nn.Module) and isinstance(unwrap(model), nn.Module):
        return Host.of(model)
    if not isinstance(inner, nn.Module):
        raise BadArgument(
            f"a {type(model).__name__} is no host: give a torch.nn.Module, an nnsight model "
            "around it, or a pipeline of diffusers"
        )
    if getattr(model, "dispatched", True) is False:
        raise BadArgument(
            f"the {type(model).__name__} has not loaded its weights yet, and will put other "
            "modules in the place of these: make it with dispatch=True"
        )
    return Host.of(inner)


def expect_model(model: Any, taker: str) -> Host:
    """Return the host inside what must be an nnsight model.

    Raises:
        VlmEditError: It is not, or it has not loaded its weights.
    """
    if isinstance(model, nn.Module) or not isinstance(getattr(model, "_module", None), nn.Module):
        raise BadArgument(
            f"{taker} takes an nnsight model, got a {type(model).__name__}: wrap the host with "
            "nnsight.NNsight(host), or use patch.attach(host)"
        )
    return host_of(model)


def at(model: NNsight, site: str, stream: Stream | None = None, host: Host | None = None) -> Envoy:
    """Return a site's module as nnsight sees it: read and set its ``.output`` inside a trace.

    Args:
        model: An ``nnsight.NNsight`` around the host.
        site: The site's name.
        stream: Which of its modules, for a site that has one per stream.
        host: The host it wraps, where it has an adapter of its own; by default made anew.

    Raises:
        VlmEditError: Not an nnsight model, no such site or stream, several modules to choose
            from, or a site that is what a method returns.

    Example:
        >>> import nnsight, torch
        >>> from vlm_edit import zoo
        >>> from vlm_edit.hooks import tracing
        >>> host, processor = zoo.load_host()
        >>> model = nnsight.NNsight(host)
        >>> inputs = processor(
        ...     text=["a cat"], images=[zoo.load_pairs().open(0)], return_tensors="pt"
        ... )
        >>> with torch.no_grad(), model.trace(**inputs):
        ...     hidden = tracing.at(model, "text.1").output.save()
        >>> hidden.shape[0]
        1
    """
    taps = wrapped_host(model, "tracing.at", host).site(site).taps
    matches = [tap for tap in taps if stream in (None, tap.stream)]
    if len(matches) != 1:
        streams = " or ".join(repr(tap.stream) for tap in taps)
        raise BadArgument(
            f"site {site!r} has a module for stream {streams}, and stream is {stream!r}: name one"
        )
    if matches[0].columns is not None:
        raise CannotKnow(
            f"site {site!r} is columns {matches[0].columns} of what {matches[0].path!r} is called "
            "with, not its output: read that module's .input"
        )
    return envoy_of(model, matches[0].module, matches[0].path)


def wrapped_host(model: Any, taker: str, host: Host | None) -> Host:
    """Return the host that an nnsight model wraps, which is the one that is named, if any is."""
    inner = expect_model(model, taker)
    if host is None:
        return inner
    if host.root is not inner.root:
        raise WrongHost(
            f"{taker}: the nnsight model wraps another {inner.kind.__name__} than host= names"
        )
    return host


def envoy_of(model: Any, module: nn.Module, path: str) -> Any:
    """Return the envoy of a module, by identity: its path may be spelled in other ways.

    Raises:
        VlmEditError: The module is not part of what the model wraps.
    """
    for envoy in model.modules():
        if envoy._module is module and not path.endswith("()"):
            return envoy
    raise CannotKnow(
        f"nnsight sees no module at {path!r}: it is a method, or was put in the host after "
        "nnsight wrapped it. Use patch.attach(host, via='hooks')"
    )
