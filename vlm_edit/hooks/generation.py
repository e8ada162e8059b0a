"""A run of a host's ``generate``: its prompt, and which calls are of its own sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn

from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks.calls import (
    CACHES,
    HOST,
    Call,
    cache_in,
    known_int,
    length_of,
    read_call,
    real_of_merged,
)
from vlm_edit.host import Adapter


@dataclass(eq=False)
class Generation:
    """A run of the host's ``generate``: its prompt, known before the first step.

    Attributes:
        call: The prompt as one call.
        length: Its length as a tensor.
        lengths: For hosts with a decoder of its own sequence, that sequence's prompt by path.
        given: Its length in what ``generate`` was given; None if that shows no sequence.
        embedded: Whether ``generate`` was given embeddings.
        ids: [B, P], what it was given otherwise.
        begun: Whether the host was called.
        caches: The cache of each followed path's first call.
        others: Caches of sequences beside the prompt's, such as guidance's unconditional one.
        beside: The calls under way of such sequences.
        guides: What guidance knows of its sequence, and how long that one's prompt was, where
            there is no cache.
    """

    call: Call
    length: Tensor | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    given: int | None = None
    embedded: bool = False
    ids: Tensor | None = None
    begun: bool = False
    caches: dict[str, Any] = field(default_factory=dict)
    others: list[Any] = field(default_factory=list)
    beside: list[Call] = field(default_factory=list)
    guides: list[_Guide] = field(default_factory=list)

    def is_of(self, path: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether a call is of the generation's own sequence."""
        if self.guides and path == HOST and self._guide_of(inputs) is not None:
            return False
        cache = cache_in(inputs)
        own = self.caches.setdefault(path, cache)
        if cache is None and own is None:
            return path != HOST or self._begins(inputs.get("input_ids"))
        if cache is own or not callable(getattr(own, "get_seq_length", None)):
            return True
        if any(cache is other for other in self.others):
            return False
        if known_int(length_of(cache)) != 0:
            return True
        ids, prompt = inputs.get("input_ids"), self.ids  # here another begins, or the same anew
        return ids is not None and prompt is not None and self._begins(ids)

    def _begins(self, ids: Tensor | None) -> bool:
        """Return whether ids begin with the prompt, which beams repeat; or nobody can compare."""
        prompt = self.ids
        if ids is None or prompt is None:
            return True
        if ids.shape[1] < prompt.shape[1] or len(ids) % len(prompt):
            return False
        beams = len(ids) // len(prompt)
        prompt = prompt if beams == 1 else repeat(prompt, "b s -> (b k) s", k=beams)
        return torch.equal(ids[:, : prompt.shape[1]], prompt.to(ids.device))

    def meet(self, processors: Any) -> bool:
        """Know what changes the scores of a run without a cache; return whether any guides.

        A processor that guides asks the host about its own sequence, and holds that call's ids.
        """
        contexts = [getattr(one, "unconditional_context", None) for one in processors or ()]
        self.guides = [_Guide(one) for one in contexts if isinstance(one, dict)]
        return bool(self.guides)

    def _guide_of(self, inputs: Mapping[str, Any]) -> _Guide | None:
        ids = inputs.get("input_ids")
        if ids is None:
            return None
        return next((one for one in self.guides if one.context.get("input_ids") is ids), None)

    def guide(self, call: Call, inputs: Mapping[str, Any]) -> None:
        """Learn the prompt of a sequence beside, which guidance's first call brings.

        Of others than guidance's, without a cache nobody knows it.
        """
        guide = self._guide_of(inputs)
        if call.shape is None or call.start != 0:
            return
        if guide is not None:
            guide.prompt = guide.prompt or call.shape[1]
            call.prompt = guide.prompt
            call.prompt_real = None if call.real is None else call.real[:, : guide.prompt]
        elif cache_in(inputs) is None and inputs.get("use_cache") is False:
            call.prompt = call.prompt_real = None

    def forget_prompt(self) -> None:
        """Know the prompt's length no longer: it is the answer's as well, or another sequence's."""
        self.call.prompt = self.length = self.given = None

    def begin(self, inputs: Mapping[str, Any], call: Call) -> None:
        """Learn from the host's first call how long the prompt is that it really reads.

        A host may have put many embeddings in the place of one id before it goes on.
        """
        self.begun = True
        if self.given is None or self.embedded or inputs.get("input_ids") is not None:
            return
        rows, length = cast("tuple[int, int]", call.shape)
        start = known_int(call.start)
        if start is None or start + length == self.given:
            return
        real, call.hidden_padding = real_of_merged(inputs.get("attention_mask"), 0, start + length)
        self.merge(rows, start + length, real)

    def merge(self, rows: int, prompt: int | None, real: Tensor | None) -> None:
        """Go on with a prompt of another length than was given; None if nobody can know it."""
        call, device = self.call, None if self.length is None else self.length.device
        call.modality, call.given, call.prompt = None, self.given, prompt
        call.shape = (rows, prompt or 0)
        call.real = None if real is None or bool(real.all()) else real
        call.prompt_real = call.real
        call.ids = call.caption = None
        self.length = None if prompt is None else torch.tensor(prompt, device=device)

    def prompt_of(self, start: int | Tensor | None) -> int | Tensor | None:
        """Return the prompt's length, as a tensor beside one."""
        return self.length if isinstance(start, Tensor) else self.call.prompt


@dataclass(eq=False)
class _Guide:
    """What a processor that guides keeps of its sequence.

    Attributes:
        context: Its own, with the ids of the call that it makes.
        prompt: How long its prompt was; 0 before its first call.
    """

    context: dict[str, Any]
    prompt: int = 0


def read_prompt(module: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Generation:
    """Read from the arguments of a host's ``generate`` what they tell of its prompt.

    Raises:
        VlmEditError: The host's config lacks the placeholder's id.
    """
    call = read_call(module, adapter, {k: v for k, v in inputs.items() if k not in CACHES})
    if call.shape is None:
        return Generation(call)
    rows, length = call.shape
    attention = inputs.get("attention_mask")
    if isinstance(attention, Tensor) and attention.ndim == 2 and attention.shape[1] > length:
        # A conversation goes on: only its new part is here.
        earlier = attention.shape[1] - length
        if isinstance(call.modality, Mixed):
            call.modality = call.modality.behind(earlier)
        call.shape, call.real = (rows, earlier + length), attention.bool()
        call.ids_at = earlier
    call.prompt = call.shape[1]
    call.ids_at = call.ids_at or 0
    # Found out once per generation: where nothing is padded, no step needs a mask.
    call.prompt_real = None if call.real is None or bool(call.real.all()) else call.real
    sequence = (
        inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    )
    return Generation(
        call,
        torch.tensor(call.prompt, device=sequence.device),
        given=call.prompt,
        embedded=inputs.get("inputs_embeds") is not None,
        ids=inputs.get("input_ids"),
    )
