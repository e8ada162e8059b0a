"""Attachment: a patch on a host."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks import Handle, choices, runs_of
from vlm_edit.patches.active import Active, Run
from vlm_edit.patches.report import Report


class Attachment(Handle):
    """A patch on a host, until ``remove`` or the end of a with-block.

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
    ) -> None:
        super().__init__(undo)
        self._root = None if root is None else weakref.ref(root)
        self._runs = 0 if root is None else runs_of(root)
        self.actives = tuple(actives)
        # Of each edit, 1 in the rows that are its own: a new strength must not reach the others.
        self._shares = tuple(shares or [torch.ones(1)] * len(self.actives))

    def report(self) -> Report:
        """Return what was really edited since the patch was attached; ask at any time."""
        return Report(tuple(active.tally.report for active in self.actives))

    def set_strength(self, strength: float | Sequence[float] | Tensor) -> None:
        """Change how strongly the patch acts, in place: compiled code goes on as it is.

        Args:
            strength: As for ``Patch.attach``: one number, or one per row of the batches to come.
                Rows that have a patch of their own, or none, keep it.

        Raises:
            VlmEditError: Not finite, of another shape; nothing has changed then.
        """
        rows = Run.of(strength).strength
        rows = torch.ones(1) if rows is None else rows
        if rows.ndim > 1 or any(
            a.run.strength is not None and a.run.strength.ndim > 1 for a in self.actives
        ):
            raise BadArgument(
                "strengths per token belong to one prompt: attach the patch anew with them"
            )
        for own in self._shares:
            if len(rows) != len(own) and len(rows) > 1 and len(own) > 1:
                raise BadArgument(
                    f"strength has {len(rows)} values, the patches are given for {len(own)} rows: "
                    "give one value per row, or one for all"
                )
        for active, own in zip(self.actives, self._shares, strict=True):
            active.set_strength(rows * own.to(rows.device))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the host run unedited, and uncounted, while the block runs."""
        for active in self.actives:
            active.paused = True
        try:
            yield
        finally:
            for active in self.actives:
                active.paused = False

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the patch, also after an exception."""
        attached = bool(self._undo)
        self.detach()
        if attached and error is None:
            self._warn_of_nothing(stacklevel=3)

    def _warn_of_nothing(self, stacklevel: int) -> None:
        report = self.report()
        sites = [site.site for site in report.sites if site.calls]
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
