"""Open registries: what a name stands for, of ours, of a caller's and of other distributions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError, VlmEditWarning

T = TypeVar("T")


class Registry(Generic[T]):
    """Hold things by name: ours, those that a caller adds, and those of entry points.

    Args:
        what: What it holds, for messages: ``rule``.
        group: The group of entry points in which other distributions declare theirs; each must
            name an object of this kind, and its name is the object's.
        kind: What everything in it is an instance of.
        base: The class that everything in it inherits from, where it holds classes.

    Example:
        >>> numbers = Registry("number", "vlm_edit.numbers", int)
        >>> numbers.add("one", 1)
        1
        >>> numbers.find("two")
        Traceback (most recent call last):
        vlm_edit.ground.errors.UnknownName: unknown number 'two'; known numbers: one
    """

    def __init__(self, what: str, group: str, kind: type, base: type | None = None) -> None:
        self.what, self.group, self._kind, self._base = what, group, kind, base
        self._one = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
        self._held: dict[str, T] = {}
        self._points: dict[str, list[EntryPoint]] | None = None

    def __repr__(self) -> str:
        """Say what it holds."""
        return f"Registry({self.what}: {', '.join(self.names()) or 'empty'})"

    def add(self, name: str, value: T) -> T:
        """Add a thing, and return it; the same one may be added again.

        Raises:
            BadArgument: No name, a name that something else has, or a thing of another kind.
        """
        if not isinstance(name, str) or not name:
            raise BadArgument(f"the name of {self._one} must be a word, got {name!r}")
        self._expect(value, f"what is registered as {name!r}")
        holder = self._held.get(name)
        if holder is not None and not _same(holder, value):
            raise BadArgument(f"{self._one} {name!r} is there already: {holder!r}; rename yours")
        if self._points is not None:
            self._expect_free([name], self._points)
        self._held[name] = value
        return value

    def remove(self, name: str) -> None:
        """Forget what was added under a name."""
        self._held.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """Return all names: ours, those added, those declared by other distributions."""
        return (*self._held, *(name for name in self._declared() if name not in self._held))

    def find(self, name: object, mend: str = "") -> T:
        """Return what a name stands for.

        Args:
            name: The name.
            mend: What to do where nothing goes by it, for the message.

        Raises:
            UnknownName: Nothing goes by it.
            VlmEditError: What is declared for it cannot be imported or is of another kind, or two
                distributions declare it.
        """
        if isinstance(name, str):
            points = self._declared()
            if name in self._held:
                return self._held[name]
            if name in points:
                return self._load(name)
        raise UnknownName(
            f"unknown {self.what} {name!r}; known {self.what}s: "
            f"{', '.join(self.names()) or 'none'}{mend}"
        )

    def __iter__(self) -> Iterator[T]:
        """Iterate over everything, and warn of what another distribution declares and lacks."""
        for name in self.names():
            try:
                yield self.find(name)
            except VlmEditError as error:
                warnings.warn(f"left out: {error}", VlmEditWarning, stacklevel=2)

    def _declared(self) -> dict[str, list[EntryPoint]]:
        """Return what distributions declare; read when first asked for, not at an import."""
        if self._points is None:
            points = distinct(entry_points(group=self.group))
            self._expect_free(self._held, points)
            self._points = points
        return self._points

    def _expect_free(self, names: Iterable[str], declared: dict[str, list[EntryPoint]]) -> None:
        for name in names:
            if name in declared:
                raise BadArgument(
                    f"{self._one} {name!r} is declared by {brought_by(declared[name][0])}; "
                    "rename yours"
                )

    def _load(self, name: str) -> T:
        value = load_point(self.what, name, self._declared()[name])
        self._expect(value, f"the entry point {name!r} of {self.group}")
        return cast("T", value)

    def _expect(self, value: object, where: str) -> None:
        fits = isinstance(value, self._kind)
        if fits and self._base is not None:
            fits = isinstance(value, type) and issubclass(value, self._base)
        if not fits:
            kind = self._kind.__name__ if self._base is None else f"class of {self._base.__name__}"
            raise BadArgument(f"{where} is {value!r}, which is no {kind}")


def distinct(points: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    """Return entry points by name; one that is declared twice alike counts once."""
    by_name: dict[str, dict[str, EntryPoint]] = {}
    for point in points:
        by_name.setdefault(point.name, {})[point.value] = point
    return {name: list(values.values()) for name, values in by_name.items()}


def load_point(what: str, name: str, points: list[EntryPoint], mend: str = "") -> Any:
    """Return what an entry point names.

    Args:
        what: What it should be, for messages: ``rule``.
        name: The entry points' name.
        points: Those of that name.
        mend: What else to do where there are two, for the message.

    Raises:
        BadArgument: Two distributions declare it.
        VlmEditError: It cannot be imported.
    """
    if len(points) > 1:
        names = " and ".join(f"{p.value} ({brought_by(p)})" for p in points)
        raise BadArgument(f"two {what}s are registered for {name!r}: {names}; uninstall one{mend}")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        raise VlmEditError(
            f"the {what} {name!r} ({points[0].value}, of {brought_by(points[0])}) cannot be "
            f"imported: {error}"
        ) from error


def brought_by(point: EntryPoint) -> str:
    """Return the name of the distribution that declares an entry point."""
    return "an unknown distribution" if point.dist is None else str(point.dist.name)


def _same(one: object, other: object) -> bool:
    """Return whether two are one thing, or the same class after its module was loaded again."""
    if one is other:
        return True
    if not (isinstance(one, type) and isinstance(other, type)):
        return False
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
