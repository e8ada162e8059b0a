"""Continuous batching of transformers: which request each token of a call is of."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.hooks.calls import Call, cache_in
from vlm_edit.hooks.flat import Flat, Segments, Span
from vlm_edit.hooks.followers import register_follower
from vlm_edit.hooks.given import unplaced
from vlm_edit.hooks.methods import StandIn
from vlm_edit.host import Adapter, Host

_CHILD = "__child#"  # what follows a request's name in those of its further answers
_NUMBERED = "req_"  # what the engine calls requests itself
_MEND = (
    "give generate_batch, or the manager, "
    "ContinuousBatchingConfig(use_async_batching=False, use_cuda_graph=False)"
)


@dataclass(eq=False)
class _Run:
    """A run of ``generate_batch``: its prompts are the requests that its manager numbers next."""

    prompts: int
    first: int = 0

    def row_of(self, name: str) -> int | None:
        """Return which of the prompts a request is; its further answers are rows of that prompt."""
        number = request_of(name).removeprefix(_NUMBERED)
        row = int(number) - self.first if number.isdecimal() else -1
        return row if 0 <= row < self.prompts else None


class Engines:
    """Follow the managers that schedule a host's requests, in whatever thread each runs it.

    While a patch is on the host, its requests share no prefix: what another request has left in
    the cache may have been edited otherwise.

    Attributes:
        undo: Take away again what stands in for the host's methods.
    """

    def __init__(self, root: nn.Module) -> None:
        self.undo: list[Callable[[], Any]] = [self._release]
        self._managers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._runs: weakref.WeakKeyDictionary[Any, _Run] = weakref.WeakKeyDictionary()
        self._makers: weakref.WeakKeyDictionary[Any, StandIn] = weakref.WeakKeyDictionary()
        self._unshared: weakref.WeakSet[_Unshared] = weakref.WeakSet()
        self._heard: list[list[VlmEditError]] = []  # one per run of ``generate_batch``
        self._state = threading.local()
        for name, around in (
            ("init_continuous_batching", self._init),
            ("generate_batch", self._generate_batch),
        ):
            if callable(getattr(root, name, None)):
                self.undo.append(StandIn(root, name, around).remove)
        for manager in _managers_at_work(root):
            self._meet(manager)

    def tell(self, call: Call, inputs: Mapping[str, Any]) -> None:
        """Know of a call that one of the managers has scheduled which request each token is of.

        Raises:
            CannotKnow: CUDA graphs are made of the host, which would keep the edit.
        """
        cache = cache_in(inputs)
        if cache is None or callable(getattr(cache, "get_seq_length", None)) or call.shape is None:
            return
        manager = self._manager_of(cache)
        self._unshare(cache)
        if manager is None:
            call.flat = Flat(lambda: "nobody knows the manager that scheduled it")
            return
        processor = manager.batch_processor
        self._expect_no_graphs(processor)
        batch = processor.inputs_and_outputs
        if not hasattr(batch, "requests_in_batch"):
            call.flat = Flat(lambda: f"its manager schedules ahead of it: {_MEND}")
            return
        names = [each.state.request_id for each in batch.requests_in_batch]
        _Unshared.of(cache).meet(names, processor.scheduler)
        run = self._runs.get(manager)
        spans = [_span(each.state, each.query_length, run) for each in batch.requests_in_batch]
        rows = 0 if run is None else run.prompts
        segments = Segments.of(spans, call.shape[1], rows, inputs["input_ids"].device)
        call.flat = Flat(lambda: segments, names)
        call.real = segments.real

    def hear(self) -> None:
        """Keep the error of ours that a forward ends with, for who waits for the answers."""
        error = sys.exc_info()[1]  # torch calls this while it handles what a forward raised
        if isinstance(error, VlmEditError):
            for errors in self._heard:
                errors.append(error)

    def _expect_no_graphs(self, processor: Any) -> None:
        """Refuse CUDA graphs: they would keep the edit when the patch is gone, and none before."""
        runner = getattr(processor, "model_runner", processor)
        graphs = ("use_cuda_graph_varlen", "use_cuda_graph_decode", "use_cuda_graph")
        if any(getattr(runner, name, False) for name in graphs):
            error = CannotKnow(
                "the manager that runs this host replays CUDA graphs, which run no patch that "
                f"comes and keep one that goes: {_MEND}"
            )
            for errors in self._heard:
                errors.append(error)
            raise error

    def _manager_of(self, cache: Any) -> Any:
        """Return the manager whose requests are in a cache; None if nobody knows it."""
        # One that was made before the patch, and started since, is known by the thread it runs in.
        for manager in (*self._managers, _run_by(threading.current_thread())):
            processor = getattr(manager, "batch_processor", None)
            if getattr(processor, "cache", None) is cache:
                self._managers.add(manager)
                return manager
        return None

    def _init(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Meet a manager as it is made, or taken up again."""
        manager = original(*args, **kwargs)
        self._meet(manager)
        if manager.batch_processor is not None:
            self._expect_no_graphs(manager.batch_processor)
        run = getattr(self._state, "run", None)
        if run is not None:
            run.first = manager._request_counter
            self._runs[manager] = run
        return manager

    def _meet(self, manager: Any) -> None:
        self._managers.add(manager)
        if manager.batch_processor is not None:
            self._unshare(manager.batch_processor.cache)
        elif manager not in self._makers:
            self._makers[manager] = StandIn(manager, "_create_batch_processor", self._make)

    def _make(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Meet the cache of a manager before anything is in it, compiled code's too."""
        processor = original(*args, **kwargs)
        self._unshare(processor.cache)
        return processor

    def _generate_batch(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Raise here what an edit raises in the thread of the engine, which only logs it."""
        errors: list[VlmEditError] = []
        self._heard.append(errors)
        prompts = args[0] if args else kwargs.get("inputs", ())
        self._state.run = run = _Run(len(prompts))
        try:
            output = original(*args, **kwargs)
        finally:
            self._state.run = None
            self._heard = [other for other in self._heard if other is not errors]
            for manager in [m for m, own in self._runs.items() if own is run]:
                del self._runs[manager]
        if errors:
            raise errors[0]
        return output

    def _unshare(self, cache: Any) -> None:
        unshared = _Unshared.of(cache)
        if unshared not in self._unshared:
            self._unshared.add(unshared)
            unshared.patched += 1

    def _release(self) -> None:
        for maker in self._makers.values():
            maker.remove()
        for unshared in self._unshared:
            unshared.patched -= 1
        self._unshared.clear()


class _Unshared:
    """Keep what requests of a patched host leave in a cache from others, and others' from them.

    It stays on the cache: blocks that were edited must not be found when the patch is gone.
    """

    _of_caches: weakref.WeakKeyDictionary[Any, _Unshared] = weakref.WeakKeyDictionary()
    _most_kept = 1024

    def __init__(self, cache: Any) -> None:
        self.patched = 0
        self._edited: set[str] = set()
        StandIn(cache, "search_prefix_match", self._search)
        StandIn(cache, "mark_complete_blocks", self._mark)

    @classmethod
    def of(cls, cache: Any) -> _Unshared:
        """Return the one of a cache, made if it is the first."""
        unshared = cls._of_caches.get(cache)
        if unshared is None:
            unshared = cls._of_caches[cache] = cls(cache)
        return unshared

    def meet(self, names: list[str], scheduler: Any) -> None:
        """Know that requests run in a patched host."""
        if len(self._edited) > self._most_kept:
            self._edited &= {*scheduler.active_requests, *scheduler.waiting_requests}
        self._edited.update(names)

    def _search(
        self, original: Callable[..., int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        return 0 if self.patched else original(*args, **kwargs)

    def _mark(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        state = args[0] if args else kwargs["state"]
        if self.patched or state.request_id in self._edited:
            return None
        return original(*args, **kwargs)


class _Requests:
    """Read ``requests=``, the names of the requests of continuous batching that are meant."""

    name = "requests"

    def read(self, host: Host, value: Any) -> tuple[str, ...] | None:
        """Return the names, as ``Choice.read`` asks."""
        if value is None:
            return None
        names = (value,) if isinstance(value, str) else value
        if (
            not isinstance(names, Sequence)
            or not names
            or not all(isinstance(name, str) for name in names)
        ):
            raise BadArgument(f"requests is {value!r}; give names of requests, such as ['req_0']")
        if not callable(getattr(host.root, "init_continuous_batching", None)):
            raise BadArgument(
                f"requests={value!r}: {type(host.root).__name__} has no continuous batching"
            )
        return tuple(names)

    def rows(self, value: tuple[str, ...], call: Call, site: str) -> Tensor:
        """Return which tokens are of the requests, [1, S]; also of their further answers."""
        flat = call.flat
        if flat is None or flat.segments is None or flat.requests is None:
            reason = unplaced(call) if flat is not None else "this call has no requests"
            raise CannotKnow(
                f"requests={list(value)} at {site}: {reason}. They are those of generate_batch, or "
                "of a manager that init_continuous_batching has made"
            )
        means = [name in value or request_of(name) in value for name in flat.requests]
        table = torch.tensor([*means, False], device=flat.segments.place.device)
        return table[flat.segments.number]


def request_of(name: str) -> str:
    """Return the name of the request that an answer is of, by the name of its own.

    Example:
        >>> request_of("req_3__child#1")
        'req_3'
    """
    return name.partition(_CHILD)[0]


def _managers_at_work(root: nn.Module) -> list[Any]:
    """Return the managers that run a host now, and one that it keeps."""
    found = [_run_by(thread) for thread in threading.enumerate()]
    found.append(getattr(root, "_cached_continuous_batching_manager", None))
    return [m for m in found if hasattr(m, "batch_processor") and getattr(m, "model", 0) is root]


def _run_by(thread: threading.Thread) -> Any:
    """Return whose method a thread runs; None if that is not to be seen."""
    return getattr(getattr(thread, "_target", None), "__self__", None)


def _span(state: Any, length: int, run: _Run | None) -> Span:
    """Return the tokens of a request in the batch that was made ready.

    What was generated counts as such where the engine has put it behind the prompt to go on anew.
    """
    prompt = state._true_initial_tokens or len(state.initial_tokens)
    row = None if run is None else run.row_of(state.request_id)
    return Span(state.position_offset - length, length, prompt, row)


def _no_follower(_root: nn.Module, _adapter: Adapter) -> None:
    """Tell nothing: the tracker knows requests without."""


register_follower(_no_follower, _Requests())
