"""What a call of a host tells of its tokens: image or text, padding, prompt or generated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from vlm_edit.ground.modality import Mixed, Modality
from vlm_edit.hooks.flat import Flat, Segments, packs, sequences_in
from vlm_edit.host import Adapter, brought_by, caption_in, placeholder_ids

if TYPE_CHECKING:
    from vlm_edit.hooks.generation import Generation
    from vlm_edit.hooks.tokens import Tokens

PLACES = "get_placeholder_mask"  # by which hosts of transformers say where features go
HOST = ""  # the path of the host itself among the modules whose calls are followed

Witness = Literal["image_mask", "argument", "position", "ids", "host", "origin"]

# What hosts call the cache they go on with: transformers since 5.24, before, and at state spaces.
CACHES = ("cache", "past_key_values", "cache_params")


@dataclass(eq=False)  # what ``__init__`` need not set lies on the class: one is made every step
class Call:
    """What is known of the tokens of one call, ``[B, S]`` of them.

    Attributes:
        shape: B and S; None where the call shows no sequence.
        modality: Whose its tokens are; None if nobody can know.
        real: [B, S] bool, False at padding; None where all are real or nothing is known.
        start: Tokens of the sequence before this call's, in the cache; None if nobody can know.
        columns: [S], places in the sequence, where ``start`` is a tensor (static caches).
        prompt: Tokens of the prompt, padding included; a tensor where ``start`` is one, so that
            compiled steps serve prompts of any length; None if nobody can know.
        prompt_real: [B, prompt] bool, like ``real`` for the whole prompt.
        grid: [images, 3], the sizes of the images in a packed sequence.
        attention: The call's own attention mask, of whatever form.
        given: Ids that the host has made this sequence of, where it is of another length: they
            tell neither which tokens are image nor where any stands. None where it is not.
        hidden_padding: Whether some tokens are padding and nobody can tell which.
        flat: What is known of the sequences where a row holds several of them, which have no
            ``start`` and no ``prompt`` in common; None where it does not.
        generated: Whether all its tokens are known to be generated text, none of it padding.
        ids: [B, S] or, of a run of ``generate``, [B, P]: the ids these tokens were made of, or the
            prompt; None where the call shows none.
        ids_at: The place of the first of them in the sequence; None where they are this call's.
        caption: [B, S] or [B, P] like ``ids``, bool, the tokens of the texts that ``Host.inputs``
            put into its template; None where nobody knows.
        witness: Who says whose its tokens are: ``argument``, ``position``, ``ids`` or ``host``;
            None if nobody.
        by_layout: Whether it is of a module whose layout an adapter declares.
        origin: Whose its tokens are, by where their embeddings came from; None where not found.
        doubt: Why nobody can believe what is known of whose its tokens are, or what finds that out.
        resolved: The ``Tokens`` of the output that was looked at last, while it is under way.
    """

    shape: tuple[int, int] | None = None
    modality: Modality | None = None
    real: Tensor | None = None
    start: int | Tensor | None = 0
    columns: Tensor | None = None
    prompt: int | Tensor | None = None
    prompt_real: Tensor | None = None
    grid: Tensor | None = None
    attention: Any = field(default=None, init=False)
    given: int | None = field(default=None, init=False)
    hidden_padding: bool = field(default=False, init=False)
    flat: Flat | None = field(default=None, init=False)
    generated: bool = field(default=False, init=False)
    ids: Tensor | None = field(default=None, init=False)
    ids_at: int | None = field(default=None, init=False)
    caption: Tensor | None = field(default=None, init=False)
    witness: Witness | None = field(default=None, init=False)
    by_layout: bool = field(default=False, init=False)
    origin: Mixed | None = field(default=None, init=False)
    doubt: str | Callable[[], str | None] | None = field(default=None, init=False)
    resolved: Tokens | None = field(default=None, init=False, repr=False)
    _facts: Mapping[str, Any] | None = field(default=None, init=False)

    def note(self, name: str, value: Any) -> None:
        """Keep what a follower knows of this call, under a name of the follower's."""
        self._facts = {**(self._facts or {}), name: value}

    def fact(self, name: str) -> Any:
        """Return what was noted under a name; None if nothing was."""
        return None if self._facts is None else self._facts.get(name)

    @property
    def segments(self) -> Segments | None:
        """Return the sequences in its rows, where these hold several; None if nobody can know."""
        return None if self.flat is None else self.flat.segments

    @property
    def decodes(self) -> bool:
        """Whether all its tokens are known to have been generated."""
        return self.step is not None

    @property
    def step(self) -> int | None:
        """Return the decode step of its first token, where all are known to have been generated."""
        start, prompt = self.start, self.prompt
        if isinstance(start, int) and isinstance(prompt, int) and start >= prompt:
            return start - prompt
        return None

    @property
    def is_generated_text(self) -> bool:
        """Whether all its tokens are generated text, none of it padding, found out anew."""
        text = not isinstance(self.modality, Mixed)
        return text and self.decodes and self.real is None and not self.hidden_padding

    def shows(self, hidden: Tensor) -> bool:
        """Return whether an output has this call's tokens in rows, or neither is known."""
        return self.shape is None or (hidden.ndim == 3 and hidden.size(1) == self.shape[1])

    def in_rows(self, hidden: Tensor) -> Tensor | None:
        """Return the tokens [B, S, D] of an output that lays all rows end to end; else None.

        Blocks of experts do so: [B * S, D], or [1, B * S, D].
        """
        if self.shape is None or hidden.ndim not in (2, 3):
            return None
        rows, length = self.shape
        laid = hidden.ndim == 2 or hidden.size(0) == 1
        if not laid or hidden.size(-2) != rows * length:
            return None
        return hidden.reshape(rows, length, hidden.size(-1))

    def grow(self, shape: tuple[int, int], generation: Generation | None) -> None:
        """Become the call of a sequence of another length, which the host has made of these tokens.

        All that it put in, or took out, belongs to the prompt, and nobody can tell where.
        """
        count, length = cast("tuple[int, int]", self.shape)[1], shape[1]
        prompt = self.prompt if generation is None else generation.given
        start = known_int(self.start)
        whole = start == 0 and isinstance(prompt, int) and count >= prompt
        total = cast("int", prompt) + length - count if whole else None
        self.shape, self.given, self.modality = shape, count, None
        if isinstance(self.start, Tensor):
            self.columns = self.start + torch.arange(length, device=self.start.device)
        self.real, self.hidden_padding = real_of_merged(self.attention, start, length)
        if self.hidden_padding and self.origin is not None:
            self._unhide(self.origin, count)
        self.prompt_real = None if total is None or self.real is None else self.real[:, :total]
        if generation is not None:
            generation.merge(shape[0], total, self.prompt_real)
        self.prompt = total if generation is None else generation.prompt_of(self.start)
        self.ids = self.caption = None
        self.generated, self.resolved = False, None
        if self.flat is not None:
            self.flat = Flat(lambda: "the host has made a sequence of another length of it")

    def _unhide(self, origin: Mixed, count: int) -> None:
        """Learn which tokens are padding: those of the text that its mask of ids leaves out."""
        mask, text = self.attention, origin.at("text")
        if text.shape != self.shape or not isinstance(mask, Tensor) or mask.ndim != 2:
            return
        if mask.shape[1] == count and bool((text.sum(1) == count).all()):
            self.real = torch.ones_like(text).masked_scatter(text, mask.bool().to(text.device))
            self.hidden_padding = False

    def why_not(self) -> str | None:
        """Return why what is known of whose its tokens are is not to be believed; None if it is."""
        if callable(self.doubt):
            if torch.compiler.is_compiling():  # nobody looks at a tensor there
                return None
            self.doubt = self.doubt()
        return self.doubt

    def ask(self, other: Call) -> None:
        """Know of ids what another call knows, whose tokens these are too."""
        self.ids, self.ids_at, self.caption = other.ids, other.ids_at, other.caption

    def places(self, device: torch.device | None = None) -> Tensor:
        """Return where its tokens stand in the sequence, [S], or each in its own, [B, S].

        Needs ``shape``, and ``start`` or ``segments``.
        """
        if self.segments is not None:
            return self.segments.place
        if self.columns is not None:
            return self.columns
        start, length = cast("int", self.start), cast("tuple[int, int]", self.shape)[1]
        return torch.arange(start, start + length, device=device)


