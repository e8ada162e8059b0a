"""A callback for one thread of many that run one host."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow

Threads = Literal["all", "own"]


class InThread:
    """Run a callback in the thread that made this, and pass hidden states on in all others.

    The mark lies in a ``threading.local``, not in an identity, which Python gives to another
    thread once one has ended. Compiled code guards on it in the thread that calls.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self._run = run
        self._local = threading.local()
        self._local.mark = _Mark()
        self._undo: Callable[[], None] | None = None

    def end_with_thread(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` when the thread ends before the callback was taken off."""
        self._undo = undo
        ending = weakref.finalize(self._local.mark, _end, weakref.ref(self))
        ending.atexit = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the hidden state that the host goes on with."""
        if getattr(self._local, "mark", None) is not None:
            return self._run(hidden)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            _expect_forward()
        return hidden


class _Mark:
    """A mark that lives as long as the thread, or the callback."""


def expect_threads(threads: Any) -> None:
    """Refuse a word that is not one of ``Threads``.

    Raises:
        VlmEditError: Another.
    """
    if threads not in get_args(Threads):
        raise BadArgument(f"threads is {threads!r}; use 'all', or 'own' for this thread alone")


def _end(callback: weakref.ref[InThread]) -> None:
    runner = callback()
    if runner is not None and runner._undo is not None:
        runner._undo()


def _expect_forward() -> None:
    """Refuse a call in a thread of autograd's.

    On an accelerator autograd runs checkpointed layers again in a thread of its own.
    """
    if torch._C._current_graph_task_id() == -1:
        return
    if isinstance(threading.current_thread(), threading._DummyThread):
        raise CannotKnow(
            "gradient checkpointing runs this layer again in a thread of autograd's, where nobody "
            "can tell whether a patch attached with threads='own' is meant: attach it with "
            "threads='all', or turn checkpointing off"
        )
