"""The host inside what others wrap around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import nn

from vlm_edit.host.pipelines import Model, host_of_pipeline


def unwrap(model: Model) -> nn.Module:
    """Return the host inside wrappers of torch.compile, data parallelism, FSDP 1 and peft.

    A pipeline of hosts becomes one host, of which its models are parts.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(linear)) is linear
        True
    """
    if not isinstance(model, nn.Module):
        if isinstance(getattr(model, "components", None), Mapping):
            return host_of_pipeline(model, unwrap)
        return cast("nn.Module", model)  # of no use as a host; who needs one says so
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None:
            inner = getattr(model, "_fsdp_wrapped_module", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if inner is None and hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            inner = cast(Callable[[], nn.Module], model.get_base_model)()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner
