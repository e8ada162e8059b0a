"""One hook per module, and callbacks behind it in the order they came."""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.ground.modality import SENSED
from vlm_edit.hooks.calls import Call
from vlm_edit.hooks.compiled import renewing, unprepared
from vlm_edit.hooks.methods import StandIn
from vlm_edit.hooks.on_host import OnHost, expect_there, hook_on
from vlm_edit.hooks.scopes import Bounds, Scope
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.hooks.tracker import CallTracker
from vlm_edit.host import Adapter, Host, Model, Site, Stream, Tap

Callback = Callable[[Tensor, Tokens], Tensor]


class Handle:
    """Undo an attachment; calling ``remove`` twice does nothing."""

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self._undo = undo

    def remove(self) -> None:
        """Take the callbacks off the host."""
        while self._undo:
            self._undo.pop()()


class Dispatcher(OnHost):
    """The hook on one module, or the stand-in for one of its methods.

    A hook is prepended, since hosts of transformers 5 read hidden states through hooks of their
    own and would not see what a later hook changes. Another engine than hooks is a subclass with
    an ``install`` and a table ``installed`` of its own.
    """

    installed: weakref.WeakKeyDictionary[nn.Module, dict[str | None, Dispatcher]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, tap: Tap) -> None:
        # Replaced, never changed: another thread may be going through them.
        self.callbacks: dict[int, Callable[[Tensor], Tensor]] = {}
        self.heard: frozenset[int] = frozenset()  # those that are to see each pass
        self._at, self._field = place_of(tap), tap.field
        self._handle = self.install(tap)
        self.installed.setdefault(tap.module, {})[self._at] = self

    @classmethod
    def of(cls, tap: Tap) -> Dispatcher:
        """Return the one that is there, or a new one."""
        return cls.installed.get(tap.module, {}).get(place_of(tap)) or cls(tap)

    def install(self, tap: Tap) -> Any:
        """Have ``edit`` run on every output of the tap; what is returned has ``remove``."""
        if tap.columns is not None:
            return hook_on(tap.module, _Before(self), before=True)
        if tap.method is None:
            return hook_on(tap.module, self, prepend=True)
        return StandIn(tap.module, tap.method, self.call_method)

    def discard(self, module: nn.Module) -> None:
        """Take the hook off the module if no callback is left."""
        if not self.callbacks:
            self._handle.remove()
            self.installed.get(module, {}).pop(self._at, None)

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        """Edit an output as torch calls a hook for it."""
        if not isinstance(output, Tensor):
            return self.edit(module, output)
        for callback in self.callbacks.values():  # as ``_run``: one call less in every step
            output = callback(output)
        return output

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Edit what a module is called with as torch calls a hook for it."""
        if not args or not isinstance(args[0], Tensor):
            raise CannotKnow(
                f"{type(module).__name__} is not called with a tensor first: what it is called "
                "with cannot be edited"
            )
        return self._run(args[0]), *args[1:]

    def edit(self, module: nn.Module, output: Any) -> Any:
        """Return a module's output after all callbacks."""
        if isinstance(output, Tensor):
            return self._run(output)
        hidden = self._run(hidden_of(output, module, self._field))
        return replace_hidden(output, hidden, self._field)

    def call_method(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method whose result is the site, before it is normalised if it offers that."""
        normalize = False
        parameters = inspect.signature(original).parameters
        if "normalize" in parameters:
            bound = inspect.signature(original).bind(*args, **kwargs)
            normalize = bound.arguments.pop("normalize", parameters["normalize"].default)
            args, kwargs = bound.args, {**bound.kwargs, "normalize": False}
        hidden = self._run(original(*args, **kwargs))
        return F.normalize(hidden, dim=-1) if normalize else hidden

    def _run(self, hidden: Tensor) -> Tensor:
        for callback in self.callbacks.values():
            hidden = callback(hidden)
        return hidden


class _Before(OnHost):
    """The hook before a module whose input is the site."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._dispatcher.before(module, args)


def place_of(tap: Tap) -> str | None:
    """Return where on its module a tap is: a method, what it is called with, or its output."""
    return "what it is called with" if tap.columns is not None else tap.method


_lock = threading.RLock()


def attach(
    host: Host | Model,
    site: Site,
    callback: Callback,
    dispatcher: type[Dispatcher] = Dispatcher,
    scope: Scope | Bounds = "process",
    *,
    edits: bool = False,
) -> Handle:
    """Run a callback on the output of a site's modules at every forward.

    Args:
        host: The host.
        site: One of its sites.
        callback: From the output, [B, S, D] or [B, D], and what is known of its tokens, to the
            output that the host goes on with. Must not change its input in place.
        dispatcher: The engine; by default forward hooks.
        scope: ``thread`` for forwards of the calling thread only, until it ends; ``context`` for
            those of the calling context of ``contextvars`` and its copies, until all have ended.
        edits: Whether it serves only what the host goes on with: a forward that is ended before
            it need not come to it.

    Returns:
        A handle; ``handle.remove()`` leaves the host as it was.

    Raises:
        VlmEditError: No adapter for the host, an unknown word for ``scope``, or several sites side
            by side.
    """
    bounds = Bounds.of(scope)
    host = Host.of(host)
    expect_one(site)
    undo: list[Callable[[], None]] = []
    handle = Handle(undo)
    try:
        for tap in site.taps:
            undo.append(_attach_tap(host, tap, callback, dispatcher, bounds, edits))
    except BaseException:
        handle.remove()
        raise
    return handle


def expect_one(site: Site) -> None:
    """Refuse several sites side by side, of which no module gives the state.

    Raises:
        BadArgument: They are several.
    """
    if site.parts:
        raise BadArgument(
            f"{site.name!r} is several sites side by side, which are read together: no module "
            "gives their state out. Name one of them"
        )


def hidden_of(output: Any, module: nn.Module, field: str | None = None) -> Tensor:
    """Return the hidden state in a module's output.

    It is the tensor itself, or a tuple's first; of a list with a tensor for each image all of
    them, end to end; of an output by name the field that the tap names, or the only tensor.

    Args:
        output: Of the module.
        module: For messages.
        field: As ``TapRule.field``.

    Raises:
        VlmEditError: None of these; or two states of one shape, whose sum goes on.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        first: Tensor = output[0]
        second = output[1] if len(output) == 2 else None
        if isinstance(second, Tensor) and second.shape == first.shape:
            raise CannotKnow(
                f"{type(module).__name__} returns two tensors of {tuple(first.shape)}, as layers "
                "of serving engines return their output and the residual it is still to be added "
                "to: neither is the hidden state. Name a module that returns their sum"
            )
        return first
    if isinstance(output, list) and output and all(map(_is_matrix, output)):
        return torch.cat(output)
    name = _named(output, field)
    if name is not None:
        return cast("Tensor", output[name])
    raise CannotKnow(
        f"{type(module).__name__} returns a {type(output).__name__}; a site's module must return "
        "a tensor or a tuple that begins with one. Name a submodule that does in the adapter, or "
        "where it gives several by name which it is: TapRule.field"
    )


def _is_matrix(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 2


def _named(output: Any, field: str | None) -> str | None:
    """Return under which name an output has its hidden state."""
    if not isinstance(output, Mapping):
        return None
    tensors = [name for name, value in output.items() if isinstance(value, Tensor)]
    if field in tensors:
        return field
    return tensors[0] if len(tensors) == 1 else None


def replace_hidden(output: Any, hidden: Tensor, field: str | None = None) -> Any:
    """Return the same output with another hidden state, where ``hidden_of`` has found it."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, list):
        return list(hidden.split([len(part) for part in output]))
    name = _named(output, field)
    if name is not None:
        return type(output)(**{**output, name: hidden})
    rest = output[1:]
    return type(output)(hidden, *rest) if hasattr(output, "_fields") else (hidden, *rest)


def follow(
    root: nn.Module, tap: Tap, callback: Callback, adapter: Adapter
) -> tuple[Callable[[Tensor], Tensor], Callable[[], None]]:
    """Return a callback that finds out by itself where it is, and what ends that.

    Args:
        root: The host, unwrapped.
        tap: A tap of it.
        callback: Takes hidden states with the width last, tokens in the rows of the host's call
            also where the output lays them end to end, and their ``Tokens``.
        adapter: The host's adapter.

    Returns:
        From the tap's hidden state to the edited one; and a function that gives back what was
        needed to follow the host's calls.
    """
    if tap.tokens is not None:
        callback = _counted(callback, tap.path, tap.stream, tap.tokens)
    tracker = CallTracker.acquire(root, adapter)
    # The callback must not hold the module: a host that is dropped while patched would stay.
    path, stream, axis = tracker.path_of(tap.path), tap.stream, tap.axis

    def run_alone(hidden: Tensor) -> Tensor:  # no call tells of images that are not packed
        return callback(hidden, Tokens.of(stream, Call(), hidden))

    def run(hidden: Tensor) -> Tensor:
        if hidden.ndim == 4 and stream not in SENSED:
            return _in_streams(run, hidden, tracker.now(path).shape)
        tokens = tracker.at(path, stream, hidden)
        if tokens.output is None:
            return callback(hidden, tokens)
        return callback(hidden.reshape(tokens.shape), tokens).reshape(hidden.shape)

    if stream in SENSED and (adapter.grid is None or stream != "image") and not tracker.is_told:
        run = run_alone
    reference = weakref.ref(root)

    def release() -> None:
        host = reference()
        if host is not None:
            tracker.release(host)

    if tap.columns is not None:
        return _in_columns(run, *tap.columns), release
    if axis == -1:
        return (_of_either_axis(run, tap.path) if stream in SENSED else run), release
    return lambda hidden: run(hidden.movedim(axis, -1)).movedim(-1, axis), release


def _in_columns(
    run: Callable[[Tensor], Tensor], first: int, end: int
) -> Callable[[Tensor], Tensor]:
    """Run on some columns of a hidden state, and leave the others as they are."""

    def run_here(hidden: Tensor) -> Tensor:
        part = run(hidden[..., first:end])
        return torch.cat([hidden[..., :first], part, hidden[..., end:]], -1)

    return run_here


def _of_either_axis(run: Callable[[Tensor], Tensor], path: str) -> Callable[[Tensor], Tensor]:
    """Refuse maps in which nobody can tell the width from the height or the width of the image."""

    def run_here(hidden: Tensor) -> Tensor:
        if hidden.ndim == 4 and hidden.size(1) == hidden.size(3):
            raise CannotKnow(
                f"{path} gives out {tuple(hidden.shape)}, whose width may lie on either axis: "
                "say axis=1 or change the image's size"
            )
        return run(hidden)

    return run_here


def _in_streams(
    run: Callable[[Tensor], Tensor], hidden: Tensor, call: tuple[int, int] | None
) -> Tensor:
    """Run on n residual streams of each token as on n rows for each of a batch.

    They are [B, S, n, D], or [n, B, S, D] where the call's rows and tokens stand so.

    Raises:
        VlmEditError: The call fits both, and its tokens would be told otherwise in each.
    """
    rows, _, streams, _ = hidden.shape
    pattern = "b s n d"
    if call is not None and hidden.shape[1:3] == call:
        if hidden.shape[:2] == call and rows > 1:
            raise CannotKnow(
                f"this site's output is {tuple(hidden.shape)}, and the host's call has {rows} rows "
                f"of {rows} tokens: nobody can tell which axis is which. Pad the batch by a token"
            )
        pattern, streams, rows = "n b s d", hidden.size(0), hidden.size(1)
    laid = rearrange(hidden, f"{pattern} -> (b n) s d")
    return rearrange(run(laid), f"(b n) s d -> {pattern}", b=rows, n=streams).contiguous()


def _counted(callback: Callback, path: str, stream: Stream, count: int) -> Callback:
    """Have a callback refuse outputs in which other tokens stand beside the stream's."""

    def run(hidden: Tensor, tokens: Tokens) -> Tensor:
        if hidden.ndim == 3 and hidden.size(1) != count:
            raise CannotKnow(
                f"{path} gives out {tuple(hidden.shape)}, and {count} tokens of a row are "
                f"{stream}: others share the sequence, and the adapter does not say which they are."
                " Use another site of this host"
            )
        return callback(hidden, tokens)

    return run


def _attach_tap(
    host: Host,
    tap: Tap,
    callback: Callback,
    dispatcher_class: type[Dispatcher],
    bounds: Bounds,
    edits: bool,
) -> Callable[[], None]:
    module, root, adapter = tap.module, host.root, host.adapter
    expect_there(module)
    done = False
    with _lock:
        there = place_of(tap) in dispatcher_class.installed.get(module, {})
        followed = CallTracker.of(root, adapter) is not None
        new = unprepared(host, tap, hooked=there, followed=followed)
        with renewing(host, [tap], new):
            dispatcher = dispatcher_class.of(tap)
            try:
                run, release = follow(root, tap, callback, adapter)
            except BaseException:
                dispatcher.discard(module)
                raise
        tracker = cast("CallTracker", CallTracker.of(root, adapter))
        unwatch, let_go = tracker.entry.watch(bounds, host.model), tracker.standing.hold(tap)
        # The least that is free: compiled code guards on it, and serves who comes here again.
        key = next(key for key in itertools.count() if key not in dispatcher.callbacks)
        dispatcher.callbacks = {**dispatcher.callbacks, key: bounds.limit(run)}
        dispatcher.heard |= set() if edits else {key}
    reference = weakref.ref(module)  # a thread's end must not keep a host that is dropped

    def undo() -> None:
        nonlocal done
        with _lock:
            if done:
                return
            done = True
            dispatcher.callbacks = {k: c for k, c in dispatcher.callbacks.items() if k != key}
            dispatcher.heard -= {key}
            module = reference()
            if module is not None:
                dispatcher.discard(module)
            unwatch()
            let_go()
            release()

    bounds.when_over(undo)
    return undo
