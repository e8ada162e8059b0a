"""What may tell more of a host's calls than their arguments do: plug-ins of the tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from vlm_edit.hooks.calls import Call
from vlm_edit.host import Adapter


class Follower(Protocol):
    """Follows methods of one host while any patch is on it, and tells what it learns of calls.

    Attributes:
        undo: Take away again what stands in for the host's methods.
    """

    undo: list[Callable[[], None]]

    def tell(self, call: Call, path: str | None, inputs: Mapping[str, Any]) -> None:
        """Say of a call what its arguments do not.

        Args:
            call: What is known of it so far.
            path: Of the module that is called; None for whatever runs outside of such calls.
            inputs: The call's arguments by name.
        """


Maker = Callable[[nn.Module, Adapter], Follower | None]
_MAKERS: list[Maker] = []


def register_follower(make: Maker) -> Maker:
    """Ask this of every host that is followed from now on; a decorator.

    Args:
        make: Gives the follower of a host with its adapter; None where it has nothing to tell.
    """
    _MAKERS.append(make)
    return make


def followers_of(root: nn.Module, adapter: Adapter) -> list[Follower]:
    """Return those that tell of a host, its methods being followed."""
    made = (make(root, adapter) for make in _MAKERS)
    return [follower for follower in made if follower is not None]
