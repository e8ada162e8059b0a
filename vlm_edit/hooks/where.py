"""Which tokens of an output are chosen: by modality, by phase, by position, by the user's mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from einops import repeat
from torch import Tensor

from vlm_edit.errors import VlmEditError
from vlm_edit.hooks.calls import Call
from vlm_edit.sites import Stream

Tokens = Literal["all", "image", "text"]
Phase = Literal["both", "prompt", "decode"]

_Place = int | Tensor
_FAR = 2**31  # further than any sequence, and sums of such still fit a tensor


@dataclass(eq=False)  # not frozen: one is made at every output, and that takes twice as long
class Where:
    """What is known of the tokens at a tap.

    Attributes:
        stream: The tap's stream.
        call: What the call under way tells; empty outside one.
        image_mask: [B, P] bool, the prompt's image tokens as the user says; None if unsaid.
    """

    stream: Stream
    call: Call = field(default_factory=lambda: Call())
    image_mask: Tensor | None = None

    @property
    def image(self) -> Tensor | bool | None:
        """[B, S] bool, True at image tokens; False where none is; None where it is not known."""
        if self.stream != "mixed":
            return None
        known = self.call.image
        if known is None and self.call.decodes:
            known = False  # what is generated is text
        if self.image_mask is None:
            return known
        return cast(
            "Tensor | bool | None", given_in(self.image_mask, self.call, known, "image_mask")
        )

    @property
    def real(self) -> Tensor | None:
        """[B, S] bool, False at padding; None where every token is real or nothing is known."""
        return None if self.stream == "image" else self.call.real

    @property
    def images(self) -> Tensor | None:
        """[N], the image that each row of a packed output [N, D] belongs to; None if batched.

        Counted for the host's own patches: an output of fewer rows, as a merger's, has every
        n-th of them.
        """
        grid = self.call.grid
        if grid is None:
            return None
        sizes = grid.prod(-1)
        return torch.arange(len(sizes), device=grid.device).repeat_interleave(sizes)

    def images_at(self, hidden: Tensor) -> Tensor | None:
        """[N], the image of each row of this packed output; None if images are batched.

        Raises:
            VlmEditError: The output's rows are no whole part of the patches.
        """
        images = self.images
        if images is None or hidden.ndim != 2:
            return None
        if len(images) % len(hidden):
            raise VlmEditError(
                f"the images have {len(images)} patches in all, this site's output is "
                f"{tuple(hidden.shape)}: its rows cannot be told apart"
            )
        return images[:: len(images) // len(hidden)].to(hidden.device)

    def image_at(self, hidden: Tensor) -> Tensor | None:
        """Mask [B, S] of the image tokens in this output, None where it is not known."""
        image = self.image
        if image is False or image is True:
            return torch.full(hidden.shape[:-1], image, dtype=torch.bool, device=hidden.device)
        return fit(image, hidden)

    def select(self, tokens: str, hidden: Tensor) -> Tensor | None:
        """Mask [B, S] of a stream's real tokens, or None for all of them.

        Args:
            tokens: ``image``, ``text`` or ``all``. At a tap of one stream its own name is all.
            hidden: [B, S, D] or [B, D], the tap's output.

        Raises:
            VlmEditError: The other stream's tokens, or a call of the host that does not tell.
        """
        chosen = Selection(cast("Tokens", tokens)).choose(self, hidden)
        if isinstance(chosen, Tensor):
            return chosen
        return None if chosen else hidden.new_zeros(hidden.shape[:-1], dtype=torch.bool)


@dataclass(frozen=True)
class Selection:
    """The tokens that an edit is made to; padding never is.

    Attributes:
        tokens: ``image``, ``text`` or ``all``.
        phase: ``prompt``, ``decode`` (what was generated) or ``both``.
        steps: First and one past the last decode step, counted from 0, the step whose input is
            the first token generated; None for all. The last may be None for no end.
        positions: Places in the prompt, padding not counted, negative from its end; then no
            other token. None for all.

    Raises:
        VlmEditError: An unknown word, or choices that contradict each other.
    """

    tokens: Tokens = "all"
    phase: Phase = "both"
    steps: tuple[int, int | None] | None = None
    positions: tuple[int, ...] | None = None
    _whole: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check and normalise."""
        narrowed = (self.tokens, self.phase, self.steps, self.positions)
        object.__setattr__(self, "_whole", narrowed == ("all", "both", None, None))
        for name, value, known in (
            ("tokens", self.tokens, get_args(Tokens)),
            ("phase", self.phase, get_args(Phase)),
        ):
            if value not in known:
                raise VlmEditError(f"{name} is {value!r}; use {', '.join(map(repr, known))}")
        if self.steps is not None:
            object.__setattr__(self, "steps", _window(self.steps))
            if self.phase == "prompt":
                raise VlmEditError("steps are of decoding, phase='prompt' leaves none: drop one")
        if self.positions is not None:
            object.__setattr__(self, "positions", _whole(self.positions))
            if self.phase == "decode" or self.steps is not None:
                raise VlmEditError("positions are of the prompt: they go with phase='prompt'")

    def choose(self, where: Where, hidden: Tensor, mask: Tensor | None = None) -> Tensor | bool:
        """Mask of the chosen tokens of an output, or one answer for all of them.

        Args:
            where: What is known of them.
            hidden: [B, S, D]; or pooled [B, D], or packed [N, D], whose rows are all one.
            mask: [B, P] bool, chosen by the user among the prompt's tokens, in place of
                ``tokens``. What is generated after the prompt is chosen as without it.

        Raises:
            VlmEditError: A stream that does not pass, a call that does not tell what is asked,
                or a mask of another shape.
        """
        padding = where.stream != "image" and where.call.hidden_padding
        if self._whole and mask is None and where.real is None and not padding:
            return True
        if self.tokens not in ("all", where.stream) and where.stream != "mixed":
            raise VlmEditError(f"no {self.tokens} tokens pass here, only {where.stream}")
        if hidden.ndim != 3:
            if mask is None or self.phase != "both" or self.steps is not None:
                expect_rows(where, hidden, self._asked, pooled=self.tokens == "all")
            return self._choose_whole(where, hidden, mask)
        call = _call_of(where, hidden)
        parts = [self._in_window(call), self._at_positions(call)]
        parts.append(self._of_stream(where, call, mask))
        if any(part is False for part in parts):
            return False
        if padding and mask is None:
            raise VlmEditError(
                f"the host has made a sequence of {hidden.size(1)} tokens of {call.given} ids, "
                "some of which are padding, and its attention mask does not show which: name the "
                "module that is called with the whole sequence in Adapter.calls, or pass mask= of "
                f"{tuple(hidden.shape[:2])}"
            )
        found = [fit(p, hidden) for p in (*parts, where.real) if isinstance(p, Tensor)]
        return _all_of(cast("list[Tensor]", found))

    def _choose_whole(self, where: Where, hidden: Tensor, mask: Tensor | None) -> Tensor | bool:
        """Outputs without a sequence: embeddings, packed patches, maps of features."""
        if self.positions is not None:
            raise VlmEditError(
                f"positions={self.positions}: this site's output is {tuple(hidden.shape)}, which "
                "has no sequence of tokens per row; use mask= or leave positions out"
            )
        if self.phase == "decode":
            return False
        if mask is None:
            return True
        if mask.shape != hidden.shape[:-1]:
            raise VlmEditError(
                f"mask is {tuple(mask.shape)}, this site's output ({where.stream}) is "
                f"{tuple(hidden.shape)}: it needs a mask of {tuple(hidden.shape[:-1])}"
            )
        return mask.to(hidden.device)

    @property
    def _asked(self) -> str:
        """What is asked of each token, in the user's words."""
        told = [f"{name}={getattr(self, name)!r}" for name in ("tokens", "phase", "steps")]
        return ", ".join(told[:2] if self.steps is None else told)

    def _in_window(self, call: Call) -> Tensor | bool:
        if self.phase == "both" and self.steps is None:
            return True
        if call.prompt is None or call.start is None:
            raise VlmEditError(
                f"phase={self.phase!r}, steps={self.steps}: {unplaced(call)}, so nobody can tell "
                f"prompt from answer. {_MENDS[call.packed]}, or use phase='both'"
            )
        first, last = self.steps or (0, None)
        spans: list[tuple[_Place, _Place | None]] = [(call.prompt + first, None)]
        if last is not None:
            spans = [(call.prompt + first, call.prompt + last)]
        if self.phase == "prompt":
            spans = [(0, call.prompt)]
        elif self.phase == "both":
            spans.insert(0, (0, call.prompt))
        return _within(spans, call)

    def _at_positions(self, call: Call) -> Tensor | bool:
        if self.positions is None:
            return True
        if call.decodes:
            return False
        if call.prompt is None or call.start is None:
            raise VlmEditError(
                f"positions={self.positions}: {unplaced(call)}. {_MENDS[call.packed]}"
            )
        return _placed(self.positions, call)

    def _of_stream(self, where: Where, call: Call, mask: Tensor | None) -> Tensor | bool:
        chosen: Tensor | bool | None = True
        if where.stream == "mixed" and self.tokens != "all":
            image = where.image
            if image is None:
                chosen = None
            elif isinstance(image, Tensor):
                chosen = image if self.tokens == "image" else ~image
            else:
                chosen = image == (self.tokens == "image")
        if mask is not None:
            beyond = self.tokens != "image"  # what is generated is text
            chosen = cast("Tensor | bool | None", given_in(mask, call, chosen, "mask", beyond))
        if chosen is None and call.given is not None:
            length = call.prompt if isinstance(call.prompt, int) else "tokens"
            raise VlmEditError(
                f"tokens={self.tokens!r}: the host has made a sequence of another length of "
                f"{call.given} ids, so nobody can tell image tokens from text. Say which are image "
                f"with attach(..., image_mask=), [batch, {length}], or use tokens='all'"
            )
        if chosen is None:
            raise VlmEditError(
                f"tokens={self.tokens!r}: this call of the host shows neither input_ids nor image "
                "inputs, so nobody can tell image tokens from text. Call the whole host with "
                "input_ids, say which are image with attach(..., image_mask=), or use tokens='all'"
            )
        return chosen


