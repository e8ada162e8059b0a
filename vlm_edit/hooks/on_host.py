"""What lies on a host while it is patched or prepared: no copy has it, and it can be lifted off."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from vlm_edit.ground.errors import BadArgument

# Where torch keeps the hooks of a module, and beside them what it knows of each.
_HOOKS = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


class OnHost:
    """Lie on one module or pipeline, as a hook or in the place of a method.

    Attributes:
        off: Whether it was taken off for good.
    """

    off = False
    _module: Callable[[], Any] = staticmethod(lambda: None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse, with the mend.

        Raises:
            BadArgument: Always.
        """
        raise BadArgument(
            "this host is patched or prepared, and what lies on it cannot be pickled: pickle it "
            "inside `with detached(host):` of vlm_edit.patches, or take patches off for good with "
            "detach_all(host); patch.save keeps a patch"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return what does nothing, and is gone as soon as the copy is whole."""
        self.forget_copy(memo)
        return _Nothing()

    def forget_copy(self, memo: dict[int, Any]) -> Any:
        """Have nothing of ours left on the copy of its module; return that copy, or None."""
        module = self._module()
        copied = None if module is None else memo.get(id(module))
        if copied is not None:
            memo.setdefault(id(_Whole), _Whole()).copies.append(copied)
        return copied

    def below(self) -> Any:
        """Return what is to lie where this does, while this is lifted off; None for nothing."""
        return None


class _Nothing(OnHost):
    """Stand for a hook in a copy that is being made."""

    off = True

    def __call__(self, *_: Any) -> None:
        """Change nothing."""


class _Whole:
    """Clean copies when ``copy.deepcopy`` lets go of its memo, that is, when they are whole.

    ``copy.deepcopy`` gives a dict of hooks every key that the original has.
    """

    def __init__(self) -> None:
        self.copies: list[Any] = []

    def __del__(self) -> None:
        for thing in self.copies:
            for name, value in [*vars(thing).items()]:
                if isinstance(value, OnHost) and value.off:
                    _put(thing, name, _lowest(value))
            _take_hooks(thing, lambda hook: hook.off)


class Hooked:
    """A hook on a module; ``remove`` takes it off for good."""

    def __init__(self, hook: OnHost, handle: Any) -> None:
        self._hook, self._handle = hook, handle

    def remove(self) -> None:
        """Take the hook off, also where it is lifted off for now."""
        self._hook.off = True
        self._handle.remove()


def hook_on(module: nn.Module, hook: Any, *, before: bool = False, **options: Any) -> Hooked:
    """Register a hook that no copy of the module has.

    Args:
        module: The module.
        hook: An ``OnHost`` that is called as torch calls hooks.
        before: Whether it is called before the forward.
        options: As of ``register_forward_hook``.
    """
    hook._module = weakref.ref(module)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    return Hooked(hook, register(hook, **options))


_lifted: weakref.WeakSet[Any] = weakref.WeakSet()


def expect_there(module: nn.Module) -> None:
    """Refuse to put anything on a module from which all is lifted off for now.

    Raises:
        BadArgument: It is so.
    """
    if module in _lifted:
        raise BadArgument(
            "this host is inside `with detached(host):`, where nothing is on it: attach before "
            "that block, or after it"
        )


@contextmanager
def lifted(things: Iterable[Any]) -> Iterator[None]:
    """Take all that lies on modules and pipelines off while the block runs, and put it back.

    What is removed meanwhile stays away; hooks of others keep their order.

    Raises:
        BadArgument: Inside such a block of the same modules.
    """
    things = [*things]
    for thing in things:
        expect_there(thing)
    back: list[Callable[[], None]] = []
    _lifted.update(things)
    try:
        for thing in things:
            back += [*_take_stand_ins(thing), *_take_hooks(thing)]
        yield
    finally:
        _lifted.difference_update(things)
        for put_back in back:
            put_back()


def _take_stand_ins(thing: Any) -> list[Callable[[], None]]:
    """Take off what stands for attributes of one module or pipeline; return what undoes that."""
    there = {name: value for name, value in vars(thing).items() if isinstance(value, OnHost)}
    for name, value in there.items():
        _put(thing, name, _lowest(value))

    def put_back() -> None:
        for name, top in there.items():
            value: Any = top
            while isinstance(value, OnHost) and value.off:
                value = value.below()
            _put(thing, name, value)

    return [put_back] if there else []


def _take_hooks(
    thing: Any, taken: Callable[[OnHost], bool] = lambda _: True
) -> list[Callable[[], None]]:
    """Take our hooks off one module; return what puts back those that are still wanted."""
    back: list[Callable[[], None]] = []
    for name, besides in _HOOKS.items():
        hooks = vars(thing).get(name, {})  # a pipeline has none
        order = [*hooks.items()]
        ours = [key for key, hook in order if isinstance(hook, OnHost) and taken(hook)]
        flags = [vars(thing)[beside] for beside in besides if ours]
        known = [(flag, {key: flag[key] for key in ours if key in flag}) for flag in flags]
        for key in ours:
            for places in (hooks, *flags):
                places.pop(key, None)
        if ours:
            back.append(partial(_put_back, hooks, order, {*ours}, known))
    return back


def _put_back(
    hooks: dict[int, Any],
    order: list[tuple[int, Any]],
    ours: set[int],
    known: list[tuple[dict[int, Any], dict[int, Any]]],
) -> None:
    """Put hooks back, each behind what it was behind."""
    wanted = {key for key, hook in order if key in ours and not hook.off}
    for flag, own in known:
        flag.update({key: value for key, value in own.items() if key in wanted})
    there = [*hooks.items()]
    place = 0
    for key, hook in order:
        if key in wanted:
            there.insert(place, (key, hook))
            place += 1
        elif key in hooks:
            place = there.index((key, hook)) + 1
    hooks.clear()
    hooks.update(there)


def _lowest(value: Any) -> Any:
    """Return what of others lies below; None where nothing does."""
    while isinstance(value, OnHost):
        value = value.below()
    return value


def _put(thing: Any, name: str, value: Any) -> None:
    if value is None:
        vars(thing).pop(name, None)
    else:
        vars(thing)[name] = value
