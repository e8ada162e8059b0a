"""What a call of a host tells of its tokens: image or text, padding, prompt or generated."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlm_edit.hooks.methods import StandIn
from vlm_edit.sites import Adapter, image_token_ids

_HOST = ""  # the path of the host itself among the modules whose calls are followed


@dataclass(eq=False)
class Call:
    """What is known of the tokens of one call, ``[B, S]`` of them.

    Attributes:
        shape: B and S; None where the call shows no sequence.
        image: [B, S] bool, True at image tokens; False where none is; None if nobody can know.
        real: [B, S] bool, False at padding; None where all are real or nothing is known.
        start: Tokens of the sequence before this call's, in the cache; None if nobody can know.
        columns: [S], places in the sequence, where ``start`` is a tensor (static caches).
        prompt: Tokens of the prompt, padding included; a tensor where ``start`` is one, so that
            compiled steps serve prompts of any length; None if nobody can know.
        prompt_real: [B, prompt] bool, like ``real`` for the whole prompt.
        grid: [images, 3], the sizes of the images in a packed sequence.
    """

    shape: tuple[int, int] | None = None
    image: Tensor | bool | None = None
    real: Tensor | None = None
    start: int | Tensor | None = 0
    columns: Tensor | None = None
    prompt: int | Tensor | None = None
    prompt_real: Tensor | None = None
    grid: Tensor | None = None

    @property
    def decodes(self) -> bool:
        """Whether all its tokens are known to have been generated."""
        start, prompt = self.start, self.prompt
        return isinstance(start, int) and isinstance(prompt, int) and start >= prompt


@dataclass(eq=False)
class Generation:
    """A run of the host's ``generate``: its prompt, known before the first step.

    Attributes:
        call: The prompt as one call.
        length: Its length as a tensor.
        lengths: For hosts with a decoder of its own sequence, that sequence's prompt by path.
    """

    call: Call
    length: Tensor | None = None
    lengths: dict[str, int] = field(default_factory=dict)

    def prompt_of(self, start: int | Tensor | None) -> int | Tensor | None:
        """The prompt's length, as a tensor beside one."""
        return self.length if isinstance(start, Tensor) else self.call.prompt


class CallTracker:
    """Follows the calls of a host and of the modules that its adapter names.

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
        self._undo: list[Callable[[], None]] = []
        self.paths = tuple(path for path in (_HOST, *adapter.calls) if _has(root, path))
        for path in self.paths:
            module = root.get_submodule(path)
            follow = _Follow(self, path, _signature(module))
            self._undo += [
                module.register_forward_pre_hook(follow.enter, with_kwargs=True).remove,
                module.register_forward_hook(follow.leave, always_call=True).remove,
            ]
        if callable(getattr(root, "generate", None)):
            reader = weakref.ref(root)
            self._undo.append(
                StandIn(root, "generate", lambda *run: self._generate(reader, *run)).remove
            )

    @classmethod
    def acquire(cls, root: nn.Module, adapter: Adapter) -> CallTracker:
        """The tracker of this host, made if it is the first."""
        trackers = cls._trackers.setdefault(root, [])
        tracker = next((t for t in trackers if t._adapter == adapter), None)
        if tracker is None:
            tracker = cls(root, adapter)
            trackers.append(tracker)
        tracker._users += 1
        return tracker

    def release(self, root: nn.Module) -> None:
        """Give the tracker back; the last one out removes its hooks."""
        self._users -= 1
        if not self._users:
            for undo in self._undo:
                undo()
            self._trackers[root].remove(self)

    def path_of(self, path: str) -> str:
        """Path of the innermost followed module around (or at) another."""
        around = [p for p in self.paths if p == _HOST or f"{path}.".startswith(f"{p}.")]
        return max(around, key=len)

    def now(self, path: str) -> Call:
        """The call under way of the module at a followed path, or of one around it."""
        calls: dict[str, Call] = getattr(self._state, "calls", {})
        call = calls.get(path) or calls.get(_HOST)
        if call is not None:
            return call
        generation = self.generation
        return Call() if generation is None else generation.call

    @property
    def generation(self) -> Generation | None:
        """The run of ``generate`` under way in this thread."""
        found: Generation | None = getattr(self._state, "generation", None)
        return found

    @property
    def _calls(self) -> dict[str, Call]:
        found: dict[str, Call] = getattr(self._state, "calls", {})
        return found

    def enter(self, path: str, module: nn.Module, inputs: Mapping[str, Any]) -> None:
        """A followed module is called."""
        generation = self.generation
        if generation is not None and path == _HOST:
            step = _read_step(self._adapter, inputs, generation)
            if step is not None:
                self._state.calls = {_HOST: step}
                return
        calls = self._calls
        outer = None if path == _HOST else calls.get(_HOST)
        if inputs.get("encoder_hidden_states") is not None:
            # A decoder with a sequence of its own: nothing around it tells of its tokens.
            call = read_call(module, self._adapter, inputs)
            if generation is not None and call.shape is not None:
                call.prompt = generation.lengths.setdefault(path, call.shape[1])
        else:
            call = read_call(module, self._adapter, inputs, outer, generation)
        if generation is None:
            self._begin(call, inputs)
        # A call of the host begins anew, also after one that was interrupted.
        self._state.calls = {path: call} if path == _HOST else {**calls, path: call}

    def leave(self, path: str, output: Any) -> None:
        """A followed module has returned, or failed."""
        generation, calls = self.generation, self._calls
        self._state.calls = {} if path == _HOST else {p: c for p, c in calls.items() if p != path}
        if generation is not None or path not in calls or torch.compiler.is_compiling():
            return
        call = calls[path]
        cache = getattr(output, "past_key_values", None)
        if cache is not None and call.shape is not None:
            length = call.shape[1]
            if isinstance(call.prompt, int) and call.prompt == length and _is_zero(call.start):
                _remember(self._prompts, cache, length)
            elif length > 1:
                _remember(self._prompts, cache, None)  # a piece of the prompt, or of the answer

    def _begin(self, call: Call, inputs: Mapping[str, Any]) -> None:
        """Outside ``generate`` the call that starts a cache brings the prompt."""
        if call.shape is None:
            return
        if call.shape[1] == 1 and not torch.compiler.is_compiling():
            call.prompt = _recall(self._prompts, inputs.get("past_key_values"))
        if call.prompt is None and _is_zero(call.start):
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
        inputs = dict(kwargs)
        if args:
            inputs |= inspect.signature(original).bind_partial(*args).arguments
        first = inputs.pop("inputs", None)
        if isinstance(first, Tensor) and not first.is_floating_point():
            inputs.setdefault("input_ids", first)
        self._state.generation = read_prompt(root, self._adapter, inputs)
        try:
            return original(*args, **kwargs)
        finally:
            self._state.generation = before
            self._state.calls = {}


class _Follow:
    """The hooks on one followed module."""

    def __init__(self, tracker: CallTracker, path: str, signature: inspect.Signature) -> None:
        self._tracker, self._path, self._signature = tracker, path, signature

    def __deepcopy__(self, memo: dict[int, Any]) -> _Follow:
        """A copy of a patched host shares the tracker: its hooks are the original's."""
        return self

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            kwargs = {**self._signature.bind_partial(*args).arguments, **kwargs}
        self._tracker.enter(self._path, module, kwargs)

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._tracker.leave(self._path, output)


def _signature(module: nn.Module) -> inspect.Signature:
    """Of the forward as it is called: nnsight's wrapper shows the ``self`` of an unbound one."""
    signature = inspect.signature(module.forward)
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    return signature.replace(parameters=kept)


def read_call(
    module: nn.Module,
    adapter: Adapter,
    inputs: Mapping[str, Any],
    outer: Call | None = None,
    generation: Generation | None = None,
) -> Call:
    """What one call of a host tells of its tokens.

    Args:
        module: The host, or the module inside it that is called.
        adapter: The host's adapter.
        inputs: The call's arguments by name.
        outer: The host's call that this one is part of.
        generation: The run of ``generate`` that it is a step of.

    Raises:
        VlmEditError: The host's config lacks the placeholder's id.
    """
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    sequence = ids if ids is not None else embeds
    if not isinstance(sequence, Tensor) or sequence.ndim < 2:
        grid = inputs.get(adapter.grid) if adapter.grid else None
        return Call(grid=grid)
    rows, length = sequence.size(0), sequence.size(1)
    start = _length_of(inputs.get("past_key_values"))
    columns = None
    if isinstance(start, Tensor):  # now: the host changes it in place
        columns = start + torch.arange(length, device=start.device)
    prompt = None if generation is None else generation.prompt_of(start)
    call = Call((rows, length), start=start, columns=columns, prompt=prompt)
    if generation is not None:
        call.prompt_real = generation.call.prompt_real
    call.image = _image(module, adapter, inputs, call, outer, generation)
    call.real = _real(inputs.get("attention_mask"), call)
    return call


def _read_step(adapter: Adapter, inputs: Mapping[str, Any], generation: Generation) -> Call | None:
    """As ``read_call``, for steps of ``generate`` that hold nothing but what was generated.

    Most steps are such, and this looks at no tensor. None for all others.
    """
    ids, start = inputs.get("input_ids"), _length_of(inputs.get("past_key_values"))
    # ``start`` first: beside a static cache compiled code must not know the prompt's length.
    if ids is None or not isinstance(start, int):
        return None
    prompt = generation.call.prompt
    if not isinstance(prompt, int) or start < prompt or "encoder_hidden_states" in inputs:
        return None
    for name in adapter.visual_inputs:
        if name in inputs and _carried(inputs[name]):
            return None
    image = None if adapter.image_token is None else False
    return Call((ids.size(0), ids.size(1)), image, None, start, None, prompt)


