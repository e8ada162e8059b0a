"""What the page does when something is turned or pressed; nothing here knows how it is shown."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from vlm_edit.app.desk import Desk, Found
from vlm_edit.app.turn import Turn
from vlm_edit.ground.errors import BadArgument
from vlm_edit.patches import Patch

OWN = 8  # features that can have a slider of their own
LOADED = "the patch that was loaded"
TURNED = "the features turned here"


@dataclass(frozen=True)
class Controls:
    """What the controls of a visitor's page say, in the page's order.

    Attributes:
        way: How features are chosen: by ``class``, ``name`` or ``number``.
        kind: The class.
        most: How many of it.
        names: Numbers of those chosen by name.
        numbers: Numbers as typed.
        rule: Its kind.
        amount: The rule's number, where it takes one.
        strength: Of the rule.
        tokens: Which are edited.
        phase: When.
        source: ``TURNED`` or ``LOADED``.
        patch: What was loaded; None for nothing.
        own: Strengths of the first ``OWN`` features.
    """

    way: Any
    kind: Any
    most: Any
    names: Any
    numbers: Any
    rule: Any
    amount: Any
    strength: Any
    tokens: Any
    phase: Any
    source: Any
    patch: Patch | None = None
    own: tuple[Any, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any]) -> Controls:
        """Make them of the values of the page's controls.

        Args:
            values: The twelve first attributes, then the own strengths.
        """
        names = [field.name for field in fields(cls)][:-1]
        return cls(**dict(zip(names, values, strict=False)), own=tuple(values[len(names) :]))

    def found(self, desk: Desk) -> Found:
        """Return the features that are meant.

        Args:
            desk: Whose they are.

        Raises:
            VlmEditError: There are none.
        """
        return desk.find(
            self.way,
            kind=self.kind,
            most=int(_number(self.most, "how many features")),
            names=[int(name) for name in self.names or ()],
            numbers=self.numbers or "",
        )

    def turn(self, found: Found, own: bool = True) -> Turn:
        """Return what was turned of these features.

        Args:
            found: They.
            own: Whether strengths of single features count.
        """
        strength = _number(self.strength, "the strength")
        few = own and len(found.features) <= len(self.own)
        strengths = zip(found.features, self.own, strict=False) if few else ()
        return Turn(
            found.features,
            self.rule,
            _number(self.amount, "the amount"),
            strength,
            {feature: _number(one, "a strength") for feature, one in strengths},
            self.tokens,
            self.phase,
        )

    def act(self, desk: Desk) -> tuple[Patch, str]:
        """Return the patch that is meant, and Python that makes it.

        Args:
            desk: What is turned.

        Raises:
            VlmEditError: No features, no patch loaded, or values that no rule takes.
        """
        if self.source == LOADED:
            if self.patch is None:
                raise BadArgument("no patch was loaded: drop a file, or turn features here")
            code = 'from vlm_edit import load_patch\n\npatch = load_patch("patch.safetensors")'
            return self.patch, code
        turn = self.turn(self.found(desk))
        return turn.patch(desk.site, desk.dictionary), turn.code(desk.site)

    def random(self, desk: Desk, seed: int) -> tuple[Patch, Found]:
        """Return the same edit of as many random features, and which they are.

        Args:
            desk: What is turned.
            seed: Of the draw.

        Raises:
            VlmEditError: As ``act``, or there are not so many others.
        """
        if self.source == LOADED:
            raise BadArgument("random features stand beside those turned here: turn some")
        found = desk.random(self.found(desk).features, seed)
        return self.turn(found, own=False).patch(desk.site, desk.dictionary), found


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadArgument(f"{what} is empty: give a number")
    return float(value)


class Running:
    """What is under way for each visitor: one thing, of which a newer one takes the place.

    Example:
        >>> running = Running()
        >>> with running.of("ann") as first, running.of("ann") as second:
        ...     first.is_set(), second.is_set(), running.is_newest("ann", second)
        (True, False, True)
    """

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of(self, visitor: str) -> Iterator[threading.Event]:
        """Begin something, which ends what the visitor had under way; yield what stops it.

        Args:
            visitor: Whose it is.
        """
        event = threading.Event()
        with self._lock:
            former = self._events.get(visitor)
            self._events[visitor] = event
        if former is not None:
            former.set()
        try:
            yield event
        finally:
            with self._lock:
                if self._events.get(visitor) is event:
                    del self._events[visitor]

    def is_newest(self, visitor: str, event: threading.Event) -> bool:
        """Return whether nothing newer has taken its place.

        Args:
            visitor: Whose it is.
            event: What stops it.
        """
        return self._events.get(visitor) is event

    def stop(self, visitor: str) -> None:
        """Stop what the visitor has under way, if anything.

        Args:
            visitor: Whose it is.
        """
        with self._lock:
            event = self._events.get(visitor)
        if event is not None:
            event.set()
