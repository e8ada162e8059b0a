"""Who runs the host: many at once, or one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Let many run the host at once, or one alone; who wants it alone goes before newcomers.

    A recording sees what everybody's forwards pass through a site, and a pipeline's scheduler keeps
    how far one drawing has come, so that whoever records or draws is to be alone.

    Example:
        >>> turns = Turns()
        >>> with turns.together(), turns.together():
        ...     pass
        >>> with turns.alone():
        ...     pass
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._waiting = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run beside others; wait while somebody is alone, or waits for that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run alone; wait until nobody else does."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._running)
                self._alone = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
