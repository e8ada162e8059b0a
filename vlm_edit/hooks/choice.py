"""Which tokens of an output are chosen: by modality, by phase, by position, by the user's mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks.calls import Call
from vlm_edit.hooks.given import mend, unplaced
from vlm_edit.hooks.special import Special
from vlm_edit.hooks.tokens import AND_SPECIAL, Tokens

TokenChoice = Literal["all", "image", "video", "visual", "audio", "text", "text+special"]
_WRITTEN = ("all", "text", "text+special")  # what generated text is among
Phase = Literal["both", "prompt", "decode"]

_WORDS = {"text+special": "text and special"}
_Place = int | Tensor
_FAR = 2**31  # further than any sequence, and sums of such still fit a tensor


@dataclass(frozen=True)
class Selection:
    """The tokens that an edit is made to; padding never is.

    Attributes:
        tokens: ``image``, ``video``, ``visual`` (both), ``audio``, ``text`` (a text's own tokens
            and what was generated), ``text+special`` (also those of beginning, end, template, role
            and delimiters) or ``all``.
        phase: ``prompt``, ``decode`` (what was generated) or ``both``.
        steps: First and one past the last decode step, counted from 0, the step whose input is
            the first token generated; None for all. The last may be None for no end.
        positions: Places in the prompt, padding not counted, negative from its end; then no
            other token. None for all.
        generated: Whether it holds generated text; None if that hangs on the step.

    Raises:
        VlmEditError: An unknown word, or choices that contradict each other.
    """

    tokens: TokenChoice = "all"
    phase: Phase = "both"
    steps: tuple[int, int | None] | None = None
    positions: tuple[int, ...] | None = None
    generated: bool | None = field(init=False, repr=False, compare=False)
    _whole: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, and put the rest in one form."""
        limits = (self.tokens, self.phase, self.steps, self.positions)
        object.__setattr__(self, "_whole", limits == ("all", "both", None, None))
        answer = self.tokens in _WRITTEN and self.phase != "prompt" and self.positions is None
        object.__setattr__(self, "generated", answer if self.steps is None else None)
        for name, value, words in (
            ("tokens", self.tokens, get_args(TokenChoice)),
            ("phase", self.phase, get_args(Phase)),
        ):
            if value not in words:
                raise BadArgument(f"{name} is {value!r}; use {', '.join(map(repr, words))}")
        if self.steps is not None:
            object.__setattr__(self, "steps", _window(self.steps))
            if self.phase == "prompt":
                raise BadArgument("steps are of decoding, phase='prompt' leaves none: drop one")
        if self.positions is not None:
            object.__setattr__(self, "positions", _whole(self.positions))
            if self.phase == "decode" or self.steps is not None:
                raise BadArgument("positions are of the prompt: they go with phase='prompt'")

    @property
    def modality(self) -> str:
        """Return whose tokens they are: a modality, ``visual`` or ``all``."""
        return self.tokens.removesuffix(AND_SPECIAL)

    def __str__(self) -> str:
        """Say which tokens they are.

        Example:
            >>> str(Selection("image", "both", steps=(0, 10)))
            'image tokens, decode steps 0 to 9'
        """
        words = [f"{_WORDS.get(self.tokens, self.tokens)} tokens"]
        words += {"prompt": ["of the prompt"], "decode": ["as generated"]}.get(self.phase, [])
        if self.steps is not None:
            first, end = self.steps
            steps = f"from {first}" if end is None else f"{first} to {end - 1}"
            words.append(f"decode steps {steps}")
        if self.positions is not None:
            words.append(f"positions {', '.join(map(str, self.positions))}")
        return ", ".join(words)

    def choose(
        self, tokens: Tokens, mask: Tensor | None = None, special: Special | None = None
    ) -> Tensor | bool:
        """Return a mask of the chosen tokens of an output, or one answer for all of them.

        Args:
            tokens: What is known of them. Of a pooled or packed output the rows are all one.
            mask: [B, P] bool, chosen by the user among the prompt's tokens, in place of
                ``tokens``. What is generated after the prompt is chosen as without it.
            special: Ids that are no words, which ``text`` leaves out; None if unknown.

        Raises:
            VlmEditError: A stream that does not pass, a call that does not tell what is asked,
                or a mask of another shape.
        """
        if mask is None and tokens.generated and self.generated is not None:
            return self.generated
        if self._whole and mask is None and tokens.unpadded:
            return True
        tokens.expect_passing(self.tokens)
        if not tokens.in_rows:
            if mask is None or self.phase != "both" or self.steps is not None:
                tokens.expect_rows(self._asked, pooled=self.tokens == "all")
            return self._choose_whole(tokens, mask)
        call = tokens.placed
        parts = [self._in_window(call), self._at_positions(call)]
        parts.append(tokens.of_modality(self.tokens, mask, special))
        return tokens.meet(parts, hidden_padding=mask is None)

    def _choose_whole(self, tokens: Tokens, mask: Tensor | None) -> Tensor | bool:
        """Choose in outputs without a sequence: embeddings, packed patches, maps of features."""
        if self.positions is not None:
            raise BadArgument(
                f"positions={self.positions}: this site's output is {tuple(tokens.shape)}, which "
                "has no sequence of tokens per row; use mask= or leave positions out"
            )
        if self.phase == "decode":
            return False
        if mask is None:
            return True
        if mask.shape != tokens.shape[:-1]:
            raise BadArgument(
                f"mask is {tuple(mask.shape)}, this site's output ({tokens.stream}) is "
                f"{tuple(tokens.shape)}: it needs a mask of {tuple(tokens.shape[:-1])}"
            )
        return mask.to(tokens.device)

    @property
    def _asked(self) -> str:
        """Return what is asked of each token, in the user's words."""
        words = [f"{name}={getattr(self, name)!r}" for name in ("tokens", "phase", "steps")]
        return ", ".join(words[:2] if self.steps is None else words)

    def _in_window(self, call: Call) -> Tensor | bool:
        if self.phase == "both" and self.steps is None:
            return True
        prompt = call.prompt if call.segments is None else call.segments.prompt
        if prompt is None or (call.start is None and call.segments is None):
            raise CannotKnow(
                f"phase={self.phase!r}, steps={self.steps}: {unplaced(call)}, so nobody can tell "
                f"prompt from answer. {mend(call)}, or use phase='both'"
            )
        first, last = self.steps or (0, None)
        spans: list[tuple[_Place, _Place | None]] = [(prompt + first, None)]
        if last is not None:
            spans = [(prompt + first, prompt + last)]
        if self.phase == "prompt":
            spans = [(0, prompt)]
        elif self.phase == "both":
            spans.insert(0, (0, prompt))
        return _within(spans, call)

    def _at_positions(self, call: Call) -> Tensor | bool:
        if self.positions is None:
            return True
        if call.decodes:
            return False
        if call.segments is not None:
            return call.segments.at(torch.tensor(self.positions, device=call.segments.place.device))
        if call.prompt is None or call.start is None:
            raise CannotKnow(f"positions={self.positions}: {unplaced(call)}. {mend(call)}")
        return _placed(self.positions, call)