def read_call(
    module: nn.Module,
    adapter: Adapter,
    inputs: Mapping[str, Any],
    outer: Call | None = None,
    generation: Generation | None = None,
) -> Call:
    """Read what one call of a host tells of its tokens.

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
    start = length_of(cache_in(inputs))
    columns = None
    if isinstance(start, Tensor):  # now: the host changes it in place
        columns = start + torch.arange(length, device=start.device)
    call = Call((rows, length), start=start, columns=columns)
    call.attention = inputs.get("attention_mask")
    if generation is not None:
        if not generation.begun:
            generation.begin(inputs, call)
        call.given, call.prompt = generation.call.given, generation.prompt_of(start)
        call.prompt_real = generation.call.prompt_real
    elif outer is not None and outer.flat is not None:
        call.flat, call.start = outer.flat, None
    elif packs(inputs, (rows, length), start):
        call.flat, call.start = _flat(inputs, (rows, length), start), None
    if generation is not None:
        call.ask(generation.call)
    elif ids is not None:
        call.ids, call.caption = ids, caption_in(ids)
    elif outer is not None and outer.shape is not None and outer.shape[1] == length:
        call.ask(outer)
    call.modality = _modality(module, adapter, inputs, call, outer, generation)
    if isinstance(call.modality, Mixed):
        call.witness = "argument" if adapter.places else "ids"
    call.real = _real(call.attention, call)
    return call


def _flat(inputs: Mapping[str, Any], shape: tuple[int, int], start: Any) -> Flat:
    if cache_in(inputs) is not None and known_int(start) != 0:
        return Flat(lambda: "it goes on with a cache, and nobody shows what is in it")
    return Flat(lambda: sequences_in(inputs, shape))


def read_step(adapter: Adapter, inputs: Mapping[str, Any], generation: Generation) -> Call | None:
    """Read, as ``read_call``, a step of ``generate`` that holds only what was generated.

    Most steps are such, and this looks at no tensor. None for all others.
    """
    ids, cache = inputs.get("input_ids"), cache_in(inputs)
    if ids is None or not hasattr(cache, "get_seq_length"):
        return None
    if not torch.compiler.is_compiling() and generation.caches.setdefault(HOST, cache) is not cache:
        return None
    # ``start`` first: beside a static cache compiled code must not know the prompt's length.
    start = cache.get_seq_length()
    if not isinstance(start, int):
        return None
    prompt = generation.call.prompt
    if not isinstance(prompt, int) or start < prompt or "encoder_hidden_states" in inputs:
        return None
    if not inputs.keys().isdisjoint(adapter.visual_inputs) and _shows_images(adapter, inputs):
        return None
    modality, shape = "text" if adapter.has_placeholders else None, ids.shape
    call = Call((shape[0], shape[1]), modality, None, start, None, prompt)
    call.generated = True
    return call


def _modality(
    module: nn.Module,
    adapter: Adapter,
    inputs: Mapping[str, Any],
    call: Call,
    outer: Call | None,
    generation: Generation | None,
) -> Modality | None:
    """Return whose a call's tokens are, by the ids of the placeholders of what it carries."""
    ids: Tensor | None = inputs.get("input_ids")
    embeds: Any = inputs.get("inputs_embeds")
    marked = inputs.get(adapter.places) if adapter.places else None
    if isinstance(marked, Tensor) and marked.shape == call.shape:
        return Mixed.of(image=marked.bool())
    if adapter.places and ids is not None:
        return "text"
    if ids is not None and not adapter.has_placeholders:
        # What a host says of itself, it says where something is brought.
        says = bool(places_itself(module))
        return "text" if says and not _brought(adapter, inputs) else None
    carried = _placeholders(module, adapter, inputs)
    if ids is not None:
        masks = {name: _any_of([ids == i for i in own]) for name, own in carried.items()}
        return Mixed(masks) if masks else "text"
    if carried and call.given is None:
        if min(i for own in carried.values() for i in own) < 0:  # the host never embeds such
            return None
        embed = cast(Callable[[], nn.Module], module.get_input_embeddings)()
        return Mixed({name: _embedded(own, embed, embeds) for name, own in carried.items()})
    if outer is not None and outer.shape is not None and outer.modality is not None:
        return outer.modality if outer.shape[1] == embeds.size(1) else None
    known = None if generation is None else generation.call.modality
    if isinstance(known, Mixed):
        return known.columns(call.start, embeds.size(1)) if isinstance(call.start, int) else None
    return known


