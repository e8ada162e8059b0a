"""What the checkpoint of a training run holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def read_facts(checkpoint: Path) -> dict[str, str]:
    """Read the header of a checkpoint: its step and recipe."""
    with safe_open(checkpoint, "pt") as file:
        facts: dict[str, str] = file.metadata()
    return facts


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts so, without that start."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimizers, by their names."""
    return {
        f"{name}.{index}.{key}": value
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Give optimizers the state that `optimizer_tensors` took.

    Args:
        optimizers: By the same names.
        tensors: What a checkpoint holds.
    """
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in below(tensors, f"{name}.").items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
