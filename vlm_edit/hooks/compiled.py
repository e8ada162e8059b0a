"""Compiled code and hooks: hosts that are prepared for them, and what must be compiled anew.

torch.compile guards on the hooks of a module that has any, and does not look at one that has
none: what is compiled before the first hook comes runs on without it. A prepared module has a hook
that does nothing, so compiled code sees others come and go, and finds its own again.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.hooks.calls import HOST
from vlm_edit.hooks.on_host import OnHost, expect_there, hook_on, lifted
from vlm_edit.host import Adapter, Host, Model, Tap, find_module

_PACKAGE = str(Path(__file__).parents[1])
_PARTS = {"_modules", "_parameters", "_buffers"}  # what code reads of a module it does not guard


class _Inert(OnHost):
    """A hook that does nothing."""

    def __call__(self, *_: Any) -> None:
        return None


# Modules with such a hook behind their forward, and those with another before it.
_prepared: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_followed: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def prepare(host: Host | Model, names: Sequence[str] | None = None) -> Callable[[], None]:
    """Have code that is compiled from now on notice patches, however often they come and go.

    Call it before ``torch.compile``, or before the first call of what that returns.

    Args:
        host: The host.
        names: Of the sites where patches will be attached; None for all but those inside layers.

    Returns:
        What takes it back.

    Raises:
        VlmEditError: An unknown site, or no adapter.
    """
    host = Host.of(host)
    sites = host.sites.values() if names is None else [host.site(name) for name in names]
    followed = _calls(host.root, host.adapter)
    taps = [tap for site in sites for tap in site.taps]
    ahead = dict.fromkeys([*followed, *(t.module for t in taps if t.columns is not None)])
    behind = dict.fromkeys([*followed, *(tap.module for tap in taps if tap.method is None)])
    for module in behind:
        expect_there(module)
    undo: list[Callable[[], None]] = []
    new = [m for m in behind if m not in _prepared or (m in ahead and m not in _followed)]
    with renewing(host, taps, new):
        for modules, known, before in ((behind, _prepared, False), (ahead, _followed, True)):
            for module in modules:
                if module not in known:
                    known.add(module)
                    hooked = hook_on(module, _Inert(), before=before)
                    undo.append(_undo(hooked.remove, known, weakref.ref(module)))

    def take_back() -> None:
        while undo:
            undo.pop()()

    return take_back


def _undo(
    remove: Callable[[], None],
    known: weakref.WeakSet[nn.Module],
    reference: weakref.ref[nn.Module],
) -> Callable[[], None]:
    def undo() -> None:
        remove()
        module = reference()
        if module is not None:
            known.discard(module)

    return undo


def unprepared(host: Host, tap: Tap, *, hooked: bool, followed: bool) -> list[nn.Module]:
    """Return modules whose first hook compiled code would not see.

    Args:
        host: The host.
        tap: Where something is to be attached.
        hooked: Whether something is there already.
        followed: Whether the host's calls are followed already.
    """
    calls = [] if followed else _calls(host.root, host.adapter)
    modules = [m for m in calls if m not in _prepared or m not in _followed]
    # A method's place is on its module, where compiled code looks as it calls it.
    own = host.root if tap.method is not None else tap.module
    known = _prepared if tap.columns is None else _followed
    return modules if hooked or own in known else [*modules, own]


@contextmanager
def renewing(host: Host, taps: Sequence[Tap], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put first hooks on modules; all code is compiled anew if some may hold one of them.

    Args:
        host: The host.
        taps: Where something is attached.
        modules: Those that have no hook that compiled code knows of.
    """
    kinds = {type(module) for module in modules}
    for tap in taps if modules else ():
        kinds |= _kinds_around(host.root, tap.owner)
    stale = bool(kinds) and _may_hold(kinds)
    if stale:
        _warn(host)
    yield
    if stale:
        torch.compiler.reset()


@contextmanager
def bare(host: Host) -> Iterator[None]:
    """Take all that lies on a host off while the block runs, what prepares it too.

    Code that is compiled meanwhile does not know of it and is compiled anew.
    """
    modules = [*host.root.modules()]
    models = [] if host.model in modules or isinstance(host.model, Host) else [host.model]
    before = {code for code, _ in _compiled()}
    try:
        with lifted([*modules, *models]):
            yield
    finally:
        if _may_hold({type(m) for m in modules if _is_own(type(m))}, before):
            _warn(host)
            torch.compiler.reset()


def _calls(root: nn.Module, adapter: Adapter) -> list[nn.Module]:
    """Return the modules whose calls are followed."""
    found = (find_module(root, path) for path in (HOST, *adapter.calls))
    return [module for module in found if module is not None]


def _kinds_around(root: nn.Module, path: str) -> set[type]:
    """Return the classes of a module and of those around it, except torch's own containers."""
    parts = path.split(".")
    paths = (".".join(parts[:i]) for i in range(len(parts)))
    around = (find_module(root, outer) for outer in paths)
    return {type(m) for m in around if m is not None and _is_own(type(m))}


def _is_own(kind: type) -> bool:
    return not kind.__module__.startswith("torch.nn.")


def _compiled() -> Iterator[tuple[CodeType, Any]]:
    """Yield what torch.compile has made and keeps: its code, and what it guards on."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list  # noqa: PLC0415

    convert_frame: Any = sys.modules["torch._dynamo.convert_frame"]
    for reference in [*convert_frame.input_codes.seen]:
        code = reference()
        for entry in [] if code is None else _debug_get_cache_entry_list(code):
            if entry.code is not None:  # of a module that is gone
                yield entry.code, entry.guard_manager


def _may_hold(kinds: set[type], known: set[CodeType] | None = None) -> bool:
    """Return whether compiled code may call a module of one of these classes.

    Args:
        kinds: The classes.
        known: Code that is not asked.
    """
    for code, guards in _compiled():
        if known is not None and code in known:
            continue
        guarded = _guarded(guards.root)
        if guarded is None or guarded & kinds:
            return True
        # A ``guard_filter_fn`` may have dropped the guards on modules.
        if not any(issubclass(kind, nn.Module) for kind in guarded) and _PARTS & {*code.co_names}:
            return True
    return False


def _guarded(root: Any) -> set[type] | None:
    """Return the classes of what compiled code guards on; None where torch does not tell."""
    kinds: set[type] = set()
    managers = [root]
    while managers:
        manager = managers.pop()
        if not hasattr(manager, "get_type_of_guarded_value"):  # torch 2.6
            return None
        kind = manager.get_type_of_guarded_value()
        if isinstance(kind, type):
            kinds.add(kind)
        managers += manager.get_child_managers()
        if hasattr(manager, "get_key_value_managers"):  # of a dict
            pairs = manager.get_key_value_managers().values()
            managers += [part for pair in pairs for part in pair if part is not None]
    return kinds


def _warn(host: Host) -> None:
    """Warn, at the line that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) and Path(file).name != "contextlib.py":
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"code that was compiled in this process may hold this {host.kind.__name__}, which was not "
        "prepared: all compiled code of the process, that of other models too, is thrown away and "
        "compiled anew. Call Host.of(model).prepare() once, before torch.compile: patches then "
        "come and go without that",
        VlmEditWarning,
        stacklevel=level,
    )
