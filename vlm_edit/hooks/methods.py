"""Stand in for a method of one module or pipeline, as a hook stands behind a forward."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from vlm_edit.hooks.on_host import OnHost

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class StandIn(OnHost):
    """Run ``around(original, args, kwargs)`` in the place of ``module.name(*args, **kwargs)``.

    It lies on the instance, so neither the class nor other instances change. Put under or over
    the wrappers of others it works the same; ``remove`` takes it out, or leaves it passing calls
    on where another's wrapper has come to lie over it.
    """

    def __init__(self, module: Any, name: str, around: Around) -> None:
        self._module = weakref.ref(module)  # no cycle: a host that is dropped is gone at once
        self._name = name
        self._around = around
        self._below = module.__dict__.get(name)
        method = getattr(module, name)
        for attribute in functools.WRAPPER_ASSIGNMENTS:  # not update_wrapper: it holds the method
            if hasattr(method, attribute):
                setattr(self, attribute, getattr(method, attribute))
        self.__signature__ = inspect.signature(method)
        module.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, or what stands around it."""
        original = self._original()
        if self.off:
            return original(*args, **kwargs)
        return self._around(original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return one that passes calls on, until the copy is whole and has none."""
        copied = self.forget_copy(memo)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.off, other._below = True, copy.deepcopy(self._below, memo)
        if copied is not None:
            other._module = weakref.ref(copied)
        return other

    def below(self) -> Any:
        """Return the wrapper of others, or the stand-in, that this one lies over."""
        return self._below

    def remove(self) -> None:
        """Give the method back."""
        self.off = True
        module = self._module()
        if module is None or module.__dict__.get(self._name) is not self:
            return
        below = self._below
        while isinstance(below, StandIn) and below.off:
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


def rebind(root: nn.Module) -> None:
    """Have the stand-ins in a replica of a model call the replica's own methods.

    ``DataParallel`` makes them for each call, with all attributes of the model's modules.
    """
    for module in root.modules():
        for name, value in [*vars(module).items()]:
            if isinstance(value, StandIn):
                own = object.__new__(type(value))
                own.__dict__.update(value.__dict__)
                own._module = weakref.ref(module)
                vars(module)[name] = own


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
