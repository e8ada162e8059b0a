"""Which part of a measurement this process has, by what was typed or by its launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Measure
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.launch import Share, share_of


@dataclass(frozen=True)
class Place:
    """Say which part is measured, and how.

    Attributes:
        options: The arguments, with the process's own device.
        part: (i, n), counted from 0.
        speaks: Whether it tells how it went; of those that a launcher starts, the first does.
    """

    options: Measure
    part: tuple[int, int]
    speaks: bool = True


def place_of(options: Measure) -> Place:
    """Return which part is to be measured, and tell in a line on standard error who says so.

    Raises:
        BadArgument: ``--part`` is none, or the environment contradicts itself.
    """
    if options.part is not None:
        return Place(options, _part(options.part))
    share = share_of(os.environ)
    if share is None:
        _warn_of_idle_tasks(os.environ)
        return Place(options, (0, 1))
    device = own_device(options, share)
    if not options.quiet:
        at = f", on {device}" if device != options.device else ""
        print(
            f"vlm-edit: part {share.rank + 1} of {share.of}{at}, by {share.said_by}",
            file=sys.stderr,
        )
    if share.rank:
        telling.hush()
    options = replace(options, device=device, quiet=options.quiet or share.rank > 0)
    return Place(options, (share.rank, share.of), share.rank == 0)


def own_device(options: Measure, share: Share) -> str:
    """Return the device of a process, of those that its machine has, and make it the current one.

    Args:
        options: What was typed; a device with a number, or a map of them, stays.
        share: Which process it is.
    """
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None or share.local is None or options.device_map is not None:
        return options.device
    if options.device not in ("auto", kind.type):
        return options.device
    # A launcher may show each process one device alone.
    number = share.local % torch.accelerator.device_count()
    torch.accelerator.set_device_index(number)
    return f"{kind.type}:{number}"


def _warn_of_idle_tasks(environment: Mapping[str, str]) -> None:
    count = environment.get("SLURM_NTASKS", "")
    if count.isdecimal() and int(count) > 1:
        telling.warn(
            f"this process measures all pairs alone, though SLURM_NTASKS is {count}: srun before "
            "the command shares them among the tasks"
        )


def _part(text: str) -> tuple[int, int]:
    """Return the part counted from 0, and how many there are; typed from 1."""
    try:
        i, n = (int(number) for number in text.split("/"))
    except ValueError as error:
        raise BadArgument(f"--part takes I/N, such as 2/4, got {text!r}") from error
    if not 1 <= i <= n:
        raise BadArgument(f"--part {text}: I must lie between 1 and N")
    return i - 1, n