def given_in(
    given: Tensor,
    call: Call,
    otherwise: Tensor | float | None,
    name: str,
    beyond: bool = False,
) -> Tensor | float | None:
    """The part of what a user says of the prompt that falls into a call, then what else is known.

    Args:
        given: [B, P], one value per token of the prompt.
        call: The call.
        otherwise: What is known of the call's tokens without it.
        name: What the user calls it.
        beyond: What holds of tokens behind the prompt where nothing is known without it.

    Raises:
        VlmEditError: The mask's length is not the prompt's, or the call's place is not known.
    """
    if call.packed:
        raise VlmEditError(f"{name} is given, but {unplaced(call)}. {_MENDS[True]}")
    if given.ndim != 2:
        raise VlmEditError(
            f"{name} is {tuple(given.shape)}: give one value per token of the prompt, [batch, "
            "tokens], padding included"
        )
    if call.shape is None or call.start is None:
        raise VlmEditError(
            f"{name} is given, but this call of the host does not show which tokens it holds: "
            "call the whole host with input_ids or inputs_embeds"
        )
    width = given.shape[1]
    if isinstance(call.prompt, int) and call.prompt != width:
        raise VlmEditError(
            f"{name} is {tuple(given.shape)}, the prompt has {call.prompt} tokens: give one value "
            "per token of the prompt, padding included"
        )
    length = call.shape[1]
    if isinstance(call.start, int):
        if call.start >= width:
            return otherwise
        if call.start + length <= width:
            return given[:, call.start : call.start + length]
    if otherwise is None:
        otherwise = beyond
    device = otherwise.device if isinstance(otherwise, Tensor) else given.device
    columns = call.places(device)
    known = given.to(columns.device)[:, columns.clamp(max=width - 1)]
    if isinstance(otherwise, Tensor) and len(otherwise) != len(known):
        known = repeat(known, "b s -> (b k) s", k=len(otherwise) // len(known))
    rest = otherwise if isinstance(otherwise, Tensor) else torch.tensor(otherwise, device=device)
    return torch.where(columns < width, known, rest)


def unplaced(call: Call) -> str:
    """Why nobody can tell where a call's tokens stand."""
    if call.packed:
        return (
            "this call packs several sequences into a row (it has cu_seq_lens_q, or position_ids "
            "that begin again), as continuous batching and training without padding do"
        )
    return (
        "this call goes on with a cache whose prompt was not seen in one call, or drafts for "
        "another model, or is one of two sequences without a cache"
    )


_MENDS = {
    False: "Use the host's generate, or give the whole prompt to one call",
    True: "Use the host's generate on a padded batch, or edit all tokens of both phases alike",
}


def expect_rows(where: Where, hidden: Tensor, asked: str, pooled: bool = True) -> None:
    """Refuse what nobody can tell of a mixed site's output that has no tokens in rows.

    Args:
        where: What is known of it.
        hidden: The output.
        asked: What is asked, in the user's words.
        pooled: Whether it can be answered where the output is one for each row of the batch.

    Raises:
        VlmEditError: Its image and text tokens may stand anywhere.
    """
    if where.stream != "mixed" or hidden.ndim == 3:
        return
    shape = where.call.shape
    if pooled and shape is not None and len(hidden) == shape[0]:
        return
    seen = "no token ids" if shape is None else f"token ids of shape {shape}"
    raise VlmEditError(
        f"{asked}: image and text share this site's output of {tuple(hidden.shape)}, and the "
        f"host's call shows {seen}: nobody can tell which row is which token. Pass mask= of "
        f"{tuple(hidden.shape[:-1])}, use a site whose output is [batch, tokens, width], or edit "
        "all tokens of inputs without padding"
    )


def fit(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """The mask for this output: beams repeat rows; pooled outputs have no tokens to mask.

    Raises:
        VlmEditError: Another length, or no whole number of rows per row.
    """
    if mask is None or hidden.ndim < 3:
        return None
    rows, length = hidden.shape[:2]
    if mask.shape[1] != length or rows % mask.shape[0]:
        raise VlmEditError(
            f"the host's call has token ids of shape {tuple(mask.shape)} but this site's output "
            f"is {tuple(hidden.shape)}: its tokens cannot be told apart"
        )
    mask = mask.to(hidden.device)
    if mask.shape[0] == rows:
        return mask
    return repeat(mask, "batch tokens -> (batch beams) tokens", beams=rows // mask.shape[0])


def _call_of(where: Where, hidden: Tensor) -> Call:
    """At taps of images alone the prompt is the image's own tokens."""
    if where.stream != "image" and where.call.shape is not None:
        return where.call
    rows, length = hidden.shape[:2]
    if where.stream == "mixed":
        return Call((rows, length), start=None)
    return Call((rows, length), start=0, prompt=length)


def _within(spans: list[tuple[_Place, _Place | None]], call: Call) -> Tensor | bool:
    if isinstance(call.start, int) and call.shape is not None:
        low, high = call.start, call.start + call.shape[1]
        inside = [a <= low and (b is None or high <= b) for a, b in spans]
        outside = [high <= a or (b is not None and b <= low) for a, b in spans]
        if any(inside) or all(outside):
            return any(inside)
    columns = call.places()
    found = torch.zeros_like(columns, dtype=torch.bool)
    for a, b in spans:
        found = found | ((columns >= a) if b is None else (columns >= a) & (columns < b))
    return found.unsqueeze(0)


def _placed(positions: Sequence[int], call: Call) -> Tensor:
    """[B, S] or [1, S] bool, the call's tokens at places among the real ones of the prompt."""
    columns = call.places()
    real = call.prompt_real if call.prompt_real is not None else call.real
    wanted = torch.tensor(positions, device=columns.device)
    if real is None:
        place, last = columns.unsqueeze(0), call.prompt
        inside = (columns < cast("Tensor", call.prompt)).unsqueeze(0)
    else:
        real = real.to(columns.device)
        at = columns.clamp(max=real.shape[1] - 1)
        place, last = (real.cumsum(1) - 1)[:, at], real.sum(1).view(-1, 1, 1)
        inside = real[:, at] & (columns < real.shape[1])
    wanted = torch.where(wanted < 0, cast("Tensor", last) + wanted, wanted)
    return (place.unsqueeze(-1) == wanted).any(-1) & inside


def _all_of(masks: list[Tensor]) -> Tensor | bool:
    if not masks:
        return True
    found = masks[0]
    for mask in masks[1:]:
        found = found & mask
    return found


def _window(steps: Any) -> tuple[int, int | None]:
    try:
        first, last = steps
    except (TypeError, ValueError) as error:
        raise VlmEditError(f"steps is {steps!r}; give (first, one past the last)") from error
    numbers = [n for n in (first, last) if n is not None]
    if not all(type(n) is int and 0 <= n < _FAR for n in numbers) or first is None:
        raise VlmEditError(f"steps is {steps!r}; decode steps are whole numbers from 0 to {_FAR}")
    if last is not None and last <= first:
        raise VlmEditError(f"steps is {steps!r}: it holds no step")
    return first, last


def _whole(positions: Any) -> tuple[int, ...]:
    listed = tuple(positions) if isinstance(positions, Iterable) else (positions,)
    if not listed or not all(type(p) is int and -_FAR < p < _FAR for p in listed):
        raise VlmEditError(
            f"positions is {positions!r}; give whole numbers, at least one, none beyond {_FAR}"
        )
    return listed
