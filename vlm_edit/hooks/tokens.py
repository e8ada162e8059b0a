"""What is known of the tokens of one output: whose they are, which are real, where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from einops import repeat
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.ground.modality import SENSED, Mixed, Modality, is_among
from vlm_edit.hooks.calls import Call, Witness
from vlm_edit.hooks.given import given_in, mend, unplaced
from vlm_edit.hooks.special import Special, special_in, unnamed
from vlm_edit.host import Stream

_UNASKED: Any = object()
AND_SPECIAL = "+special"


@dataclass(eq=False)  # not frozen: one is made in every decode step, and that takes twice as long
class Tokens:
    """What is known of the tokens of one output, worked out where it is asked and only once.

    An output has them in rows, ``[B, S, D]``, padding among them; or lies flat, ``[N, D]``: pooled,
    one for each row of the batch, or packed, each token of the request that ``requests`` tells.

    Attributes:
        stream: The tap's stream.
        call: What the call under way tells; empty outside one.
        shape: Of the output as it is looked at, width included.
        device: Where the output is.
        image_mask: [B, P] bool, the prompt's image tokens as the user says; None if unsaid.
        output: The output's shape where another is looked at: all rows laid end to end.
        generated: Whether Python knows that all are generated text, none of it padding.
    """

    stream: Stream
    call: Call
    shape: torch.Size
    device: torch.device
    image_mask: Tensor | None = None
    output: torch.Size | None = None
    generated: bool = False
    _known: Modality | None = field(default=_UNASKED, init=False, repr=False)
    _modality: Modality | None = field(default=_UNASKED, init=False, repr=False)
    _real: Tensor | None = field(default=_UNASKED, init=False, repr=False)
    _told: Tokens | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(
        cls, stream: Stream, call: Call, hidden: Tensor, image_mask: Tensor | None = None
    ) -> Tokens:
        """Return what is known of the tokens of an output [..., D]."""
        return cls(stream, call, hidden.shape, hidden.device, image_mask)

    def are_of(self, stream: Stream, hidden: Tensor) -> bool:
        """Return whether this is what is known of another output's tokens too."""
        shape = self.output or self.shape
        return self.stream == stream and shape == hidden.shape and self.device == hidden.device

    def told(self, image_mask: Tensor | None) -> Tokens:
        """Return the same tokens, where the user says which of the prompt's are image."""
        if image_mask is None or self.stream != "mixed":
            return self
        tokens = self._told
        if tokens is None or tokens.image_mask is not image_mask:
            tokens = Tokens(self.stream, self.call, self.shape, self.device, image_mask)
            self._told = tokens
        return tokens

    def at(self, hidden: Tensor) -> Tokens:
        """Return the same tokens, where their output is looked at in another shape."""
        return self if hidden.shape == self.shape else Tokens.of(self.stream, self.call, hidden)

    @property
    def in_rows(self) -> bool:
        """Whether the output is [B, S, D]."""
        return len(self.shape) == 3

    @property
    def is_sensed(self) -> bool:
        """Whether they are of a tower that encodes images or sounds alone."""
        return self.stream in SENSED

    @property
    def placed(self) -> Call:
        """Return the call as these tokens stand in it; for images alone the prompt is their own."""
        if not self.is_sensed and self.call.shape is not None:
            return self.call
        rows, length = self.shape[:2]
        if self.stream == "mixed":
            return Call((rows, length), start=None)
        return Call((rows, length), start=0, prompt=length)

    @property
    def known(self) -> Modality | None:
        """Return whose the call's tokens are; None where unknown. Masks are of the call's rows."""
        if self._known is _UNASKED:
            self._known = self._of_call()
        return self._known

    @property
    def witness(self) -> Witness | None:
        """Return who says which tokens are image; None where none is, or nobody does."""
        if not isinstance(self.known, Mixed):
            return None
        if self.image_mask is not None:
            return "image_mask"
        return self.call.witness or "origin"

    @property
    def modality(self) -> Modality | None:
        """Return whose the output's tokens are; None where it is not known.

        Raises:
            VlmEditError: The output has other tokens than the call.
        """
        if self._modality is _UNASKED:
            modality = self.known
            if isinstance(modality, Mixed):
                masks = {name: self.fit(mask) for name, mask in modality.masks.items()}
                fitted = {name: mask for name, mask in masks.items() if mask is not None}
                modality = Mixed(fitted) if len(fitted) == len(masks) else None
            self._modality = modality
        return self._modality

    @property
    def real(self) -> Tensor | None:
        """Return [B, S] bool, False at padding; None where all are real or nothing is known.

        Raises:
            VlmEditError: The output has other tokens than the call.
        """
        if self._real is _UNASKED:
            self._real = None if self.is_sensed else self.fit(self.call.real)
        return self._real

    @property
    def unpadded(self) -> bool:
        """Whether none is padding, as far as anybody can know."""
        call = self.call
        return self.is_sensed or (call.real is None and not call.hidden_padding)

    @property
    def step(self) -> int | None:
        """Return the decode step of the first, where all are known to have been generated."""
        return self.call.step if self.in_rows and not self.is_sensed else None

    @property
    def phase(self) -> Literal["prompt", "decode", "unknown"] | None:
        """Return the phase of all of them; None where they are of both, or a tensor tells."""
        if self.is_sensed:
            return "prompt"
        if not self.in_rows:
            return "prompt" if self.stream == "text" or self._is_pooled else "unknown"
        call = self.placed
        if call.segments is not None:
            return "prompt" if call.segments.is_prompt else None
        if call.decodes:
            return "decode"
        if call.prompt is None or call.start is None:
            return "unknown"
        length = cast("tuple[int, int]", call.shape)[1]
        if isinstance(call.start, int) and call.start + length <= call.prompt:
            return "prompt"
        return None

    @property
    def requests(self) -> Tensor | None:
        """Return the image of each token of a packed output, [N]; None if batched.

        Images are counted for the host's own patches: an output of fewer rows, as a merger's, has
        every n-th of them.

        Raises:
            VlmEditError: The output's rows are no whole part of the patches.
        """
        grid = self.call.grid
        if grid is None or self.stream == "audio" or len(self.shape) != 2:
            return None
        sizes = grid.prod(-1)
        images = torch.arange(len(sizes), device=grid.device).repeat_interleave(sizes)
        if len(images) % self.shape[0]:
            raise CannotKnow(
                f"the images have {len(images)} patches in all, this site's output is "
                f"{tuple(self.shape)}: its rows cannot be told apart"
            )
        return images[:: len(images) // self.shape[0]].to(self.device)

    def steps(self) -> Tensor | None:
        """Return the decode step of each, [S] or [B, S], below 0 in the prompt; None if unknown."""
        call = self.placed
        if call.segments is not None:
            return call.segments.place - call.segments.prompt
        if call.prompt is None or call.start is None:
            return None
        return call.places(self.device) - call.prompt

    def row_among(self, count: int, name: str) -> Tensor | None:
        """Return which of some rows each is of, [B, S], where a row of the call holds several.

        Args:
            count: How many rows the user means.
            name: Of what the user gives for each.

        Returns:
            Numbers of rows; None where the output's rows are the user's, as those of images.

        Raises:
            BadArgument: There are others, or nobody can tell which of them a token is of.
        """
        call = self.call
        if call.flat is None or self.is_sensed:
            return None
        if call.segments is None:
            raise BadArgument(f"{name} has {count} values, but {unplaced(call)}. {mend(call)}")
        if not self.in_rows:
            raise BadArgument(
                f"{name} has {count} values, and this call packs several sequences into a row: "
                f"nobody can tell them apart in this site's output, {tuple(self.shape)}. Give one "
                "for all"
            )
        return call.segments.row_among(count, name)

    def mask(self, name: str) -> Tensor | None:
        """Return a modality's mask [B, S], padding included; None where it is not known."""
        modality = self.modality
        if isinstance(modality, Mixed):
            return modality.at(name)
        return None if modality is None else self.fill(modality == name)

    def select(self, choice: str, special: Special | None = None) -> Tensor | None:
        """Return a mask [B, S] of a modality's real tokens, or None for all of them.

        Args:
            choice: As ``Selection.tokens``.
            special: Ids that are no words, which ``text`` leaves out; None if unknown.

        Raises:
            VlmEditError: The other's tokens, or a call of the host that does not tell.
        """
        if choice == "all" and self.unpadded:
            return None
        self.expect_passing(choice)
        if not self.in_rows:
            self.expect_rows(f"tokens={choice!r}, phase='both'", pooled=choice == "all")
            return None
        chosen = self.meet([self.of_modality(choice, special=special)])
        if isinstance(chosen, Tensor):
            return chosen
        return None if chosen else self.fill(False)

    def of_modality(
        self, choice: str, mask: Tensor | None = None, special: Special | None = None
    ) -> Tensor | bool:
        """Return the call's tokens of a modality, as a mask of its rows or one answer for all.

        Args:
            choice: As ``Selection.tokens``.
            mask: [B, P] bool, chosen by the user among the prompt's tokens, in its place.
            special: Ids that are no words, which ``text`` leaves out; None if unknown.

        Raises:
            VlmEditError: Nobody can know, or a mask that does not fit the prompt.
        """
        chosen: Any = True
        name = choice.removesuffix(AND_SPECIAL)
        if self.stream == "mixed" and choice != "all":
            modality = self.known
            chosen = modality.at(name) if isinstance(modality, Mixed) else None
            if isinstance(modality, str):
                chosen = is_among(modality, name)
        if choice == "text" and chosen is not None and chosen is not False:
            chosen = self._without_special(chosen, special, mask is not None)
        if mask is not None:
            beyond = name in ("text", "all")  # as what is generated is
            chosen = self.given(mask, chosen, "mask", beyond)
        if chosen is None:
            raise self._unknown(choice)
        return cast("Tensor | bool", chosen)

    def special(self, special: Special | None = None) -> Tensor | bool | None:
        """Return which of the call's tokens are no words of a text or an answer, nor of an image.

        What was generated is the answer's, whatever it is. In a prompt that ``Host.inputs`` has
        made, all but its texts' own tokens are special; in another, the tokenizer's special ids.

        Args:
            special: Those ids; None if unknown.

        Returns:
            [B, S] bool, a mask of the call's rows, or one answer for all; None where nobody knows.
        """
        if self.call.decodes or self.is_sensed:
            return False
        found = special_in(self.call, special)
        if found is not None and self.call.segments is not None:
            return found & (self.call.segments.place < self.call.segments.prompt)
        if found is None or self.call.ids_at is None:
            return found
        return cast("Tensor | bool", self.given(found, False, "special"))

    def special_rows(self, special: Special | None = None) -> Tensor | None:
        """Return which of the output's tokens are special, [B, S]; None where none or unknown."""
        found = self.special(special) if self.in_rows else None
        if not isinstance(found, Tensor):
            return None
        rows, length = self.shape[:2]
        fits = found.shape[1] == length and rows % len(found) == 0
        return self.fit(found) if fits else None

    def _without_special(
        self, chosen: Tensor | bool, special: Special | None, is_masked: bool
    ) -> Tensor | bool | None:
        found = self.special(special)
        if found is None:
            if is_masked:  # which says of the prompt's tokens what this would
                return chosen
            raise unnamed(self.call)
        if found is False:
            return chosen
        found = cast("Tensor", found)
        if chosen is True:
            return ~found
        if isinstance(chosen, Tensor) and len(chosen) != len(found):  # beams repeat rows
            found = repeat(found, "b s -> (b k) s", k=len(chosen) // len(found))
        return chosen & ~found.to(chosen.device) if isinstance(chosen, Tensor) else chosen

    def meet(self, parts: Iterable[Tensor | bool], hidden_padding: bool = True) -> Tensor | bool:
        """Return the output's real tokens that are in each of the parts, or one answer for all.

        Args:
            parts: Masks of the call's rows, or one answer for all.
            hidden_padding: Whether to refuse an output in which padding hides.

        Raises:
            VlmEditError: The output has other tokens than the call, or padding hides in it.
        """
        parts = tuple(parts)
        if any(part is False for part in parts):
            return False
        call = self.call
        if hidden_padding and not self.is_sensed and call.hidden_padding:
            raise CannotKnow(
                f"the host has made a sequence of {self.shape[1]} tokens of {call.given} ids, "
                "some of which are padding, and its attention mask does not show which: name the "
                "module that is called with the whole sequence in Adapter.calls, or pass mask= of "
                f"{tuple(self.shape[:2])}"
            )
        masks = [self.fit(part) for part in parts if isinstance(part, Tensor)]
        answer: Tensor | bool = True
        for mask in (*masks, self.real):
            if mask is not None:
                answer = mask if answer is True else answer & mask
        return answer

    def given(
        self, given: Tensor, otherwise: Any, name: str, beyond: bool = False
    ) -> Tensor | float | None:
        """Return what a user says of the prompt, at the call's tokens; then what else is known.

        Args:
            given: [B, P], one value per token of the prompt.
            otherwise: What is known of the call's tokens without it: a tensor, one value, or None.
            name: What the user calls it.
            beyond: What holds of tokens behind the prompt where nothing is known without it.

        Raises:
            VlmEditError: Its length is not the prompt's, or the call's place is not known.
        """
        return given_in(given, self.placed, otherwise, name, beyond)

    def fit(self, mask: Tensor | None) -> Tensor | None:
        """Fit a mask of the call's rows to the output's: beams repeat them; None if it has none.

        Raises:
            VlmEditError: Another length, or no whole number of rows per row.
        """
        if mask is None or len(self.shape) < 3:
            return None
        rows, length = self.shape[:2]
        if mask.shape[1] != length or rows % mask.shape[0]:
            raise CannotKnow(
                f"the host's call has token ids of shape {tuple(mask.shape)} but this site's "
                f"output is {tuple(self.shape)}: its tokens cannot be told apart"
            )
        mask = mask.to(self.device)
        if mask.shape[0] == rows:
            return mask
        return repeat(mask, "batch tokens -> (batch beams) tokens", beams=rows // mask.shape[0])

    def fill(self, answer: bool) -> Tensor:
        """Return one answer as a mask of the output's tokens."""
        return torch.full(self.shape[:-1], answer, dtype=torch.bool, device=self.device)

    def expect_passing(self, choice: str) -> None:
        """Refuse tokens of a modality that does not pass here."""
        name = choice.removesuffix(AND_SPECIAL)
        if self.stream != "mixed" and name != "all" and not is_among(self.stream, name):
            raise BadArgument(f"no {choice} tokens pass here, only {self.stream}")

    def expect_rows(self, asked: str, pooled: bool = True) -> None:
        """Refuse what nobody can tell of a mixed site's output that has no tokens in rows.

        Args:
            asked: What is asked, in the user's words.
            pooled: Whether it can be answered where the output is one for each row of the batch.

        Raises:
            VlmEditError: Its image and text tokens may stand anywhere.
        """
        if self.stream != "mixed" or self.in_rows or (pooled and self._is_pooled):
            return
        shape = self.call.shape
        evidence = "no token ids" if shape is None else f"token ids of shape {shape}"
        raise CannotKnow(
            f"{asked}: image and text share this site's output of {tuple(self.shape)}, and the "
            f"host's call shows {evidence}: nobody can tell which row is which token. Pass mask= "
            f"of {tuple(self.shape[:-1])}, use a site whose output is [batch, tokens, width], or "
            "edit all tokens of inputs without padding"
        )

    @property
    def _is_pooled(self) -> bool:
        """Whether the output has one state for each row of the batch."""
        return self.call.shape is not None and self.shape[0] == self.call.shape[0]

    def _of_call(self) -> Modality | None:
        if self.stream != "mixed":
            return self.stream
        known = self.call.modality
        if known is None and self.call.decodes:
            known = "text"  # what is generated is text
        origin = self.call.origin
        if known is None and origin is not None and origin.shape == self.call.shape:
            known = origin
        if self.image_mask is None:
            return known if self.call.why_not() is None else None
        others = known if isinstance(known, Mixed) else None
        image: Any = others.at("image") if others else known if known is None else False
        image = self.given(self.image_mask, image, "image_mask")
        if not isinstance(image, Tensor):
            return others or (known if image is None else "text")
        return others.marked("image", image) if others else Mixed.of(image=image)

    def _unknown(self, choice: str) -> VlmEditError:
        call = self.placed
        doubt = call.why_not()
        if doubt is not None:
            return CannotKnow(
                f"tokens={choice!r}: {doubt}. Name the ids of its placeholders in the "
                "adapter, or say which tokens are image with attach(..., image_mask=)"
            )
        if call.given is not None:
            length = call.prompt if isinstance(call.prompt, int) else "tokens"
            return CannotKnow(
                f"tokens={choice!r}: the host has made a sequence of another length of "
                f"{call.given} ids, so nobody can tell image tokens from text. Say which are image "
                f"with attach(..., image_mask=), [batch, {length}], or use tokens='all'"
            )
        return CannotKnow(
            f"tokens={choice!r}: this call of the host shows neither input_ids nor image "
            "inputs, so nobody can tell image tokens from text. Call the whole host with "
            "input_ids, say which are image with attach(..., image_mask=), or use tokens='all'"
        )
