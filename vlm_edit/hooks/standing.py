"""Whether the modules that something is attached to still stand where they stood."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import nn

from vlm_edit.ground.errors import WrongHost
from vlm_edit.host import Tap, find_module, unwrap


class Standing:
    """The taps of one host; a module that is replaced takes its hook along."""

    def __init__(self) -> None:
        self._taps: tuple[tuple[str, weakref.ref[nn.Module]], ...] = ()

    def hold(self, tap: Tap) -> Callable[[], None]:
        """Look at a tap's place from now on.

        Returns:
            What ends that.
        """
        held = (tap.owner, weakref.ref(tap.module))
        self._taps += (held,)

        def end() -> None:
            self._taps = tuple(other for other in self._taps if other is not held)

        return end

    def expect(self, root: nn.Module) -> None:
        """Refuse a host in which another module is in a tap's place.

        Raises:
            WrongHost: It is so.
        """
        for path, reference in self._taps:
            module, there = reference(), find_module(root, path)
            if there is not None and (there is module or unwrap(there) is module):
                continue
            raise WrongHost(
                f"the module at {path!r} of this {type(root).__name__} was replaced after "
                "something was attached there, and a patch or recording no longer acts: take it "
                "off and attach it again. vlm_edit.patches.attached(host) lists patches"
            )
