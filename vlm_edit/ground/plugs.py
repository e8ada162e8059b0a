"""What a lower room calls by name and a higher room does: the face of ``vlm_edit`` puts it in.

A measurement writes its page, which ``report`` can and ``measuring`` must not import. It asks for
``page`` here; ``vlm_edit/__init__.py``, which may import any room, has said what that is. Nothing
is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_PLUGS: dict[str, Callable[[], Any]] = {}


def plug(name: str, load: Callable[[], Any]) -> None:
    """Say what a name stands for.

    Args:
        name: What lower rooms ask for.
        load: Imports it.
    """
    _PLUGS[name] = load


def plugged(name: str) -> Any:
    """Return what a name stands for.

    Example:
        >>> plug("twice", lambda: lambda x: 2 * x)
        >>> plugged("twice")(3)
        6
    """
    return _PLUGS[name]()
