"""What may tell more of a host's calls than their arguments do: plug-ins of the tracker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks.calls import Call
from vlm_edit.host import Adapter, Host


class Follower(Protocol):
    """Follow methods of one host while any patch is on it, and tell what is learnt of calls.

    Attributes:
        undo: Take away again what stands in for the host's methods.

    Example:
        A host says of each row who speaks. ``speaker=1`` edits only what that one says:

        >>> import torch
        >>> from torch import nn
        >>> from vlm_edit import Adapter, Dictionary, Host, Patch, Scale, VlmEditError
        >>> from vlm_edit.hooks import forget_follower, register_follower
        >>> class Talk(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Identity()
        ...
        ...     def forward(self, x, speakers):
        ...         return self.layer(x)
        >>> class Listener:
        ...     undo = []
        ...
        ...     def tell(self, call, path, inputs):
        ...         call.note("speaker", inputs.get("speakers"))
        >>> class Speaker:
        ...     name = "speaker"
        ...
        ...     def read(self, host, value):
        ...         if value is not None and not isinstance(host.root, Talk):
        ...             raise VlmEditError(f"speaker={value!r}: nobody speaks here")
        ...         return value
        ...
        ...     def rows(self, value, call, site):
        ...         return call.fact("speaker") == value
        >>> def listen(root, adapter):
        ...     return Listener() if isinstance(root, Talk) else None
        >>> _ = register_follower(listen, Speaker())
        >>> adapter = Adapter.of({"hidden": ("layer", "text", 2)})
        >>> host = Host.of(Talk(), adapter=adapter)
        >>> patch = Patch("hidden", Dictionary.identity(2), Scale([0], 5.0))
        >>> with patch.attach(host, speaker=1):
        ...     host.model(torch.ones(2, 2), torch.tensor([0, 1])).tolist()
        [[1.0, 1.0], [5.0, 1.0]]
        >>> forget_follower(listen)
    """

    undo: list[Callable[[], None]]

    def tell(self, call: Call, path: str | None, inputs: Mapping[str, Any]) -> None:
        """Say of a call what its arguments do not, by ``call.note``.

        Args:
            call: What is known of it so far.
            path: Of the module that is called; None for whatever runs outside of such calls.
            inputs: The call's arguments by name.
        """


class Choice(Protocol):
    """A word of ``Patch.attach`` that says which rows of a call are meant.

    Attributes:
        name: The word, as a keyword argument is named.
    """

    @property
    def name(self) -> str:
        """Return the word, as the attribute says."""

    def read(self, host: Host, value: Any) -> Any:
        """Return what the user's word comes to in a host, of which a follower may know nothing.

        Args:
            host: Any host that a patch is attached to.
            value: What the user gives; None where it is left out.

        Returns:
            The value in force; None where all rows are meant.

        Raises:
            VlmEditError: A value that is not possible, or not of this host.
        """

    def rows(self, value: Any, call: Call, site: str) -> Tensor | bool:
        """Return which rows of a call are meant.

        Args:
            value: What is in force.
            call: What is known of the call, what followers noted too.
            site: Where an output of it passes, for messages.

        Returns:
            One answer for all, or [B] bool; or [B, S] bool, where a row holds several sequences.

        Raises:
            CannotKnow: Nothing tells.
        """


class Chosen(NamedTuple):
    """A choice with the value that is in force."""

    choice: Choice
    value: Any


Maker = Callable[[nn.Module, Adapter], Follower | None]
_MAKERS: dict[Maker, Choice | None] = {}


def register_follower(make: Maker, choice: Choice | None = None) -> Maker:
    """Ask this of every host that is followed from now on; a decorator.

    Args:
        make: Gives the follower of a host with its adapter; None where it has nothing to tell.
        choice: What a user may say at ``Patch.attach`` of what it tells.

    Raises:
        BadArgument: Another follower's choice has that name.
    """
    if choice is not None:
        for other, other_choice in _MAKERS.items():
            if other_choice is not None and other_choice.name == choice.name and other is not make:
                raise BadArgument(f"a choice {choice.name!r} is there already: rename yours")
    _MAKERS[make] = choice
    return make


def forget_follower(make: Maker) -> None:
    """Ask it of no further host, and take its choice from ``Patch.attach``."""
    _MAKERS.pop(make, None)


def followers_of(root: nn.Module, adapter: Adapter) -> list[Follower]:
    """Return those that tell of a host, its methods being followed."""
    followers = (make(root, adapter) for make in _MAKERS)
    return [follower for follower in followers if follower is not None]


def choices() -> dict[str, Choice]:
    """Return what may be said at ``Patch.attach`` of what followers tell, by name."""
    return {choice.name: choice for choice in _MAKERS.values() if choice is not None}


def chosen_in(host: Host, given: Mapping[str, Any]) -> tuple[Chosen, ...]:
    """Return the choices that are in force in a host.

    Args:
        host: The host.
        given: What the user says, by the choices' names.

    Raises:
        TypeError: A name that no choice has, as Python says of any argument that is not there.
        VlmEditError: As ``Choice.read``.
    """
    offers = choices()
    for name in given:
        if name not in offers:
            raise TypeError(
                f"attach() got an unexpected keyword argument {name!r}; plug-ins declare "
                f"{', '.join(offers) or 'none'}"
            )
    pairs = (Chosen(choice, choice.read(host, given.get(name))) for name, choice in offers.items())
    return tuple(pair for pair in pairs if pair.value is not None)


def meant(chosen: Sequence[Chosen], call: Call, site: str) -> Tensor | bool:
    """Return which rows of a call all these choices mean: one answer, or as ``Choice.rows``.

    Args:
        chosen: What is in force.
        call: What is known of the call.
        site: Where an output of it passes, for messages.

    Raises:
        CannotKnow: Nothing tells.
    """
    masks: list[Tensor] = []
    for choice, value in chosen:
        rows = choice.rows(value, call, site)
        if isinstance(rows, Tensor):
            masks.append(rows)
        elif not rows:
            return False
    deepest = max((mask.ndim for mask in masks), default=1)
    masks = [mask if mask.ndim == deepest else mask.unsqueeze(-1) for mask in masks]
    return functools.reduce(torch.logical_and, masks) if masks else True
