"""The engine behind ``attach(..., via="nnsight")``."""

from __future__ import annotations

from vlm_edit.hooks import Bounds, Callback, Handle, Scope
from vlm_edit.hooks import attach as attach_to
from vlm_edit.host import Host, Model, Site


def attach(
    host: Host | Model,
    site: Site,
    callback: Callback,
    *,
    scope: Scope | Bounds = "process",
) -> Handle:
    """Run a callback on the output of a site's modules, as an intervention of nnsight.

    Like ``hooks.attach``, and in force for the same calls: whatever runs those modules, the
    host's own ``forward``, ``generate`` or features, or a trace of any nnsight model around it.
    Inside a trace it comes before the trace's own interventions, which see what it did.

    nnsight leaves a controller on each of the modules for good: it runs them as they are.

    Args:
        host: The host.
        site: One of its sites.
        callback: As in ``hooks.attach``.
        scope: As in ``hooks.attach``.

    Returns:
        A handle; ``handle.remove()`` leaves the host as it was.

    Raises:
        VlmEditError: No adapter for the host, a site that is what a method returns, or a module
            whose forward was replaced since nnsight wrapped it.

    Example:
        >>> import torch
        >>> from vlm_edit import find_sites, zoo
        >>> from vlm_edit.hooks import tracing
        >>> host, processor = zoo.load_host()
        >>> inputs = processor(text=["a cat"], return_tensors="pt")
        >>> site = find_sites(host)["joint"]
        >>> handle = tracing.attach(host, site, lambda hidden, tokens: hidden * 0)
        >>> host.get_text_features(**inputs).pooler_output.any().item()
        False
        >>> handle.remove()
        >>> host.get_text_features(**inputs).pooler_output.any().item()
        True
    """
    from vlm_edit.hooks.tracing.controller import Worker

    return attach_to(host, site, callback, Worker, scope)
