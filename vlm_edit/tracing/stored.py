"""The same patch inside nnsight: the only room that imports nnsight, and only when used.

Importing nnsight changes torch for the whole process (it patches ``Tensor.backward`` among
others), so nothing else of this library does.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import Where, hidden_of, read_call, replace_hidden
from vlm_edit.patches import Binding, Patch
from vlm_edit.patches.active import Active, Run
from vlm_edit.patches.report import Tally
from vlm_edit.sites import Adapter, Tap, find_adapter

if TYPE_CHECKING:
    from nnsight import NNsight


def edited(model: NNsight, patch: Patch, adapter: Adapter | None = None) -> NNsight:
    """A copy of an nnsight model whose traces run with a patch.

    The model itself stays as it is, and both share the host's weights. Outputs equal, bit for
    bit, those of the host with the patch attached by hooks.

    Args:
        model: An ``nnsight.NNsight`` around the host.
        patch: Checked against the host as by ``Patch.attach``.
        adapter: The host's adapter; by default found.

    Returns:
        The edited model. Its ``trace`` and ``interleave`` run with the patch, at every step of
        ``generate`` too; calls of the host outside them do not.

    Raises:
        VlmEditError: Not an nnsight model, or the patch does not fit the host.

    Example:
        >>> import nnsight, torch
        >>> from vlm_edit import Ablate, Patch, tracing, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch.at("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> traced = tracing.edited(nnsight.NNsight(host), patch)
        >>> inputs = processor(
        ...     text=["a cat"], images=[zoo.load_pairs().open(0)], return_tensors="pt"
        ... )
        >>> with torch.no_grad(), traced.trace(**inputs):
        ...     logits = traced.output.logits_per_image.save()
        >>> logits.shape
        torch.Size([1, 1])
    """
    root = getattr(model, "_module", None)
    if not isinstance(root, nn.Module):
        raise VlmEditError(
            f"tracing.edited takes an nnsight model, got a {type(model).__name__}: wrap the host "
            "with nnsight.NNsight(host), or use patch.attach(host)"
        )
    adapter = adapter or find_adapter(root)
    for binding, site in patch.check(root, adapter):
        for tap in site.taps:
            model = _store(model, root, binding, tap, adapter)
    return model


def _store(model: Any, root: nn.Module, binding: Binding, tap: Tap, adapter: Adapter) -> NNsight:
    """One stored edit per module: each may then wait for its own, whatever the host's order."""
    signature = inspect.signature(root.forward)
    active = Active(binding, Run.of(), Tally(binding.site, torch.device("cpu")))
    with model.edit() as (tracer, copy):
        step = 0
        try:
            for step in tracer.iter[:]:  # noqa: B007
                where = Where(tap.stream)
                if tap.stream != "image":
                    args, kwargs = copy.inputs
                    named = signature.bind_partial(*args, **kwargs).arguments
                    where = Where(tap.stream, read_call(root, adapter, named))
                envoy = copy.get(tap.path)
                output = envoy.output
                hidden = hidden_of(output, tap.module)
                envoy.output = replace_hidden(output, active(hidden, where))
        except Exception as error:
            # An open loop ends by this error, when the host makes no further step.
            if step == 0 or type(error).__name__ != "OutOfOrderError":
                raise
    return cast("NNsight", copy)