def read_prompt(module: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Generation:
    """What the arguments of a host's ``generate`` tell of its prompt.

    Raises:
        VlmEditError: The host's config lacks the placeholder's id.
    """
    call = read_call(module, adapter, {k: v for k, v in inputs.items() if k != "past_key_values"})
    if call.shape is None:
        return Generation(call)
    rows, length = call.shape
    attention = inputs.get("attention_mask")
    if isinstance(attention, Tensor) and attention.ndim == 2 and attention.shape[1] > length:
        # A conversation goes on: only its new part is here.
        earlier = attention.shape[1] - length
        if isinstance(call.image, Tensor):
            call.image = torch.cat([call.image.new_zeros(rows, earlier), call.image], 1)
        call.shape, call.real = (rows, earlier + length), attention.bool()
    call.prompt = call.shape[1]
    # Found out once per generation: where nothing is padded, no step needs a mask.
    call.prompt_real = None if call.real is None or bool(call.real.all()) else call.real
    sequence = (
        inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    )
    return Generation(call, torch.tensor(call.prompt, device=sequence.device))


def _image(
    module: nn.Module,
    adapter: Adapter,
    inputs: Mapping[str, Any],
    call: Call,
    outer: Call | None,
    generation: Generation | None,
) -> Tensor | bool | None:
    if adapter.image_token is None:
        return None
    ids: Tensor | None = inputs.get("input_ids")
    embeds: Any = inputs.get("inputs_embeds")
    visual = any(name in inputs and _carried(inputs[name]) for name in adapter.visual_inputs)
    if ids is not None:
        return _any_of([ids == i for i in image_token_ids(module, adapter)]) if visual else False
    if visual:
        embed = cast(Callable[[], nn.Module], module.get_input_embeddings)()
        tokens = torch.tensor(image_token_ids(module, adapter), device=embeds.device)
        return _any_of([(embeds == token).all(-1) for token in embed(tokens)])
    for known in (outer, generation.call if generation else None):
        if known is None or known.image is None or known.shape is None:
            continue
        if known.image is False:
            return False
        if isinstance(call.start, int) and call.shape is not None:
            return take_columns(cast("Tensor", known.image), call.start, call.shape[1], False)
    return None


def take_columns(known: Tensor, start: int, length: int, beyond: bool) -> Tensor:
    """Columns ``start`` to ``start + length`` of a mask [B, P], and a constant past its end."""
    part = known[:, start : start + length]
    missing = length - part.shape[1]
    if not missing:
        return part
    return torch.cat([part, part.new_full((len(part), missing), beyond)], 1)


def _any_of(masks: list[Tensor]) -> Tensor:
    return functools.reduce(torch.logical_or, masks)


def _real(attention: Any, call: Call) -> Tensor | None:
    if call.shape is None or call.decodes:
        return None  # what was generated is no padding
    length = call.shape[1]
    if not isinstance(attention, Tensor) or attention.ndim != 2:
        return _real_of_prompt(call)
    if attention.shape[1] < length:
        return None
    if isinstance(call.start, int) and attention.shape[1] >= call.start + length:
        return attention[:, call.start : call.start + length].bool()
    if call.columns is not None:
        return attention[:, call.columns.clamp(max=attention.shape[1] - 1)].bool()
    return attention[:, -length:].bool()


def _real_of_prompt(call: Call) -> Tensor | None:
    """For calls with another mask, such as a static cache's [B, 1, S, K]."""
    whole = call.prompt_real
    if whole is None or call.shape is None:
        return None
    if isinstance(call.start, int):
        return take_columns(whole, call.start, call.shape[1], True)
    if call.columns is None:
        return None
    padded = take_columns(whole, 0, whole.shape[1] + 1, True)
    return padded[:, call.columns.clamp(max=whole.shape[1])]


def _length_of(cache: Any) -> int | Tensor | None:
    if cache is None:
        return 0
    measure = getattr(cache, "get_seq_length", None)
    return measure() if callable(measure) else None


def _carried(value: Any) -> bool:
    if value is None or isinstance(value, Tensor):  # first: asking for a Mapping takes longer
        return value is not None
    return not isinstance(value, Mapping) or any(item is not None for item in value.values())


def _is_zero(start: int | Tensor | None) -> bool:
    if isinstance(start, Tensor):
        return not torch.compiler.is_compiling() and int(start) == 0
    return start == 0


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


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
