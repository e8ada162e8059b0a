"""Follow the calls of a host, its ``generate``, and the modules it calls on their own."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.modality import SENSED
from vlm_edit.hooks.calls import (
    HOST,
    PLACES,
    Call,
    cache_in,
    cache_of,
    places_itself,
    read_call,
    read_step,
)
from vlm_edit.hooks.engine import Engines
from vlm_edit.hooks.followers import followers_of
from vlm_edit.hooks.generation import Generation, read_prompt
from vlm_edit.hooks.layouts import read_layout, read_part
from vlm_edit.hooks.methods import StandIn, TracedStandIn, rebind
from vlm_edit.hooks.on_host import OnHost, hook_on
from vlm_edit.hooks.placeholders import hear, masks_in
from vlm_edit.hooks.provenance import Provenance
from vlm_edit.hooks.scopes import Entry
from vlm_edit.hooks.standing import Standing
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.host import Adapter, Stream, find_module, layouts_in, placeholder_ids

# Methods that run a part of a host alone.
_PARTS = (
    *(f"get_{kind}_features" for kind in ("image", "text", "video", "audio")),
    *("encode_image", "encode_text"),
)
_PROCESSORS = "_get_logits_processor"  # how ``generate`` makes what changes scores


class CallTracker:
    """Follow the calls of a host and of the modules that its adapter names.

    Everything is read anew from each call's own arguments, as the host does when it scatters image
    features. One per host and adapter, shared by all who need it, gone with the last; its state is
    kept per thread.
    """

    _trackers: weakref.WeakKeyDictionary[nn.Module, list[CallTracker]] = weakref.WeakKeyDictionary()

    def __init__(self, root: nn.Module, adapter: Adapter) -> None:
        self._adapter = adapter
        self._state = threading.local()  # not a subclass: compiled code would not write to it
        self._prompts: weakref.WeakKeyDictionary[Any, int | None] = weakref.WeakKeyDictionary()
        self._users = 0
        self.standing = Standing()
        self.entry = Entry()
        self._undo: list[Callable[[], Any]] = []
        # What hooks ask for is there before they are: another thread may be calling the host.
        self._names = {i: n for n, ids in _placeholders(root, adapter).items() for i in ids}
        self._provenance = Provenance.of(root, adapter)
        if self._provenance is not None:
            self._provenance.meet(self._meet)
            self._undo += self._provenance.undo
        self._followers = followers_of(root, adapter)
        if self._followers:
            self._undo += [undo for follower in self._followers for undo in follower.undo]
            # Modules may outlive a host that is dropped while patched: a pipeline's models do.
            ending = weakref.finalize(root, _call_all, self._undo)
            ending.atexit = False
            self._undo.append(ending.detach)
        self._layouts = layouts_in(root, adapter)
        called = (p for p in adapter.calls if find_module(root, p) is not None)
        self.paths = tuple(dict.fromkeys((HOST, *called, *self._layouts)))
        self._hook(root)
        self._stand_in(root)
        self._engines = Engines(root)
        self._undo += self._engines.undo

    def _hook(self, root: nn.Module) -> None:
        """Follow the calls of the modules on the paths."""
        for path in self.paths:
            module = root.get_submodule(path)
            enter, leave = _Enter(self, path, _signature(module)), _Leave(self, path)
            self._undo += [
                hook_on(module, enter, before=True, with_kwargs=True).remove,
                hook_on(module, leave, always_call=True).remove,
            ]

    def _stand_in(self, root: nn.Module) -> None:
        """Follow the calls of methods of the host that no hook sees."""
        if callable(getattr(root, "generate", None)):
            reader = weakref.ref(root)
            self._undo.append(
                StandIn(root, "generate", lambda *run: self._generate(reader, *run)).remove
            )
        if callable(getattr(root, _PROCESSORS, None)):
            self._undo.append(StandIn(root, _PROCESSORS, self._guide).remove)
        for name in _PARTS:
            if callable(getattr(root, name, None)) and name not in vars(root):
                self._undo.append(self._look_before(root, name).remove)
        for holder in places_itself(root):
            self._undo.append(TracedStandIn(holder, PLACES, self._place).remove)

    @classmethod
    def acquire(cls, root: nn.Module, adapter: Adapter) -> CallTracker:
        """Return the tracker of this host, made if it is the first."""
        tracker = cls.of(root, adapter)
        if tracker is None:
            tracker = cls(root, adapter)
            cls._trackers.setdefault(root, []).append(tracker)
        tracker._users += 1
        return tracker

    @classmethod
    def of(cls, root: nn.Module, adapter: Adapter) -> CallTracker | None:
        """Return the tracker that a host has; None before any was acquired."""
        trackers = cls._trackers.get(root, [])
        return next((t for t in trackers if t._adapter == adapter), None)

    @classmethod
    def is_busy(cls) -> bool:
        """Return whether a call of a host, or of ``generate``, is under way in this thread."""
        return any(t._calls or t.generation is not None for t in cls._all())

    @classmethod
    def abandon(cls) -> None:
        """End all calls under way in this thread, which an exception has left.

        torch calls no hook behind a forward that ends with what is no ``Exception``.
        """
        for tracker in cls._all():
            for path in sorted(tracker._calls, key=len, reverse=True):
                tracker.leave(path, None)

    @classmethod
    def _all(cls) -> list[CallTracker]:
        return [tracker for trackers in [*cls._trackers.values()] for tracker in trackers]

    def release(self, root: nn.Module) -> None:
        """Give the tracker back; the last one out removes its hooks."""
        self._users -= 1
        if not self._users:
            _call_all(self._undo)
            self._trackers[root].remove(self)

    @property
    def is_told(self) -> bool:
        """Whether anything tells more of this host's calls than their arguments do."""
        return bool(self._followers)

    def path_of(self, path: str) -> str:
        """Return the path of the innermost followed module around (or at) another."""
        paths = [p for p in self.paths if p == HOST or f"{path}.".startswith(f"{p}.")]
        return max(paths, key=len)

    def now(self, path: str) -> Call:
        """Return the call under way of the module at a followed path, or of one around it."""
        calls: dict[str, Call] | None = getattr(self._state, "calls", None)
        call = (calls.get(path) or calls.get(HOST)) if calls else None
        if call is not None:
            return call
        generation = self.generation
        if generation is not None:
            return generation.call
        return self._told(Call())

    def at(self, path: str, stream: Stream, hidden: Tensor) -> Tokens:
        """Return what is known of an output's tokens; for as many of one call, the same object.

        An output shows how many there are, which may be more than its call's ids.
        """
        calls: dict[str, Call] | None = getattr(self._state, "calls", None)
        call = (calls.get(path) or calls.get(HOST)) if calls else None
        if torch.compiler.is_compiling():  # nobody may keep what a graph makes
            tokens = self._resolve(call or self.now(path), stream, hidden)
            tokens.generated = False  # counted on the device, as all that compiled code counts
            return tokens
        if call is None:  # under way of ``generate`` alone, or of nothing
            return self._resolve(self.now(path), stream, hidden)
        last_tokens = call.resolved
        if last_tokens is not None and last_tokens.are_of(stream, hidden):
            return last_tokens
        call.resolved = tokens = self._resolve(call, stream, hidden)
        return tokens

    def _resolve(self, call: Call, stream: Stream, hidden: Tensor) -> Tokens:
        """Return the tokens of an output, in the rows that the host was called with."""
        shape = hidden.shape
        if call.generated and len(shape) == 3 and shape[1] == call.shape[1]:  # type: ignore[index]
            return Tokens(stream, call, shape, hidden.device, generated=stream == "mixed")
        if stream in SENSED or call.shows(hidden):
            return Tokens.of(stream, call, hidden)
        rows = call.in_rows(hidden)
        if rows is not None:
            return Tokens(stream, call, rows.shape, rows.device, output=hidden.shape)
        if hidden.ndim != 3:
            return Tokens.of(stream, call, hidden)
        if call.by_layout:
            return Tokens.of(stream, read_part(call, shape[0], shape[1]), hidden)
        generation = self.generation
        if generation is not None and call is generation.call:
            # Of a module that ``generate`` calls alone.
            call = self._told(Call((shape[0], shape[1]), start=None))
        elif stream == "mixed" and shape[1] > cast("tuple[int, int]", call.shape)[1]:
            call.grow((shape[0], shape[1]), generation)
        return Tokens.of(stream, call, hidden)

    def _told(
        self, call: Call, path: str | None = None, inputs: Mapping[str, Any] | None = None
    ) -> Call:
        for follower in self._followers:
            follower.tell(call, path, inputs or {})
        return call

    @property
    def generation(self) -> Generation | None:
        """Return the run of ``generate`` under way in this thread."""
        generation: Generation | None = getattr(self._state, "generation", None)
        return generation

    @property
    def _calls(self) -> dict[str, Call]:
        calls: dict[str, Call] = getattr(self._state, "calls", {})
        return calls

    def enter(self, path: str, module: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Read the call of a followed module, which begins."""
        if path in self._layouts:
            self._enter_layout(path, inputs)
            return
        generation = getattr(self._state, "generation", None)
        if generation is not None:
            step = read_step(self._adapter, inputs, generation) if path == HOST else None
            if step is not None:
                if self._followers:
                    self._told(step, path, inputs)
                    step.generated = step.is_generated_text
                self._state.calls = {HOST: step}
                return
            if not torch.compiler.is_compiling() and not self._is_of(generation, path, inputs):
                self._enter_beside(generation, path, module, inputs)
                return
        followed = path == HOST and generation is None and not torch.compiler.is_compiling()
        if followed:
            self._begin_whole(module)
        calls = self._calls
        outer = None if path == HOST else calls.get(HOST)
        if inputs.get("encoder_hidden_states") is not None:
            # A decoder with a sequence of its own: nothing around it tells of its tokens.
            call = read_call(module, self._adapter, inputs)
            if generation is not None and call.shape is not None:
                call.prompt = generation.lengths.setdefault(path, call.shape[1])
        else:
            call = read_call(module, self._adapter, inputs, outer, generation)
            if outer is not None and _is_of_another_length(call, outer):
                outer.attention = call.attention
                outer.grow(cast("tuple[int, int]", call.shape), generation)
                call = outer
            if call.flat is not None and outer is None and not torch.compiler.is_compiling():
                self._engines.tell(call, inputs)
        if generation is None and call is not outer:
            self._begin(call, inputs)
        if self._followers:
            self._told(call, path, inputs)
        call.generated = call.is_generated_text
        # A call of the host begins anew, also after one that was interrupted.
        self._state.calls = {path: call} if path == HOST else {**calls, path: call}

    def _begin_whole(self, root: nn.Module) -> None:
        """Look at the host as a call of it begins that is no step of ``generate``."""
        if "_is_replica" in vars(root):
            rebind(root)
        else:
            self.standing.expect(root)
        if self.entry.contexts:
            self.entry.enter()

    def _is_of(self, generation: Generation, path: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether a call, and the host's around it, is of the generation's own sequence."""
        if path != HOST and generation.beside:
            around = self._calls.get(HOST)
            if any(around is other for other in generation.beside):
                return False
        return generation.is_of(path, inputs)

    def _enter_layout(self, path: str, inputs: Mapping[str, Any]) -> None:
        """Read a call whose sequence has image and text by position, in whatever runs around it."""
        calls = self._calls
        around = [p for p in calls if p == HOST or path.startswith(f"{p}.")]
        outer = calls[max(around, key=len)] if around else None
        call = self._told(read_layout(self._layouts[path], path, inputs, outer), path, inputs)
        self._state.calls = {**calls, path: call}

    def _enter_beside(
        self, generation: Generation, path: str, module: nn.Module, inputs: Mapping[str, Any]
    ) -> None:
        """Read a call in which a step of ``generate`` asks about a sequence with its own prompt."""
        calls = {} if path == HOST else self._calls
        outer = calls.get(HOST)
        call = read_call(module, self._adapter, inputs, outer)
        self._begin(call, inputs)
        if outer is not None and outer.shape == call.shape:
            call.prompt, call.prompt_real = outer.prompt, outer.prompt_real
        else:
            generation.guide(call, inputs)
        self._told(call, path, inputs)
        generation.beside.append(call)
        self._state.calls = {**calls, path: call}

    def leave(self, path: str, output: Any) -> None:
        """End the call of a followed module, which has returned or failed."""
        state = self._state
        calls: dict[str, Call] = getattr(state, "calls", {})
        state.calls = {} if path == HOST else {p: c for p, c in calls.items() if p != path}
        generation: Generation | None = getattr(state, "generation", None)
        followed = path == HOST and generation is None and not torch.compiler.is_compiling()
        if followed and self.entry.contexts:
            self.entry.exit()
        call = calls.get(path)
        if self._provenance is not None and generation is None and not state.calls:
            self._provenance.forget()
        if call is None:
            return
        call.resolved = None  # which holds the call: together they would wait for the collector
        if torch.compiler.is_compiling():
            return
        if generation is not None:
            if not generation.beside or all(call is not other for other in generation.beside):
                return
            generation.beside = [other for other in generation.beside if other is not call]
            cache = cache_of(output)
            if cache is not None:
                generation.others.append(cache)
        if output is None and call.flat is not None:
            self._engines.hear()
        cache = cache_of(output)
        if cache is not None and call.shape is not None:
            length = call.shape[1]
            if isinstance(call.prompt, int) and call.prompt == length:
                _remember(self._prompts, cache, length)
            elif length > 1:
                _remember(self._prompts, cache, None)  # a piece of the prompt, or of the answer

    def _begin(self, call: Call, inputs: Mapping[str, Any]) -> None:
        """Learn the prompt outside ``generate``, where the call that starts a cache brings it."""
        if call.shape is None or call.flat is not None:
            return
        if call.shape[1] == 1 and not torch.compiler.is_compiling():
            call.prompt = _recall(self._prompts, cache_in(inputs))
        if _is_zero(call.start):  # also where an emptied cache held another prompt before
            call.prompt, call.prompt_real = call.shape[1], call.real

    def _generate(
        self,
        reader: weakref.ref[nn.Module],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        root = cast("nn.Module", getattr(original, "__self__", None) or reader())
        before = self.generation
        self.standing.expect(root)
        inputs = dict(kwargs)
        if args:
            inputs |= inspect.signature(original).bind_partial(*args).arguments
        first = inputs.pop("inputs", None)
        if isinstance(first, Tensor) and not first.is_floating_point():
            inputs.setdefault("input_ids", first)
        self._state.generation = generation = read_prompt(root, self._adapter, inputs)
        config = inputs.get("generation_config")
        guided = _is_guided(inputs, config) and not callable(getattr(root, _PROCESSORS, None))
        if guided or getattr(config, "is_assistant", False):
            # A model that drafts is called anew for each draft, with all of the answer so far.
            generation.forget_prompt()
        self._told(generation.call)
        self.entry.enter()
        try:
            return original(*args, **kwargs)
        finally:
            self._state.generation = before
            self._state.calls = {}
            if self._provenance is not None and before is None:
                self._provenance.forget()
            if before is None and self.entry.contexts:
                self.entry.exit()

    def _look_before(self, root: nn.Module, name: str) -> StandIn:
        """Look whether modules still stand where a method runs a part of the host alone."""
        reader, state = weakref.ref(root), self._state

        def look(
            original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if not torch.compiler.is_compiling() and not getattr(state, "calls", None):
                self.standing.expect(cast("nn.Module", reader()))
            return original(*args, **kwargs)

        return TracedStandIn(root, name, look)

    def _guide(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Hear of what guides a run of ``generate``, before its first step."""
        processors = original(*args, **kwargs)
        generation = self.generation
        if generation is not None and not generation.meet(processors):
            config = kwargs.get("generation_config", args[0] if args else None)
            if _is_guided({}, config):
                generation.forget_prompt()
        return processors

    def _meet(self, entering: Tensor) -> None:
        """Find out where what enters the layers that images and text share came from."""
        provenance = self._provenance
        assert provenance is not None
        call = self.now(self.path_of(provenance.path))
        if call.modality is None and not call.decodes:
            provenance.find(call, entering)
        if self.generation is None:
            provenance.forget()

    def _place(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Hear from the host where it puts features."""
        output = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            call = self.now(HOST)
            for kind, mask, brought in masks_in(original, args, kwargs, output, self._names):
                hear(call, self._names, kind, mask, brought)
        return output


class _Enter(OnHost):
    """The hook before one followed module."""

    def __init__(self, tracker: CallTracker, path: str, signature: inspect.Signature) -> None:
        self._tracker, self._path, self._signature = tracker, path, signature

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if kwargs is None:  # torch calls so while another thread puts this hook on, or takes it off
            return
        if args:
            kwargs = {**self._signature.bind_partial(*args).arguments, **kwargs}
        self._tracker.enter(self._path, module, kwargs)


class _Leave(OnHost):
    """The hook behind one followed module."""

    def __init__(self, tracker: CallTracker, path: str) -> None:
        self._tracker, self._path = tracker, path

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._tracker.leave(self._path, output)


def _placeholders(root: nn.Module, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    try:
        return placeholder_ids(root, adapter)
    except VlmEditError:  # said where somebody asks for it
        return {}


def _call_all(functions: list[Callable[[], Any]]) -> None:
    while functions:
        functions.pop()()


def _signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of the forward as it is called.

    nnsight's wrapper shows the ``self`` of an unbound one.
    """
    signature = inspect.signature(module.forward)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    return signature.replace(parameters=parameters)


def _is_guided(inputs: Mapping[str, Any], config: Any) -> bool:
    """Return whether guidance asks about a sequence of its own, and no cache tells it apart."""

    def setting(name: str) -> Any:
        return inputs.get(name, getattr(config, name, None))

    return setting("guidance_scale") not in (None, 1) and setting("use_cache") is False


def _is_of_another_length(call: Call, outer: Call) -> bool:
    return call.shape is not None and outer.shape is not None and call.shape[1] != outer.shape[1]


def _is_zero(start: int | Tensor | None) -> bool:
    if isinstance(start, Tensor):
        return not torch.compiler.is_compiling() and int(start) == 0
    return start == 0


def _remember(
    prompts: weakref.WeakKeyDictionary[Any, int | None], cache: Any, n: int | None
) -> None:
    try:
        prompts[cache] = n
    except TypeError:  # a tuple of tensors, as old hosts return
        return


def _recall(prompts: weakref.WeakKeyDictionary[Any, int | None], cache: Any) -> int | None:
    try:
        return prompts.get(cache)
    except TypeError:
        return None
