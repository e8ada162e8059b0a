"""Which tokens of a prompt are no words: what begins, ends, frames it, and its template's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks.calls import Call
from vlm_edit.host import Host


class Special:
    """Hold ids of tokens that are no words, as a tokenizer says.

    Args:
        ids: The ids.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = tuple(ids)
        self._on: dict[torch.device, Tensor] = {}

    @classmethod
    def at(cls, host: Host, site: str) -> Special | None:
        """Return those of a host's tokenizer behind a site; None where it has none."""
        ids = host.special_ids(site)
        return None if ids is None else cls(ids)

    def among(self, ids: Tensor) -> Tensor:
        """Return where they are among some ids, bool of their shape."""
        if ids.device not in self._on:
            with torch.inference_mode(False):
                self._on[ids.device] = torch.tensor(self.ids, dtype=torch.long, device=ids.device)
        return torch.isin(ids, self._on[ids.device])


def special_in(call: Call, special: Special | None) -> Tensor | None:
    """Return which of a call's ids are no words, nor an image's; None where nobody knows.

    Args:
        call: Whose ids are its own, or of the whole prompt that it is a step of.
        special: Ids that are no words; None if unknown.

    Returns:
        [B, S] bool, or [B, P] where they are the prompt's.
    """
    if call.ids is None or (call.ids_at is not None and call.start is None):
        return None
    if call.caption is not None:
        found = ~call.caption
    elif special is not None:
        found = special.among(call.ids) | (call.ids < 0)  # no text has such an id
    else:
        return None
    if isinstance(call.modality, Mixed) and call.modality.shape == found.shape:
        found = found & call.modality.at("text")
    if call.ids_at:
        found = torch.cat([found.new_zeros(len(found), call.ids_at), found], 1)
    return found


def unnamed(call: Call) -> CannotKnow:
    """Return what to say where a text's own tokens cannot be told."""
    if call.ids is None:
        why = "this call of the host shows no input_ids"
        mend = "call the whole host with input_ids"
    else:
        why = "the host has no tokenizer that tells which of its ids are no words"
        mend = "attach to Host.of(model, processor)"
    return CannotKnow(
        f"tokens='text' means a text's own tokens, without those of beginning, end and turns, "
        f"and {why}: {mend}, say which with attach(..., mask=), or take them along with "
        "tokens='text+special'"
    )
