"""What is remembered of a host: enough to tell most others apart, not every one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.errors import VlmEditError
from vlm_edit.sites import Host, PipelineHost, Site, unwrap

PIPELINE = "pipeline"
_SAMPLES = 16
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def fingerprint(model: Host, sites: Sequence[Site]) -> dict[str, Any]:
    """Architecture, and a few weights of each of the sites' modules, as JSON-able values.

    Args:
        model: The host.
        sites: Sites of the host that a patch edits.
    """
    host = unwrap(model)
    return {
        # Many pipelines share their encoders, which their weights tell.
        "architecture": PIPELINE if isinstance(host, PipelineHost) else _class_of(host).__name__,
        "model_type": getattr(getattr(host, "config", None), "model_type", None),
        "sites": {
            site.name: {
                "width": site.width,
                "weights": {tap.path: _sample(tap.module) for tap in site.taps},
            }
            for site in sites
        },
    }


def host_name(model: Host) -> str | None:
    """What transformers loaded a host from: a name on the hub or a path; None if it did not."""
    name = getattr(getattr(unwrap(model), "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and name else None


def hub_name(model: Host) -> str | None:
    """A host's ``owner/name`` on the hub; None for a path, which is nobody else's business."""
    name = host_name(model)
    return name if name and _HUB.fullmatch(name) and not os.path.exists(name) else None


def expect_host(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """Refuse a host that is not the one a patch was made for.

    Weights are compared to 2 % of their scale, so that a host in half precision passes; weights
    that cannot be read (quantised, offloaded) are passed over.

    Raises:
        VlmEditError: Another architecture, width or other weights.
    """
    mend = "attach it to the host it was made for, or pass check_host=False"
    for key in ("architecture", "model_type"):
        if expected[key] != actual[key]:
            raise VlmEditError(
                f"the patch was made for a host with {key} {expected[key]!r}, this one has "
                f"{actual[key]!r}: {mend}"
            )
    for name, site in expected["sites"].items():
        found = actual["sites"][name]
        if site["width"] != found["width"]:
            raise VlmEditError(
                f"site {name!r} is {site['width']} wide in the patch's host, {found['width']} in "
                f"this one: {mend}"
            )
        if len(site["weights"]) != len(found["weights"]):
            raise VlmEditError(
                f"site {name!r} is {len(site['weights'])} modules in the patch's host, "
                f"{len(found['weights'])} in this one: {mend}"
            )
        pairs = zip(site["weights"].items(), found["weights"].values(), strict=True)
        for (path, weights), here in pairs:
            if weights and here and not same_weights(weights, here):
                raise VlmEditError(
                    f"the weights at {path} differ from those of the host this patch was made "
                    f"for: {mend}"
                )


def _class_of(host: nn.Module) -> type:
    """The host's class, behind one that FSDP has made of it."""
    classes = type(host).__mro__
    return next(c for c in classes if not c.__module__.startswith("torch.distributed"))


def same_weights(expected: list[float], actual: list[float]) -> bool:
    """Whether samples of weights are one another's to 2 % of their scale."""
    a, b = torch.tensor(expected), torch.tensor(actual)
    return a.shape == b.shape and bool(((a - b).abs() <= 0.02 * a.abs().max()).all())


def _sample(module: nn.Module) -> list[float] | None:
    """Evenly spaced entries of a module's largest parameter; None where it cannot be read."""
    largest: Tensor | None = max(module.parameters(), key=Tensor.numel, default=None)
    sharded = hasattr(largest, "full_tensor")  # reading it would wait for all processes
    if largest is None or largest.is_meta or sharded or not largest.is_floating_point():
        return None
    flat, count = largest.detach().flatten(), min(_SAMPLES, largest.numel())
    # Whole numbers: a float32 linspace runs past the end of a large parameter.
    index = [i * (flat.numel() - 1) // max(count - 1, 1) for i in range(count)]
    return [round(float(v), 6) for v in flat[index].float().cpu()]
