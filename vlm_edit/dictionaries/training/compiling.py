"""Compile the loss of a run, where there is a compiler."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from vlm_edit.ground.errors import BadArgument, line

# What a compiler would ask for: a name of it, and how it is had.
_MENDS = {"cuda": "triton (pip install triton)", "cpu": "a compiler of C++ (such as g++, or CXX)"}


def compiled(objective: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that does the same in compiled code.

    What searches and sorts as the figures of a step ask for (``apart`` names these methods) is left
    as it is, since it would be compiled anew for other sizes.

    Args:
        objective: With the names of such methods as ``apart``.
        device: Where it computes.

    Raises:
        BadArgument: Nothing can be compiled for the device.
    """
    _expect_compiler(device)
    for name in getattr(objective, "apart", ()):
        setattr(objective, name, torch.compiler.disable(getattr(objective, name)))
    return cast(nn.Module, torch.compile(objective))


def _expect_compiler(device: torch.device) -> None:
    """Compile a product of two numbers, which fails where a loss would fail after its set-up."""
    x = torch.ones(2, device=device)
    try:
        torch.compile(lambda a: (a * 3 + 1).sum())(x)
    except (RuntimeError, ImportError, OSError) as error:
        what = _MENDS.get(device.type, f"what torch.compile asks for on {device.type}")
        raise BadArgument(
            f"compile asks for {what}, and torch.compile failed on {device} ({line(error)[:200]}): "
            "install it, or leave compile out"
        ) from error
