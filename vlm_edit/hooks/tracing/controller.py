"""What stands on a module while an edit of nnsight is attached to it. Imports nnsight.

nnsight replaces a module's ``forward`` by a controller, which hands input and output to the run
under way: a trace, or ``interleave``. Its stored edits are part of such a run, so they miss the
calls that the host's own code makes. Here the run comes to the module instead: each call joins
the run under way with one worker more, or is a run of its own.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from nnsight.intervention.interleaver import GreenletExit, Interleaver, Mediator
from nnsight.intervention.source import Controller, install_controller
from torch import nn

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.hooks import Dispatcher, OnHost
from vlm_edit.host import Tap

_PATH = "site"  # of the module in a run of its own
_RUN = compile("run()", "<vlm_edit>", "exec")  # a mediator runs code, not functions
# Said where a compiled graph breaks here; torch before 2.7 takes no reason.
_REASON = (
    {"reason": "nnsight cannot be compiled: attach the patch with via='hooks'"}
    if "reason" in inspect.signature(torch.compiler.disable).parameters
    else {}
)


class _Own(threading.local, Interleaver):  # type: ignore[misc]
    """A run of nnsight for each thread: one that is under way shows in its own thread only."""


class Worker(Dispatcher):
    """The callbacks of one module, run by a worker of nnsight in each of its calls."""

    installed: weakref.WeakKeyDictionary[nn.Module, dict[str | None, Dispatcher]] = (
        weakref.WeakKeyDictionary()
    )

    def install(self, tap: Tap) -> Any:
        """Put an entry over the module's controller.

        Raises:
            VlmEditError: The tap is a method, or something else lies over the controller.
        """
        if tap.method is not None:
            raise CannotKnow(
                f"{tap.path!r} is a method, and nnsight sees modules only: attach the patch with "
                "via='hooks'"
            )
        if tap.columns is not None:
            raise CannotKnow(
                f"the site is what {tap.path!r} is called with, or a part of it, and "
                "via='nnsight' edits outputs: attach the patch with via='hooks'"
            )
        self.own = _Own()
        self.lock = threading.RLock()  # a run of nnsight is for one thread
        # An envoy of this module alone: NNsight(module) would take its submodules along.
        state = install_controller(
            SimpleNamespace(_module=tap.module, path=_PATH, interleaver=self.own)
        )
        if type(tap.module.__dict__["forward"]) is not Controller:
            raise CannotKnow(
                f"the forward of {tap.path!r} was replaced after nnsight wrapped the module: "
                "attach the patch with via='hooks', or wrap the host last"
            )
        return _Entry(tap.module, state, self)


class _Entry(OnHost, Controller):  # type: ignore[misc]
    """The module's controller, with a worker of ours in every run."""

    def __init__(self, module: nn.Module, state: Any, worker: Worker) -> None:
        super().__init__(module, state)
        self._worker = worker
        module.__dict__["forward"] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the plain controller of a copied module."""
        return Controller.__deepcopy__(self, memo)

    def below(self) -> Controller:
        """Return the plain controller."""
        return Controller(self.module_ref(), self.state)

    def remove(self) -> None:
        """Put the plain controller back, unless another's wrapper lies over this one."""
        self.off, module = True, self.module_ref()
        if module is not None and module.__dict__.get("forward") is self:
            module.__dict__["forward"] = self.below()

    @torch.compiler.disable(**_REASON)  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with a worker of ours in the run."""
        if not self._worker.callbacks:
            return super().__call__(*args, **kwargs)
        # The run whose turn the controller is going to take, as it finds it.
        running, path, _ = self.state.active()
        turn = nullcontext() if running is None else self._worker.lock
        with turn, _working(running or self._worker.own, self._edit(path or _PATH)):
            return super().__call__(*args, **kwargs)

    def _edit(self, path: str) -> Mediator:
        location = f"{path}.output"
        caller = contextvars.copy_context()  # a greenlet begins with an empty one

        def run() -> None:
            output = Mediator.value(location)
            edited = caller.run(self._worker.edit, self.module_ref(), output)
            Mediator.swap(location, edited)

        return Mediator(_RUN, {}, {"run": run})


@contextmanager
def _working(interleaver: Interleaver, worker: Mediator) -> Iterator[None]:
    """Give a run one worker more, which comes first; begin it if it is not under way."""
    before = interleaver.interleaving
    interleaver.mediators = [worker, *interleaver.mediators]
    interleaver.interleaving = True
    try:
        worker.start(interleaver)
        interleaver.reindex()
        yield
    finally:
        if worker.alive:  # the module failed before it had an output
            worker.worker.throw(GreenletExit)
        interleaver.mediators = [m for m in interleaver.mediators if m is not worker]
        interleaver.interleaving = before
        interleaver.reindex()
