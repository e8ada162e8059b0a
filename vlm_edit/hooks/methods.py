"""Stand in for a method of one module or pipeline, as a hook stands behind a forward."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, cast

from vlm_edit.ground.errors import BadArgument

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class OnHost:
    """What lies on a host while it is patched, and cannot be pickled with it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse, with the mend.

        Raises:
            BadArgument: Always.
        """
        raise BadArgument(
            "this host is patched, and a patch on it cannot be pickled: take patches off with "
            "detach_all(host), pickle it, and attach them again; patch.save keeps a patch"
        )


class StandIn(OnHost):
    """Run ``around(original, args, kwargs)`` in the place of ``module.name(*args, **kwargs)``.

    It lies on the instance, so neither the class nor other instances change. Put under or over
    the wrappers of others it works the same; ``remove`` takes it out, or leaves it passing calls
    on where another's wrapper has come to lie over it.
    """

    def __init__(self, module: Any, name: str, around: Around) -> None:
        self._module = weakref.ref(module)  # no cycle: a host that is dropped is gone at once
        self._name = name
        self._around: Around | None = around
        self._below = module.__dict__.get(name)
        method = getattr(module, name)
        for attribute in functools.WRAPPER_ASSIGNMENTS:  # not update_wrapper: it holds the method
            if hasattr(method, attribute):
                setattr(self, attribute, getattr(method, attribute))
        self.__signature__ = inspect.signature(method)
        module.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, or what stands around it."""
        original, around = self._original(), self._around  # another thread may remove it meanwhile
        if around is None:
            return original(*args, **kwargs)
        return around(original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the stand-in of a copied module, which goes on while this one does."""
        module = self._module()
        copied = memo.get(id(module))
        if copied is None:
            return self
        other = object.__new__(StandIn)
        other.__dict__.update(self.__dict__)
        other._module = weakref.ref(copied)
        other._around = lambda original, args, kwargs: (
            original(*args, **kwargs)
            if self._around is None
            else self._around(original, args, kwargs)
        )
        return other

    def remove(self) -> None:
        """Give the method back."""
        self._around = None
        module = self._module()
        if module is None or module.__dict__.get(self._name) is not self:
            return
        below = self._below
        while isinstance(below, StandIn) and below._around is None:
            below = below._below  # removed before this one, which lay over it
        if below is None:
            del module.__dict__[self._name]
        else:
            module.__dict__[self._name] = below

    def _original(self) -> Callable[..., Any]:
        if self._below is not None:
            return cast("Callable[..., Any]", self._below)
        module = self._module()
        return cast("Callable[..., Any]", getattr(type(module), self._name).__get__(module))


class TracedStandIn(StandIn):
    """One whose method torch.compile may trace, and break off inside.

    Compiled code goes on with what it has called by its name: for a bound method that is the
    stand-in again, without end. For the class's function it is that function.
    """

    def _original(self) -> Callable[..., Any]:
        if self._below is not None:
            return cast("Callable[..., Any]", self._below)
        module = self._module()
        return functools.partial(getattr(type(module), self._name), module)
