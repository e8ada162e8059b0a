"""Attachment: a patch on a host."""

from __future__ import annotations

import contextvars
import functools
import inspect
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument, VlmEditWarning
from vlm_edit.ground.notebook import card, one_line
from vlm_edit.hooks import Bounds, Handle, choices, runs_of
from vlm_edit.patches.active import Active, Run, Strength, said_strength
from vlm_edit.patches.report import Report

P = ParamSpec("P")
R = TypeVar("R")

_numbers = itertools.count()


class Attachment(Handle):
    """A patch on a host, until ``remove`` or the end of a with-block.

    Attributes:
        actives: Its edits, in the patch's order.
        bounds: In whose forwards they act.
        number: Rises from one attachment to the next.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]), tokens="text")
        >>> with patch.attach(host) as attached:
        ...     _ = host.get_text_features(**processor(text=["a cat"], return_tensors="pt"))
        >>> print(attached.report())
        joint: 1 token edited in 1 call (1 text; 1 prompt)
    """

    def __init__(
        self,
        undo: list[Callable[[], None]],
        actives: Sequence[Active],
        shares: Sequence[Tensor] | None = None,
        root: nn.Module | None = None,
        bounds: Bounds | None = None,
        modules: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(undo)
        self.bounds, self.number = bounds or Bounds(), next(_numbers)
        self._modules = tuple(weakref.ref(module) for module in modules)
        self._root = None if root is None else weakref.ref(root)
        self._runs = 0 if root is None else runs_of(root)
        self.actives = tuple(actives)
        # Of each edit, 1 in the rows that are its own: a new strength must not reach the others.
        self._shares = tuple(shares or [torch.ones(1)] * len(self.actives))

    def __repr__(self) -> str:
        """Say on a line what it edits where, and how strongly."""
        return one_line(f"Attachment({self.words()})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with what was edited so far."""
        rows = [
            (active.binding.words(), f"{site.tokens:,}", f"{site.calls:,}")
            for active, site in zip(self.actives, self.report().sites, strict=True)
        ]
        paused = any(active.paused for active in self.actives)
        state = ("paused" if paused else "in force") if self.is_on else "removed"
        return card(f"Attachment, {state}", None, ("edit", "tokens edited", "calls"), rows)

    def words(self) -> str:
        """Return a line on what it edits where, how strongly and in whose forwards."""
        parts = [*dict.fromkeys(active.binding.words() for active in self.actives)]
        parts += [*dict.fromkeys(said_strength(active.run.strength) for active in self.actives)]
        if self.bounds.scope != "process":
            parts.append(f"scope {self.bounds.scope}")
        if self.actives and all(active.paused for active in self.actives):
            parts.append("paused")
        return "; ".join(parts if self.is_on else [*parts, "removed"])

    @property
    def is_on(self) -> bool:
        """Whether it is on the host: not removed, its thread or context still there."""
        return bool(self._undo) and not self.bounds.over

    def touches(self, modules: set[nn.Module]) -> bool:
        """Return whether it edits the output of one of these modules."""
        return any(reference() in modules for reference in self._modules)

    def when_off(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` once it is off the host."""
        self._undo.insert(0, undo)
        self.bounds.when_over(undo)

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, to be called in the context of this attachment by anybody.

        A thread that is started by hand, and ``loop.run_in_executor``, begin without the context
        of who starts them, and a patch of ``scope="context"`` does not act there. A patch of
        ``scope="process"`` acts anyway.

        Args:
            function: What calls the host, such as ``model.generate``; no coroutine or generator
                function, whose body runs where it is awaited or gone through.

        Returns:
            What takes the same arguments. Each call has a copy of this context of its own.

        Raises:
            BadArgument: Such a function, a patch of ``scope="thread"``, or one that was removed.

        Example:
            >>> import threading
            >>> from vlm_edit import Ablate, Patch, zoo
            >>> host, processor = zoo.load_host()
            >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
            >>> inputs = processor(text=["a cat"], return_tensors="pt")
            >>> with patch.attach(host, scope="context") as attached:
            ...     run = attached.wrap(host.get_text_features)
            ...     thread = threading.Thread(target=run, kwargs=dict(inputs))
            ...     thread.start()
            ...     thread.join()
            >>> attached.report().edited_tokens
            1
        """
        inner = inspect.unwrap(function)
        if any(kind(inner) for kind in _ELSEWHERE):
            raise BadArgument(
                f"{getattr(inner, '__name__', inner)!r} is a coroutine or generator function, "
                "whose body runs where it is awaited or gone through: wrap what it calls the host "
                "with; a task that is made inside the with-block carries the patch by itself"
            )
        context = self.bounds.carrying()

        @functools.wraps(function)
        def carried(*args: P.args, **kwargs: P.kwargs) -> R:
            own = contextvars.copy_context() if context is None else context.copy()
            return own.run(function, *args, **kwargs)

        return carried

    def report(self) -> Report:
        """Return what was really edited since the patch was attached; ask at any time."""
        return Report(tuple(active.tally.report for active in self.actives))

    def set_strength(self, strength: Strength) -> None:
        """Change how strongly the patch acts, in place: compiled code goes on as it is.

        Args:
            strength: As for ``Patch.attach``: one number, one per row of the batches to come, or
                such by stream. Rows that have a patch of their own, or none, keep it.

        Raises:
            VlmEditError: Not finite, of another shape; nothing has changed then.
        """
        rows = Run.of(strength).strength
        rows = torch.ones(1) if rows is None else rows
        if any(isinstance(r, Tensor) and r.ndim > 1 for r in (rows, *self._strengths())):
            raise BadArgument(
                "strengths per token belong to one prompt: attach the patch anew with them"
            )
        if isinstance(rows, Mapping):
            if any(len(own) > 1 for own in self._shares):
                raise BadArgument(
                    "strength is given by stream, and each row has a patch of its own: give one "
                    "number, or one per row"
                )
            for active in self.actives:
                active.set_strength(rows)
            return
        for own in self._shares:
            if len(rows) != len(own) and len(rows) > 1 and len(own) > 1:
                raise BadArgument(
                    f"strength has {len(rows)} values, the patches are given for {len(own)} rows: "
                    "give one value per row, or one for all"
                )
        for active, own in zip(self.actives, self._shares, strict=True):
            active.set_strength(rows * own.to(rows.device))

    def _strengths(self) -> Iterator[Tensor | Mapping[str, Tensor] | None]:
        return (active.run.strength for active in self.actives)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the host run unedited, and uncounted, while the block runs."""
        self.pause(True)
        try:
            yield
        finally:
            self.pause(False)

    def pause(self, paused: bool) -> None:
        """Let everything pass from now on, or act again."""
        for active in self.actives:
            active.paused = paused

    def remove(self) -> None:
        """Leave the host bit for bit as it was; calling it twice does nothing.

        Warns where the host ran and not one token was edited.
        """
        attached = bool(self._undo)
        self.detach()
        if attached:
            self._warn_of_nothing(stacklevel=3)

    def detach(self) -> None:
        """Remove the patch as ``remove`` does, without the warning."""
        super().remove()

    def __enter__(self) -> Attachment:
        """Return the attachment itself: it is in force already."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Remove the patch, also after an exception."""
        attached = bool(self._undo)
        self.detach()
        if attached and error is None:
            self._warn_of_nothing(stacklevel=3)

    def _warn_of_nothing(self, stacklevel: int) -> None:
        report = self.report()
        sites = [site.site for site in report.sites if site.calls]
        if not sites:
            self._warn_of_others(stacklevel + 1)
        host = None if self._root is None else self._root()
        if not sites and host is not None and runs_of(host) > self._runs:
            warnings.warn(
                "the patch edited no token, though the pipeline ran: it did not call "
                f"{', '.join(site.site.split('.')[0] for site in report.sites)}, since embeddings "
                "were given, or it does not need it",
                stacklevel=stacklevel,
            )
        if sites and not report.edited_tokens:
            *names, last = "stream", "phase", "positions", *choices()
            warnings.warn(
                f"the patch edited no token, though the host ran {', '.join(sites)}: none was of "
                f"the {', '.join(names)} and {last} it names, or every strength was 0",
                stacklevel=stacklevel,  # the line of the user's own
            )

    def _warn_of_others(self, stacklevel: int) -> None:
        """Warn where the patch did not act since none of the host's forwards was in its bounds."""
        bounds = self.bounds
        if bounds.scope == "context" and bounds.over:
            ended = "its context ended before it was removed, as that of a step of a generator does"
        elif bounds.passed:
            ended = f"the host ran in another {bounds.scope} only"
        else:
            return
        mend = "call the host in the thread that attached"
        if bounds.scope == "context":
            mend = "carry it to a thread with attachment.wrap(function), or attach where it is run"
        warnings.warn(
            f"the patch edited nothing: {ended}; {mend}",
            VlmEditWarning,
            stacklevel=stacklevel,
        )


_ELSEWHERE = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)
