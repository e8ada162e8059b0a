"""One command in several processes, as torchrun starts them: the first tells and writes."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vlm_edit.cli.arguments import Train
from vlm_edit.ground.errors import BadArgument, VlmEditError, line

# Others wait for the first while it collects; in a step nobody is so late.
_WHILE_IT_COLLECTS, _IN_A_STEP = timedelta(days=30), timedelta(minutes=10)
_LOST = re.compile(r"gloo|nccl|peer|timed? ?out|socket|store", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """The processes of a command.

    Attributes:
        rank: This one's number.
        count: How many there are.
        device: Where this one computes.
        waiting: The group in which others wait for the first, however long it takes.
    """

    rank: int
    count: int
    device: torch.device
    waiting: Any = None

    def lead(self, do: Callable[[], Any]) -> Any:
        """Have the first process do something; return in all what it returned.

        Args:
            do: What; it returns what JSON knows.

        Raises:
            SystemExit: In the others, where it fails in the first, which tells why.
        """
        if self.count == 1:
            return do()
        if self.rank == 0:
            try:
                value = do()
            except BaseException:
                self._passed_on({"failed": True})
                raise
            self._passed_on({"value": value})
            return value
        told = self._passed_on({})
        if "failed" in told:
            raise SystemExit(2)
        return told["value"]

    def _passed_on(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return in all processes what the first gives."""
        data = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self.waiting)
        data = data if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self.waiting)
        value: dict[str, Any] = json.loads(data.numpy().tobytes())
        return value


@contextmanager
def processes_of(options: Train) -> Iterator[Processes]:
    """Join the processes that torchrun has started, or be alone; they part at the end.

    Raises:
        VlmEditError: They cannot find each other, or one of them was lost.
    """
    rank, count = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    device = _device(options.device, int(os.environ.get("LOCAL_RANK", rank)), count)
    if count == 1:
        yield Processes(0, 1, device)
        return
    own, failed = not dist.is_initialized(), True
    try:
        if own:
            _join(device)
        waiting = dist.new_group(backend="gloo", timeout=_WHILE_IT_COLLECTS)
        yield Processes(rank, count, device, waiting)
        failed = False
    except VlmEditError as error:
        raise (type(error)(f"process {rank}: {error}") if rank else error) from error
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise VlmEditError(
            f"process {rank} has lost the others, of which one has ended or hangs, and says why if "
            f"it can ({line(error)[:200]}): the same command goes on where a checkpoint was written"
        ) from error
    finally:
        # Where one has failed, NCCL would wait for what it never sends; torchrun ends the others.
        if own and dist.is_initialized() and not (failed and device.type == "cuda"):
            dist.destroy_process_group()


@contextmanager
def hushed(taken: Any) -> Iterator[Any]:
    """Yield what was typed: in a process that is not the first, without what it tells."""
    others = isinstance(taken, Train) and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not others or int(os.environ.get("RANK", 0)) == 0:
        yield taken
        return
    with redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield replace(taken, json=False, tables=None, quiet=True)


def _join(device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=_IN_A_STEP)
    except (ValueError, RuntimeError) as error:
        raise VlmEditError(
            f"RANK and WORLD_SIZE say that this is one of several processes, and they cannot find "
            f"each other ({line(error)[:200]}): start them by torchrun, or unset both"
        ) from error


def _device(name: str, local: int, count: int) -> torch.device:
    """Return where a process trains: on a card of its own, where there are any."""
    if count > 1 and ":" in name:
        raise BadArgument(
            f"--device {name} names one card for {count} processes: give cuda, and each takes its "
            "own by LOCAL_RANK"
        )
    if name not in ("auto", "cpu", "mps") and not name.startswith("cuda"):
        raise BadArgument(f"--device {name}: take auto, cpu, cuda or one card, such as cuda:1")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadArgument(f"--device {name}: torch sees no such card here; give auto or cpu")
    cuda = torch.cuda.is_available() and (name == "auto" or name.startswith("cuda"))
    if not cuda:
        return torch.device("cpu")
    if count > 1 and local >= torch.cuda.device_count():
        raise BadArgument(
            f"process {local} of this machine has no card: it has {torch.cuda.device_count()}; "
            "start one process for each, or give --device cpu"
        )
    return torch.device(name) if ":" in name else torch.device("cuda", local)
