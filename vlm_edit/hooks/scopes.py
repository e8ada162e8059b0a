"""In whose forwards a callback acts: the process's, one thread's, or one context's."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditWarning
from vlm_edit.hooks.on_host import OnHost, hook_on

Scope = Literal["process", "thread", "context"]
Run = Callable[[Tensor], Tensor]


class _Mark:
    """A mark that lives as long as the thread, or the contexts, that hold it."""

    over = False


class Bounds:
    """Whose forwards an attachment is for, and what is taken off once those are over.

    Attributes:
        scope: ``process`` here; a thread's and a context's are subclasses.
        over: Whether its thread or context ended before it was taken off.
        passed: Whether a forward of others went by unedited.
    """

    scope: Scope = "process"

    def __init__(self) -> None:
        self.over = self.passed = False
        self._undo: list[Callable[[], None]] = []

    @staticmethod
    def of(scope: Scope | Bounds) -> Bounds:
        """Return the bounds of a scope that begins here; bounds come back as they are.

        Raises:
            BadArgument: An unknown word.
        """
        if isinstance(scope, Bounds):
            return scope
        if scope not in get_args(Scope):
            raise BadArgument(
                f"scope is {scope!r}; use 'process', 'thread' for this thread alone, or 'context' "
                "for this context of contextvars, such as an asyncio task"
            )
        kinds: dict[str, type[Bounds]] = {"thread": ThreadBounds, "context": ContextBounds}
        return kinds.get(scope, Bounds)()

    def hold(self) -> bool:
        """Return whether the caller's forwards are meant."""
        return True

    def limit(self, run: Run) -> Run:
        """Return a callback that acts where these bounds hold."""
        return run

    def when_over(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` when the thread or context ends before that was taken off."""
        self._undo.append(undo)

    def leave(self) -> None:
        """Forget what marks the caller's context, once all was taken off."""
        self._undo = []

    def carrying(self) -> contextvars.Context | None:
        """Return a copy of the caller's context in which these hold too; None if any will do.

        Raises:
            BadArgument: Nothing can carry them.
        """
        return None

    def _end_with(self, mark: _Mark) -> None:
        ending = weakref.finalize(mark, _end, weakref.ref(self))
        ending.atexit = False


class ThreadBounds(Bounds):
    """The forwards of the thread that made this, until it ends.

    The mark lies in a ``threading.local``, not in an identity, which Python gives to another
    thread once one has ended. Compiled code guards on it in the thread that calls.
    """

    scope: Scope = "thread"

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()
        self.local.mark = mark = _Mark()
        self._end_with(mark)

    def hold(self) -> bool:
        """Return whether this is the thread."""
        return getattr(self.local, "mark", None) is not None

    def limit(self, run: Run) -> Run:
        """Return a callback that passes hidden states of other threads on."""
        return InThread(run, self)

    def carrying(self) -> contextvars.Context | None:
        """Refuse: no other thread is this one."""
        raise BadArgument(
            "scope='thread' acts in the thread that attached and in no other: attach with "
            "scope='context', whose wrap carries the patch to other threads"
        )


_marks: contextvars.ContextVar[Mapping[int, _Mark] | None] = contextvars.ContextVar(
    "vlm_edit attachments", default=None
)


class ContextBounds(Bounds):
    """The forwards of the context that made this, and of its copies, until all of them are gone.

    Contexts hold the mark, this does not. Compiled code cannot read a context: what the host's
    entry has read lies in a ``threading.local`` while the host runs, and is guarded on there.
    """

    scope: Scope = "context"

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()
        mark = _Mark()
        self._mark = weakref.ref(mark)
        self._end_with(mark)
        _put(id(self), mark)

    def hold(self) -> bool:
        """Return whether this is the context, or a copy of it."""
        marks = _marks.get()
        return marks is not None and id(self) in marks and marks[id(self)] is self._mark()

    def limit(self, run: Run) -> Run:
        """Return a callback that passes hidden states of other contexts on."""
        return InContext(run, self)

    def leave(self) -> None:
        """Take the mark out of the caller's context; copies of it keep one that means nothing."""
        super().leave()
        mark = self._mark()
        if mark is not None:
            mark.over = True
            _put(id(self), None)

    def carrying(self) -> contextvars.Context:
        """Return a copy of the caller's context with the mark, wherever the caller is.

        Raises:
            BadArgument: The context has ended.
        """
        mark, context = self._mark(), contextvars.copy_context()
        if mark is None or mark.over:
            raise BadArgument(
                "the patch is no longer on the host: it was removed, or its context has ended; "
                "wrap the function while it is attached"
            )
        context.run(_put, id(self), mark)
        return context

    def enter(self) -> None:
        """Tell compiled code in this thread, where the host is entered, whether these hold."""
        self.local.here = self.hold()

    def exit(self) -> None:
        """Tell it nothing any more."""
        self.local.here = None


class Entry:
    """What is asked where a host is entered, outside of what may be compiled.

    Attributes:
        contexts: Bounds that are asked.
    """

    def __init__(self) -> None:
        self.contexts: tuple[ContextBounds, ...] = ()

    def watch(self, bounds: Bounds, model: Any) -> Callable[[], None]:
        """Ask bounds of a context at each entry from now on; those of other kinds need it not.

        Args:
            bounds: Of an attachment.
            model: The host as it was given: in ``torch.compile`` that is an entry too.

        Returns:
            What ends that.
        """
        if not isinstance(bounds, ContextBounds) or bounds in self.contexts:
            return lambda: None
        self.contexts += (bounds,)
        undo: list[Callable[[], None]] = []
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            undo += [
                hook_on(model, _Ask(bounds.enter), before=True).remove,
                hook_on(model, _Ask(bounds.exit), always_call=True).remove,
            ]

        def end() -> None:
            self.contexts = tuple(other for other in self.contexts if other is not bounds)
            while undo:
                undo.pop()()

        return end

    def enter(self) -> None:
        """Tell compiled code in this thread which bounds hold, until ``exit``."""
        for bounds in self.contexts:
            bounds.enter()

    def exit(self) -> None:
        """Tell it nothing any more."""
        for bounds in self.contexts:
            bounds.exit()


class _Ask(OnHost):
    """The hook before, or behind, a compiled model."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask

    def __call__(self, *_: Any) -> None:
        self._ask()


class InThread:
    """A callback that acts in one thread, and passes hidden states on in all others."""

    def __init__(self, run: Run, bounds: ThreadBounds) -> None:
        self._run, self._bounds, self._local = run, bounds, bounds.local

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the hidden state that the host goes on with."""
        if getattr(self._local, "mark", None) is not None:
            return self._run(hidden)
        if not torch.compiler.is_compiling():
            _pass_by(self._bounds)
        return hidden


class InContext:
    """A callback that acts in one context, and passes hidden states on in all others."""

    def __init__(self, run: Run, bounds: ContextBounds) -> None:
        self._run, self._bounds, self._local = run, bounds, bounds.local

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the hidden state that the host goes on with."""
        if torch.compiler.is_compiling():
            here = getattr(self._local, "here", None)
            if here is None:
                # Nothing outside of this graph was asked. torch breaks it to read a context, and
                # where it may not (fullgraph) says so: attach to the compiled model instead.
                here = self._bounds.hold()
            return self._run(hidden) if here else hidden
        if self._bounds.hold():
            return self._run(hidden)
        _pass_by(self._bounds)
        return hidden


def warn_of_loop(bounds: Bounds, stacklevel: int) -> None:
    """Warn where a thread's patch is attached inside an event loop, whose tasks share a thread.

    Args:
        bounds: Of what is attached.
        stacklevel: As of ``warnings.warn``, seen from here.
    """
    if bounds.scope != "thread":
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    warnings.warn(
        "scope='thread' inside an event loop: every coroutine of the loop runs in this thread, so "
        "the patch acts in all of them from now on; use scope='context', which is the task's own",
        VlmEditWarning,
        stacklevel=stacklevel + 1,
    )


def _put(key: int, mark: _Mark | None) -> None:
    """Put a mark into the caller's context, or take it out."""
    marks = {k: m for k, m in (_marks.get() or {}).items() if k != key and not m.over}
    _marks.set({**marks, key: mark} if mark is not None else marks or None)


def _end(reference: weakref.ref[Bounds]) -> None:
    bounds = reference()
    if bounds is None or not bounds._undo:
        return
    bounds.over, undo = True, bounds._undo
    bounds._undo = []
    for function in undo:
        function()


def _pass_by(bounds: Bounds) -> None:
    """Note a forward of others, and refuse one in a thread of autograd's.

    On an accelerator autograd runs checkpointed layers again in a thread of its own.
    """
    bounds.passed = True
    if not torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1:
        return
    if isinstance(threading.current_thread(), threading._DummyThread):
        raise CannotKnow(
            "gradient checkpointing runs this layer again in a thread of autograd's, where nobody "
            f"can tell whether a patch attached with scope={bounds.scope!r} is meant: attach it "
            "with scope='process', or turn checkpointing off"
        )
