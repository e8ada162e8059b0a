"""What others call the places inside of a layer, and what sites here do."""

from __future__ import annotations

import re

# The ends of hooks of TransformerLens, whose names SAELens and circuit-tracer use. ``hook_mlp_in``
# is the stream before the norm there, and what SAELens calls Gemma Scope 2's input, behind it.
_HOOKS = {
    "mlp.hook_in": "mlp_in",
    "hook_resid_mid": "mid",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp",
    "hook_resid_post": "",
}
# The ends of paths of modules, with which of their two ends is meant.
_MODULES = {
    "pre_feedforward_layernorm.output": "mlp_in",
    "pre_feedforward_layernorm.input": "mid",
    "post_feedforward_layernorm.output": "mlp_out",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp",
    "mlp": "mlp",
}
_LAYER = re.compile(r"(?:^|\.)\d+\.")


def place_of(hook: object) -> str | None:
    """Return the place inside of a layer that a hook's name means; None where that is not sure.

    Example:
        >>> place_of("blocks.3.hook_mlp_out"), place_of("model.layers.3.mlp.input")
        ('mlp_out', 'mlp_in')
        >>> place_of("blocks.3.ln2.hook_normalized") is None
        True
    """
    if not isinstance(hook, str):
        return None
    ending = _LAYER.split(hook)[-1]
    return {**_HOOKS, **_MODULES}.get(ending)


def inside_of(hook: object) -> tuple[int, str] | None:
    """Return the layer and the place inside of it that a hook's name means; None for others.

    Example:
        >>> inside_of("blocks.3.hook_mlp_out"), inside_of("blocks.3.hook_resid_post")
        ((3, 'mlp_out'), None)
    """
    place = place_of(hook)
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.)", str(hook))
    return (int(numbers[0]), place) if place and len(numbers) == 1 else None