def _embedded(ids: tuple[int, ...], embed: nn.Module, embeds: Tensor) -> Tensor:
    """Return where embeddings [B, S, D] are those of some ids."""
    rows = embed(torch.tensor(ids, device=embeds.device))
    return _any_of([(embeds == row).all(-1) for row in rows])


def _placeholders(
    module: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Return the ids of the placeholders of what a call brings, by modality."""
    brought = _brought(adapter, inputs)
    if not brought:
        return {}
    ids = placeholder_ids(module, adapter)
    seen = [name for name in ids if name != "audio"]
    if len(seen) == 1 and brought - {"audio"}:  # frames of a video too it puts there
        brought = {*brought, *seen}
    return {name: own for name, own in ids.items() if name in brought}


def _brought(adapter: Adapter, inputs: Mapping[str, Any]) -> set[str]:
    """Return the modalities that a call brings features or files of."""
    brought: set[str] = set()
    for name in adapter.visual_inputs:
        value = inputs.get(name)
        if isinstance(value, Mapping):
            brought |= {key for key, item in value.items() if item is not None}
        elif value is not None:
            brought.add(brought_by(name))
    return brought


def places_itself(root: nn.Module) -> list[nn.Module]:
    """Return the modules of a host that say where features go: itself, the model in it, or none."""
    modules = (root, getattr(root, "base_model", None), getattr(root, "model", None))
    distinct = {id(m): m for m in modules if isinstance(m, nn.Module)}
    return [module for module in distinct.values() if callable(getattr(module, PLACES, None))]


def take_columns(known: Tensor, start: int, length: int) -> Tensor:
    """Take columns ``start`` to ``start + length`` of a mask [B, P], True past its end."""
    part = known[:, start : start + length]
    gap = length - part.shape[1]
    if not gap:
        return part
    return torch.cat([part, part.new_ones((len(part), gap))], 1)


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


def real_of_merged(attention: Any, start: int | None, length: int) -> tuple[Tensor | None, bool]:
    """Return the real tokens of a sequence unlike its ids in length; and whether padding hides."""
    if attention is None:
        return None, False
    if not isinstance(attention, Tensor) or attention.ndim not in (2, 4) or start is None:
        return None, True
    end = start + length
    if attention.ndim == 2 and attention.shape[1] >= end:
        return attention[:, start:end].bool(), False
    if torch.compiler.is_compiling():
        return None, True
    if attention.ndim == 2:  # of the ids: where none is padding, no token is
        return None, not bool(attention.all())
    view = attention[:, 0, :length, :end]
    return _real_of_causal(view if view.dtype == torch.bool else view == 0, start)


def _real_of_causal(seen: Tensor, start: int) -> tuple[Tensor | None, bool]:
    """Return as ``real_of_merged``, by what each token sees, [B, S, S]; a window hides padding."""
    if bool(seen[:, -1].all()):
        return None, False
    real = seen[:, -1]
    if start or seen.shape[1] != seen.shape[2]:
        return None, True
    before = torch.ones_like(seen[0]).tril() & real[:, None]
    wrong = ((before & ~seen) | (seen & ~real[:, None])) & real[:, :, None]
    return (None, True) if bool(wrong.any()) else (real, False)


def known_int(start: int | Tensor | None) -> int | None:
    """Return a place as a number, where it may be looked at; None where nobody can know."""
    if isinstance(start, Tensor):
        return None if torch.compiler.is_compiling() else int(start)
    return start


def _real_of_prompt(call: Call) -> Tensor | None:
    """Return the real tokens of calls with another mask, as a static cache's [B, 1, S, K]."""
    whole = call.prompt_real
    if whole is None or call.shape is None:
        return None
    if isinstance(call.start, int):
        return take_columns(whole, call.start, call.shape[1])
    if call.columns is None:
        return None
    padded = take_columns(whole, 0, whole.shape[1] + 1)
    return padded[:, call.columns.clamp(max=whole.shape[1])]


def cache_in(inputs: Mapping[str, Any]) -> Any:
    """Return the cache that a call goes on with, by whatever name; None if it has none."""
    for name in CACHES:
        if inputs.get(name) is not None:
            return inputs[name]
    return next((v for v in inputs.values() if hasattr(v, "get_seq_length")), None)


def cache_of(output: Any) -> Any:
    """Return the cache that a call returned; None if it did not."""
    # Outputs of transformers answer to former names as well, and warn of it.
    held = getattr(output, "__dict__", {})
    cache = next((held[name] for name in CACHES if held.get(name) is not None), None)
    if cache is not None or hasattr(output, "to_tuple"):
        return cache
    return next((c for n in CACHES if (c := getattr(output, n, None)) is not None), None)


def length_of(cache: Any) -> int | Tensor | None:
    """Count the tokens that a cache holds; None if it does not tell."""
    if cache is None:
        return 0
    measure = getattr(cache, "get_seq_length", None)
    return measure() if callable(measure) else None


def _shows_images(adapter: Adapter, inputs: Mapping[str, Any]) -> bool:
    for name in adapter.visual_inputs:  # noqa: SIM110 - any() would make a generator at every step
        if name in inputs and _carried(inputs[name]):
            return True
    return False


def _carried(value: Any) -> bool:
    if value is None or isinstance(value, Tensor):  # first: asking for a Mapping takes longer
        return value is not None
    return not isinstance(value, Mapping) or any(item is not None for item in value.values())
