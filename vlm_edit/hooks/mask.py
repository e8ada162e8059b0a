"""Which tokens of the forward under way are image, which are text, which are padding."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn

from vlm_edit.errors import VlmEditError
from vlm_edit.sites import Adapter, Stream


@dataclass(frozen=True, eq=False)
class Where:
    """What is known of the tokens at a tap.

    Attributes:
        stream: The tap's stream.
        image: [B, S] bool, True at image tokens; None unless ``stream`` is ``mixed``.
        real: [B, S] bool, False at padding; None where every token is real or nothing is known.
    """

    stream: Stream
    image: Tensor | None = None
    real: Tensor | None = None

    def select(self, tokens: str, hidden: Tensor) -> Tensor | None:
        """Mask [B, S] of the tokens chosen, or None for all of them.

        Args:
            tokens: ``image``, ``text`` or ``all``. At a tap of one stream its own name is all.
            hidden: [B, S, D] or [B, D], the tap's output.

        Raises:
            VlmEditError: The other stream's tokens, or a call of the host that does not tell.
        """
        if tokens not in ("all", self.stream) and self.stream != "mixed":
            raise VlmEditError(f"no {tokens} tokens pass here, only {self.stream}")
        mask = _fit(self.real, hidden)
        if self.stream == "mixed" and tokens != "all":
            image = self.image_at(hidden)
            if image is None:
                raise VlmEditError(
                    f"tokens={tokens!r}: this call of the host shows neither input_ids nor image "
                    "inputs, so nobody can tell image tokens from text. Call the whole host with "
                    "input_ids, or use tokens='all'"
                )
            chosen = image if tokens == "image" else ~image
            mask = chosen if mask is None else chosen & mask
        return mask

    def image_at(self, hidden: Tensor) -> Tensor | None:
        """Mask [B, S] of the image tokens in this output, None where it is not known."""
        return _fit(self.image, hidden)


class ModalityTracker:
    """Keeps the modality of the tokens of a host's current forward.

    Computed anew from every call's own ids, as the host does when it scatters image features.
    One per host and adapter, shared by all who need it, gone with the last; state is per thread.
    """

    _trackers: weakref.WeakKeyDictionary[nn.Module, list[ModalityTracker]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, root: nn.Module, adapter: Adapter) -> None:
        self._adapter = adapter
        self._signature = inspect.signature(root.forward)
        self._state = threading.local()
        self._users = 0
        self._handles = [
            root.register_forward_pre_hook(self._enter, with_kwargs=True),
            root.register_forward_hook(self._leave, always_call=True),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> ModalityTracker:
        """A copy of a patched host shares the tracker: its hooks are the original's."""
        return self

    @classmethod
    def acquire(cls, root: nn.Module, adapter: Adapter) -> ModalityTracker:
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
            for handle in self._handles:
                handle.remove()
            self._trackers[root].remove(self)

    def where(self, stream: Stream) -> Where:
        """What the forward under way tells of a tap's tokens; nothing outside a root forward."""
        current: tuple[Tensor | None, Tensor | None] | None = getattr(self._state, "now", None)
        if current is None or stream == "image":
            return Where(stream)
        image, real = current
        return Where(stream, image if stream == "mixed" else None, real)

    def _enter(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positional = self._signature.bind_partial(*args).arguments if args else {}
        self._state.now = modality(root, self._adapter, {**positional, **kwargs})

    def _leave(self, *_: Any) -> None:
        self._state.now = None


def modality(
    root: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """Image tokens and real tokens of one call of a host.

    Args:
        root: The host.
        adapter: Its adapter.
        inputs: The call's arguments by name.

    Returns:
        [B, S] bool, True at image tokens, None where it cannot be known; and [B, S] bool, False
        at padding, None without a two-dimensional attention mask.
    """
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    sequence = ids if ids is not None else embeds
    if sequence is None:
        return None, None
    length = sequence.shape[1]
    attention = inputs.get("attention_mask")
    real = None
    if isinstance(attention, Tensor) and attention.ndim == 2 and attention.shape[1] >= length:
        real = attention[:, -length:].bool()
    if adapter.image_token is None:
        return None, real
    token = getattr(root.config, adapter.image_token, None)
    if token is None:
        raise VlmEditError(
            f"the config of {type(root).__name__} has no {adapter.image_token!r}: name the "
            "attribute with the id of its image placeholder in Adapter.image_token"
        )
    visual = any(_carried(inputs.get(name)) for name in adapter.visual_inputs)
    if ids is not None:
        return (ids == token) & visual, real
    if not visual:
        return None, real
    embed = cast(Callable[[], nn.Module], root.get_input_embeddings)()
    embedding = embed(torch.tensor(token, device=sequence.device))
    return (sequence == embedding).all(-1), real


def _carried(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(item is not None for item in value.values())
    return value is not None


def _fit(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """The mask for this output: beams repeat rows; pooled outputs have no tokens to mask."""
    if mask is None or hidden.ndim < 3:
        return None
    rows, length = hidden.shape[:2]
    if mask.shape[1] != length or rows % mask.shape[0]:
        raise VlmEditError(
            f"the host's call has token ids of shape {tuple(mask.shape)} but this site's output "
            f"is {tuple(hidden.shape)}: its tokens cannot be told apart"
        )
    mask = mask.to(hidden.device)
    return repeat(mask, "batch tokens -> (batch beams) tokens", beams=rows // mask.shape[0])
