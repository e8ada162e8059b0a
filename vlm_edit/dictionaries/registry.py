"""Classes that are found by their names."""

from __future__ import annotations

from typing import TypeVar

from vlm_edit.errors import VlmEditError

_T = TypeVar("_T")


def enter(known: dict[str, type[_T]], name: str, kind: type[_T]) -> None:
    """Make a class known by a name.

    Raises:
        VlmEditError: No name, or one that another class has.
    """
    if not name:
        raise VlmEditError(f"{kind.__qualname__} has no name to be found by: give it one")
    if name in known:
        raise VlmEditError(
            f"{kind.__qualname__} is named {name!r}, as {known[name].__qualname__} is already: "
            "give it another name"
        )
    known[name] = kind
