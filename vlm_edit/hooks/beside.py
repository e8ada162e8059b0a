"""Keep what passes at some sites for one that a forward reaches later."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks.dispatch import Callback
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.host import Site


class Beside:
    """Keep the states of sites until one behind them takes them, in the same forward.

    Each thread has its own. What is taken is gone, so that no forward sees another's.

    Args:
        sites: One module each, in the order in which a forward passes them. The one that takes
            may be the last of them: its state is then what it shows.
        taker: The name of the site that takes.
    """

    def __init__(self, sites: Sequence[Site], taker: str) -> None:
        self._names, self._taker = tuple(site.name for site in sites), taker
        self._sites = tuple(site for site in sites if site.name != taker)
        self._seen: dict[tuple[int, str], Tensor] = {}
        if taker in self._names[:-1]:
            raise BadArgument(
                f"{taker!r} passes before {self._names[-1]!r}, whose state is not known by then"
            )

    def listeners(self) -> Iterator[tuple[Site, Callback]]:
        """Yield each site that is kept, with what is to be attached there."""
        for site in self._sites:

            def keep(hidden: Tensor, _tokens: Tokens, name: str = site.name) -> Tensor:
                self._seen[_thread(), name] = hidden.clone()  # the host may go on to add in place
                return hidden

            yield site, keep

    def take(self, hidden: Tensor) -> Tensor:
        """Return the states of all sites, end to end, [..., sum of their widths].

        Args:
            hidden: [..., D], the taker's own, whose tokens they must be.

        Raises:
            CannotKnow: A site did not pass before, or showed other tokens.
        """
        kept = {name: self._seen.pop((_thread(), name), None) for name in self._names}
        states = [hidden if name == self._taker else kept[name] for name in self._names]
        for name, state in zip(self._names, states, strict=True):
            if state is None:
                raise CannotKnow(
                    f"{name!r} did not pass before {self._taker!r} in this forward, and what is "
                    "read there is not known"
                )
            if state.shape[:-1] != hidden.shape[:-1]:
                raise CannotKnow(
                    f"{name!r} shows {tuple(state.shape)} in this forward, {self._taker!r} "
                    f"{tuple(hidden.shape)}: these are not the same tokens"
                )
        found = [state.to(hidden.device) for state in states if state is not None]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


def _thread() -> int:
    # Compiled code is one thread's, and could not be asked.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
