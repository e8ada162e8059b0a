"""Whose tokens are, by where their embeddings came from: nobody need name an id.

What enters the first layer that images and text share is compared, bit for bit, with what the
embedding of ids and the projector of images gave in the same call. It serves hosts that turn one
id into many embeddings, as the first LLaVA code does, or put images before the text.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks.calls import Call, places_itself
from vlm_edit.hooks.on_host import OnHost, hook_on
from vlm_edit.host import Adapter, Tap, placeholder_ids, resolve

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
_MOST_KEPT = 4096  # outputs between two calls; texts may be embedded in pieces
_AT_ONCE = 2**22  # numbers that are hashed in one go


class Provenance:
    """Watch what a host's embedding and projector give, and find it again where they meet.

    Attributes:
        path: Of the first layer that images and text share.
        undo: Take the hooks off again.
    """

    def __init__(self, texts: list[nn.Module], images: list[nn.Module], meeting: Tap) -> None:
        self._state = threading.local()
        self._meeting, self.path = weakref.ref(meeting.module), meeting.path
        self.undo: list[Callable[[], Any]] = []
        for kind, modules in (("text", texts), ("image", images)):
            for module in modules:
                self.undo.append(hook_on(module, _Watch(self, kind)).remove)

    @classmethod
    def of(cls, root: nn.Module, adapter: Adapter) -> Provenance | None:
        """Return what watches a host; None where ids or the host itself tell, or nothing could."""
        if _is_told(root, adapter):
            return None
        sites = resolve(root, adapter).values()
        images = [tap.module for s in sites if s.name == "projector" for tap in s.taps]
        mixed = [tap for site in sites for tap in site.taps if tap.stream == "mixed"]
        embed = getattr(root, "get_input_embeddings", None)
        if not images or not mixed or not callable(embed) or mixed[0].method is not None:
            return None
        try:
            table = embed()
        except NotImplementedError:  # a host without one that its library could name
            return None
        texts = _around(root, table, mixed[0].module)
        return cls(texts, images, mixed[0]) if texts else None

    def meet(self, tell: Callable[[Tensor], None]) -> None:
        """Call ``tell`` with what enters the layer where images and text meet, [B, S, D]."""
        module = self._meeting()
        assert module is not None
        self.undo.append(hook_on(module, _Meet(tell), before=True, with_kwargs=True).remove)

    def watch(self, kind: str, output: Any) -> None:
        """Keep what one of the watched modules gave."""
        given = output[0] if isinstance(output, tuple) and output else output
        if isinstance(given, Tensor) and given.is_floating_point() and given.ndim >= 2:
            self._given.append((kind, given.detach()))

    def forget(self) -> None:
        """Let go of what was given: the call, or the run of ``generate``, is over."""
        self._given.clear()

    @property
    def _given(self) -> deque[tuple[str, Tensor]]:
        if not hasattr(self._state, "given"):
            self._state.given = deque(maxlen=_MOST_KEPT)
        given: deque[tuple[str, Tensor]] = self._state.given
        return given

    def find(self, call: Call, entering: Tensor) -> None:
        """Note in a call whose the tokens are that enter, [B, S, D]; and which cannot be found."""
        if not self._given or entering.ndim != 3:
            return
        rows = _hashes(entering)
        came = {kind: torch.zeros_like(rows, dtype=torch.bool) for kind in ("image", "text")}
        for kind, given in self._given:
            if given.shape[-1] == entering.shape[-1]:
                known = _hashes(given.to(entering.device, entering.dtype))
                came[kind] |= torch.isin(rows, known.flatten())
        image, text = came["image"], came["text"]
        if not image.any() and not text.any():
            return  # this host makes something else of both before they meet
        stray = ~(image ^ text)
        real = call.real if call.real is not None and call.real.shape == stray.shape else None
        lost = int((stray if real is None else stray & real.to(stray.device)).sum())
        if lost:
            call.doubt = (
                f"{lost} tokens of this call are neither what the host's embedding nor what its "
                "projector gave, or both"
            )
        call.origin = Mixed.of(image=image & ~text)


def entering(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Return what enters a module first, [B, S, D]; what calls it goes no further.

    Args:
        module: A layer.
        run: A call that reaches it.

    Example:
        >>> entering(model := nn.Linear(2, 3), lambda: model(torch.ones(1, 2)))
        tensor([[1., 1.]])
    """
    seen: list[Tensor] = []

    def look(state: Tensor) -> None:
        seen.append(state.clone())
        raise _Reached

    handle = hook_on(module, _Meet(look), before=True, with_kwargs=True)
    try:
        run()
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


class _Reached(Exception):
    """End a forward at the layer that was looked at."""


class _Watch(OnHost):
    """A hook on one watched module."""

    def __init__(self, provenance: Provenance, kind: str) -> None:
        self._provenance, self._kind = provenance, kind

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._provenance.watch(self._kind, output)


class _Meet(OnHost):
    """The hook before the layer where images and text meet."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        self._tell = tell

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        entering = args[0] if args else kwargs.get("hidden_states")
        if isinstance(entering, Tensor) and not torch.compiler.is_compiling():
            self._tell(entering)


def _is_told(root: nn.Module, adapter: Adapter) -> bool:
    """Return whether ids, an argument, or the host's own mask say which tokens are image."""
    if adapter.places is not None or places_itself(root):
        return True
    try:
        ids = placeholder_ids(root, adapter)
    except VlmEditError:
        return True  # said where somebody asks for it
    return bool(ids) and min(i for own in ids.values() for i in own) >= 0


def _around(root: nn.Module, embed: Any, layer: nn.Module) -> list[nn.Module]:
    """Return the embedding of ids, and what holds it without holding layers."""
    paths = {id(module): path for path, module in root.named_modules()}
    path = paths.get(id(embed))
    if path is None:
        return []
    holders: list[nn.Module] = []
    while path:
        module = root.get_submodule(path)
        if any(part is layer for part in module.modules()):
            break
        holders.append(module)
        path = path.rpartition(".")[0]
    return holders


def _hashes(rows: Tensor) -> Tensor:
    """Return a number for each row [..., D] that rows of other bits do not share, [...] int64."""
    flat = (rows.detach() + 0.0).reshape(-1, rows.shape[-1])  # -0 and 0 are the same
    bits = flat.contiguous().view(_BITS[flat.element_size()])
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (flat.shape[1],), generator=generator) * 2 + 1
    odd = odd.to(flat.device)
    step = max(1, _AT_ONCE // max(1, flat.shape[1]))
    parts = [(part.long() * odd).sum(-1) for part in bits.split(step)]  # wraps around, as it may
    return torch.cat(parts).reshape(rows.shape[:-1])
