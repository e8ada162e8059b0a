"""A host with weights drawn anew: what its architecture gives without training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.host.fingerprint import loaded_as
from vlm_edit.host.host import Host
from vlm_edit.host.pipelines import Model, class_of

# Of modules that draw their own weights: torch's own, and its attention's.
_RESETS = ("reset_parameters", "_reset_parameters")


def random_host(host: Host | Model, seed: int = 0) -> Host:
    """Make a copy of a host with weights as before any training; the given one stays as it is.

    A model of transformers is built anew from its config, which draws weights as its authors do.
    Of any other a copy is made, and each of its modules asked to draw its own anew.

    Args:
        host: The host; not a pipeline.
        seed: Of the weights.

    Returns:
        A host of the same class, processor, prompt, device, dtype and mode; what was loaded in
        eight or four bits comes in the dtype of its other weights.

    Raises:
        BadArgument: A pipeline.
        CannotKnow: A weight belongs to no module that can draw it anew.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> null = random_host(host)
        >>> null
        Host(CLIPModel with 8 sites and a CLIPProcessor)
        >>> bool((null.model.visual_projection.weight == host.model.visual_projection.weight).any())
        False
    """
    host = Host.of(host)
    if host.is_pipeline:
        raise BadArgument(
            f"{host.kind.__name__} is several models: give the one whose weights are to be drawn "
            "anew, as Host.of(pipeline.text_encoder)"
        )
    root = host.root
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(root, "config", None)
        if config is not None and hasattr(root, "_init_weights"):
            model: nn.Module = class_of(root)(copy.deepcopy(config))
        else:
            model = _redrawn(root)
    dtype = loaded_as(host)["dtype"].split(" and ")[0]
    model = model.to(device=host.device, dtype=getattr(torch, dtype))
    return Host.of(model.train(root.training), host.processor, host._given, host.prompt)


def _redrawn(root: nn.Module) -> nn.Module:
    """Copy a module on the CPU, where seeds draw the same everywhere, and draw it anew."""
    model = copy.deepcopy(root).cpu()
    left = {name for name, _ in model.named_parameters()}
    for path, module in model.named_modules():
        reset = next((getattr(module, name) for name in _RESETS if hasattr(module, name)), None)
        if reset is not None:
            reset()
            left -= {f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters()}
    if left:
        raise CannotKnow(
            f"nobody knows how {sorted(left)[0]} and {len(left) - 1} more weights of "
            f"{type(root).__name__} are drawn: give its modules a reset_parameters(), or build one "
            "anew and pass Host.of(model, processor)"
        )
    return model