def _within(spans: list[tuple[_Place, _Place | None]], call: Call) -> Tensor | bool:
    if isinstance(call.start, int) and call.shape is not None:
        low, high = call.start, call.start + call.shape[1]
        inside = [a <= low and (b is None or high <= b) for a, b in spans]
        outside = [high <= a or (b is not None and b <= low) for a, b in spans]
        if any(inside) or all(outside):
            return any(inside)
    columns = call.places()
    mask = torch.zeros_like(columns, dtype=torch.bool)
    for a, b in spans:
        mask = mask | ((columns >= a) if b is None else (columns >= a) & (columns < b))
    return mask if mask.ndim == 2 else mask.unsqueeze(0)


def _placed(positions: Sequence[int], call: Call) -> Tensor:
    """Return a mask of the call's tokens at places among the prompt's real ones.

    It is bool, [B, S] or [1, S].
    """
    columns = call.places()
    real = call.prompt_real if call.prompt_real is not None else call.real
    targets = torch.tensor(positions, device=columns.device)
    if real is None:
        place, last = columns.unsqueeze(0), call.prompt
        inside = (columns < cast("Tensor", call.prompt)).unsqueeze(0)
    else:
        real = real.to(columns.device)
        at = columns.clamp(max=real.shape[1] - 1)
        place, last = (real.cumsum(1) - 1)[:, at], real.sum(1).view(-1, 1, 1)
        inside = real[:, at] & (columns < real.shape[1])
    targets = torch.where(targets < 0, cast("Tensor", last) + targets, targets)
    return (place.unsqueeze(-1) == targets).any(-1) & inside


def _window(steps: Any) -> tuple[int, int | None]:
    try:
        first, last = steps
    except (TypeError, ValueError) as error:
        raise BadArgument(f"steps is {steps!r}; give (first, one past the last)") from error
    numbers = [n for n in (first, last) if n is not None]
    if not all(type(n) is int and 0 <= n < _FAR for n in numbers) or first is None:
        raise BadArgument(f"steps is {steps!r}; decode steps are whole numbers from 0 to {_FAR}")
    if last is not None and last <= first:
        raise BadArgument(f"steps is {steps!r}: it holds no step")
    return first, last


def _whole(positions: Any) -> tuple[int, ...]:
    numbers = tuple(positions) if isinstance(positions, Iterable) else (positions,)
    if not numbers or not all(type(p) is int and -_FAR < p < _FAR for p in numbers):
        raise BadArgument(
            f"positions is {positions!r}; give whole numbers, at least one, none beyond {_FAR}"
        )
    return numbers
