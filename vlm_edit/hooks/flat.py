"""Several sequences in one row: which of them a token is of, and where it stands in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vlm_edit.ground.errors import BadArgument

_LENGTHS = ("cu_seq_lens_q", "cu_seqlens_q")
_OF_KEYS = ("cu_seq_lens_k", "cu_seqlens_k")
_WHOLE_ROW = "give one value per token of the packed row"


class Span(NamedTuple):
    """The tokens of one request in a call.

    Attributes:
        place: Of the first of them in the request.
        length: How many there are.
        prompt: How long the request's prompt is.
        row: Which row of a batch the request would be; None if nobody can know.
    """

    place: int
    length: int
    prompt: int
    row: int | None = None


@dataclass(eq=False)
class Segments:
    """The sequences that lie end to end in the rows of a call, [B, S].

    Attributes:
        number: [B, S], which of the call's sequences each token is of; -1 where a row is filled up.
        place: [B, S], where each token stands in its own sequence.
        prompt: [B, S], how long the prompt of its sequence is.
        row: [B, S], which row of a batch its sequence would be; None if nobody can know.
        rows: How many rows that batch would have.
        is_prompt: Whether all tokens are of prompts.
        is_whole: Whether the call has all tokens of each sequence.
        real: [B, S] bool, False where a row is filled up; None where none is.
    """

    number: Tensor
    place: Tensor
    prompt: Tensor
    row: Tensor | None
    rows: int
    is_prompt: bool
    is_whole: bool
    real: Tensor | None = None

    @classmethod
    def of(cls, spans: Sequence[Span], length: int, rows: int, device: torch.device) -> Segments:
        """Return those of requests that lie end to end in one row, which may be filled up behind.

        Example:
            >>> spans = [Span(7, 1, 5, 0), Span(0, 3, 3, 1)]  # one token decoded, one prompt
            >>> Segments.of(spans, 4, 2, torch.device("cpu")).place
            tensor([[7, 0, 1, 2]])
        """
        places = [span.place + i for span in spans for i in range(span.length)]
        filler = length - len(places)

        def spread(values: Iterable[int], behind: int = 0) -> Tensor:
            each = [v for span, v in zip(spans, values, strict=True) for _ in range(span.length)]
            return torch.tensor([each + [behind] * filler], device=device)

        numbers = [span.row for span in spans if span.row is not None]
        real = torch.arange(length, device=device).unsqueeze(0) < len(places) if filler else None
        return cls(
            spread(range(len(spans)), -1),
            torch.tensor([places + [0] * filler], device=device),
            spread([span.prompt for span in spans]),
            spread(numbers) if len(numbers) == len(spans) else None,
            rows,
            all(span.place + span.length <= span.prompt for span in spans),
            False,
            real,
        )

    def at(self, positions: Tensor) -> Tensor:
        """Return the tokens at places of their prompts, negative from the end, [B, S] bool."""
        last = self.prompt.unsqueeze(-1)
        targets = torch.where(positions < 0, last + positions, positions)
        return (self.place.unsqueeze(-1) == targets).any(-1) & (self.place < self.prompt)

    def given(self, given: Tensor, otherwise: Any, name: str) -> Tensor:
        """Return what is given of prompts at the call's tokens, and another value behind them.

        Args:
            given: Of a call with all tokens one value for each, [B, S]; else [requests, P], where
                all prompts have P tokens.
            otherwise: A tensor [B, S], or one value for all.
            name: What the user calls it.

        Raises:
            BadArgument: It is of another shape, or prompts differ in length.
        """
        if self.is_whole:
            if given.shape != self.place.shape:
                raise BadArgument(
                    f"{name} is {tuple(given.shape)}, and this call packs {self.rows} sequences "
                    f"into {tuple(self.place.shape)} tokens: {_WHOLE_ROW}"
                )
            return given.to(self.place.device)
        width = given.shape[-1]
        if given.ndim != 2 or bool((self._counted(self.prompt) != width).any()):
            raise BadArgument(
                f"{name} is {tuple(given.shape)}, and prompts of this call have other lengths: "
                "give one value per token only where all requests' prompts are as long"
            )
        values = given.to(self.place.device)
        row = self.row_among(len(values), name) if len(values) > 1 else torch.zeros_like(self.place)
        values = values[row, self.place.clamp(max=width - 1)]
        if not isinstance(otherwise, Tensor):
            otherwise = torch.tensor(otherwise, device=values.device)
        return torch.where(self.place < self.prompt, values, otherwise)

    def row_among(self, count: int, name: str) -> Tensor:
        """Return which of some rows each token is of, [B, S].

        Args:
            count: How many rows the user means.
            name: Of what the user gives for each.

        Raises:
            BadArgument: Another number than there are sequences, or sequences without an order.
        """
        if self.row is None:
            raise BadArgument(
                f"{name} has {count} values, and the requests of this call have no order: rows are "
                "the prompts of generate_batch. For a manager of your own, name requests with "
                "attach(..., requests=)"
            )
        if count != self.rows:
            kind = "sequences in this call" if self.is_whole else "prompts of generate_batch"
            raise BadArgument(
                f"{name} has {count} values, and there are {self.rows} {kind}: give one for each, "
                "in order, or one for all"
            )
        return self.row

    def _counted(self, values: Tensor) -> Tensor:
        return values if self.real is None else values[self.real]


class Flat:
    """What is known of a call whose rows hold several sequences, found out when it is asked.

    Args:
        find: Returns the sequences, or why nobody can know them.
        requests: The sequences' names, which are requests of an engine; None outside of one.
    """

    def __init__(
        self, find: Callable[[], Segments | str], requests: Sequence[str] | None = None
    ) -> None:
        self._find: Callable[[], Segments | str] | None = find
        self._found: Segments | str = ""
        self.requests = requests

    @property
    def segments(self) -> Segments | None:
        """Return the sequences; None if nobody can know them."""
        if torch.compiler.is_compiling():  # nobody looks at a tensor there
            return None
        if self._find is not None:
            self._found, self._find = self._find(), None
        return self._found if isinstance(self._found, Segments) else None

    @property
    def why(self) -> str:
        """Return why nobody can know the sequences."""
        if torch.compiler.is_compiling():
            return "compiled code looks at no position_ids"
        return "" if self.segments is not None else str(self._found)


def packs(inputs: Mapping[str, Any], shape: tuple[int, int], start: Any) -> bool:
    """Return whether rows hold several sequences, as for continuous batching or without padding."""
    if _first_of(inputs, _LENGTHS) is not None:
        return True
    length, attention = shape[1], inputs.get("attention_mask")
    if length == 1 or not isinstance(start, int) or start != 0:
        return False
    places = _places(inputs, length)
    if places is None:
        return False
    if torch.compiler.is_compiling():  # nobody looks at a tensor there
        return attention is None
    again = (places[:, 1:] < places[:, :-1]) | (places[:, 1:] == 0)
    if isinstance(attention, Tensor) and attention.shape[1:] == (length,):
        again = again & attention[:, 1:].bool() & attention[:, :-1].bool()
    return bool(again.any())


def sequences_in(inputs: Mapping[str, Any], shape: tuple[int, int]) -> Segments | str:
    """Return the sequences of a call without a cache, each of which is all here, or why not.

    ``position_ids``, ``cu_seq_lens_q`` and ``seq_idx`` tell where each begins, and must agree.

    Args:
        inputs: The call's arguments by name.
        shape: Its rows and tokens.
    """
    attention, device = inputs.get("attention_mask"), _device_of(inputs)
    real = None
    if isinstance(attention, Tensor) and attention.shape == shape:
        real = attention.bool().to(device)
    tellers = (_by_places(inputs, shape, real), _by_lengths(inputs, shape), _by_numbers(inputs))
    begins = [told for told in tellers if told is not None]
    reason = next((told for told in begins if isinstance(told, str)), None)
    if reason is not None:
        return reason
    masks = [told.to(device) for told in begins if isinstance(told, Tensor)]
    if not masks or any(not torch.equal(mask, masks[0]) for mask in masks[1:]):
        return "its position_ids, cu_seq_lens_q and seq_idx do not agree where each begins"
    if not isinstance(tellers[0], Tensor) and not _has_no_past(inputs):
        return "it has neither position_ids nor cu_seq_lens_k, so what came before is not shown"
    return _whole(masks[0], real)


def _whole(begins: Tensor, real: Tensor | None) -> Segments:
    """Return the sequences that begin at some tokens, [B, S], each of them all prompt."""
    rows, length = begins.shape
    number = (begins.flatten().cumsum(0) - 1).clamp(min=0)
    counted = torch.ones_like(number) if real is None else real.flatten().long()
    count = int(begins.sum())
    lengths = number.new_zeros(count).scatter_add_(0, number, counted)
    at = torch.arange(length, device=begins.device).expand(rows, length)
    place = at - torch.where(begins, at, 0).cummax(1).values
    number, prompt = (rearrange(v, "(b s) -> b s", b=rows) for v in (number, lengths[number]))
    return Segments(number, place, prompt, number, count, is_prompt=True, is_whole=True)


def _by_places(
    inputs: Mapping[str, Any], shape: tuple[int, int], real: Tensor | None
) -> Tensor | str | None:
    """Return where sequences begin by ``position_ids``: where these do not go on by one."""
    places = _places(inputs, shape[1])
    if places is None:
        return None
    places = places.expand(shape)
    first = torch.ones_like(places[:, :1], dtype=torch.bool)
    jumps = torch.cat([first, places[:, 1:] != places[:, :-1] + 1], 1)
    if real is None:
        lowest = places == places.min()
    else:
        before = torch.cat([~first, real[:, :-1]], 1)
        jumps, lowest = (jumps | ~before) & real, (places == places[real].min()) & real
    if not torch.equal(jumps, lowest):
        return "its position_ids do not go on by one from where each begins"
    return jumps


def _by_lengths(inputs: Mapping[str, Any], shape: tuple[int, int]) -> Tensor | str | None:
    """Return where sequences begin by their lengths, summed up."""
    given = _first_of(inputs, _LENGTHS)
    if given is None:
        return None
    ends = torch.as_tensor(given).flatten().tolist()
    if shape[0] != 1 or not ends or ends[0] != 0 or ends[-1] != shape[1]:
        return f"its cu_seq_lens_q do not lead from 0 to its {shape[1]} tokens"
    begins = torch.zeros(shape, dtype=torch.bool)
    begins[0, [end for end in ends if end < shape[1]]] = True
    return begins


def _by_numbers(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return where sequences begin by their numbers, ``seq_idx``."""
    numbers = inputs.get("seq_idx")
    if not isinstance(numbers, Tensor) or numbers.ndim != 2:
        return None
    first = torch.ones_like(numbers[:, :1], dtype=torch.bool)
    return torch.cat([first, numbers[:, 1:] != numbers[:, :-1]], 1)


def _has_no_past(inputs: Mapping[str, Any]) -> bool:
    """Return whether as many tokens are seen as there are in the call."""
    queries, keys = _first_of(inputs, _LENGTHS), _first_of(inputs, _OF_KEYS)
    if queries is None or keys is None or isinstance(keys, Mapping):
        return False
    return bool(torch.equal(torch.as_tensor(queries).cpu(), torch.as_tensor(keys).cpu()))


def _places(inputs: Mapping[str, Any], length: int) -> Tensor | None:
    """Return a call's places in its texts, [B, S]; None where it shows none."""
    places = inputs.get("position_ids")
    if not isinstance(places, Tensor):
        return None
    if places.ndim == 3 and len(places) == 4:  # places in the text, then those of M-RoPE
        places = places[0]
    return places if places.ndim == 2 and places.shape[1] == length else None


def _device_of(inputs: Mapping[str, Any]) -> torch.device:
    sequence = inputs.get("input_ids")
    if sequence is None:
        sequence = inputs["inputs_embeds"]
    device: torch.device = sequence.device
    return device


def _first_of(inputs: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)
