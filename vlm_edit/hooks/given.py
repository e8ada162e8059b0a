"""What a user says of the prompt, token by token, as far as it falls into one call."""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks.calls import Call


def given_in(
    given: Tensor, call: Call, otherwise: Any, name: str, beyond: bool = False
) -> Tensor | float | None:
    """Return what is given of the prompt at a call's tokens, then what else is known of them.

    Rows that hold several sequences are given as ``Segments.given`` says.

    Args:
        given: [B, P], one value per token of the prompt.
        call: The call.
        otherwise: What is known of its tokens without: a tensor, one value for all, or None.
        name: What the user calls it.
        beyond: What holds of tokens behind the prompt where nothing is known without it.

    Raises:
        VlmEditError: The mask's length is not the prompt's, or the call's place is not known.
    """
    if call.segments is not None:
        return call.segments.given(given, beyond if otherwise is None else otherwise, name)
    _expect_prompt(given, call, name)
    width, length = given.shape[1], cast("tuple[int, int]", call.shape)[1]
    if isinstance(call.start, int):
        if call.start >= width:
            return cast("Tensor | float | None", otherwise)
        if call.start + length <= width:
            return given[:, call.start : call.start + length]
    if otherwise is None:
        otherwise = beyond
    device = otherwise.device if isinstance(otherwise, Tensor) else given.device
    columns = call.places(device)
    values = given.to(columns.device)[:, columns.clamp(max=width - 1)]
    if not isinstance(otherwise, Tensor):
        otherwise = torch.tensor(otherwise, device=device)
    elif len(otherwise) != len(values):
        values = repeat(values, "b s -> (b k) s", k=len(otherwise) // len(values))
    return torch.where(columns < width, values, otherwise)


def unplaced(call: Call) -> str:
    """Say why nobody can tell where a call's tokens stand."""
    if call.flat is not None:
        return (
            "this call packs several sequences into a row (it has cu_seq_lens_q, or position_ids "
            f"that begin again), and {call.flat.why}"
        )
    return (
        "this call goes on with a cache whose prompt was not seen in one call, or drafts for "
        "another model, or is of a sequence beside the prompt's, without a cache"
    )


def mend(call: Call) -> str:
    """Say what to do where nobody can tell where a call's tokens stand."""
    if call.flat is not None:
        return "Use the host's generate on a padded batch, or edit all tokens of both phases alike"
    return "Use the host's generate, or give the whole prompt to one call"


def _expect_prompt(given: Tensor, call: Call, name: str) -> None:
    """Refuse what is not one value per token of the prompt, or a call of unknown place."""
    if call.flat is not None:
        raise BadArgument(f"{name} is given, but {unplaced(call)}. {mend(call)}")
    if given.ndim != 2:
        raise BadArgument(
            f"{name} is {tuple(given.shape)}: give one value per token of the prompt, [batch, "
            "tokens], padding included"
        )
    if call.shape is None or call.start is None:
        raise CannotKnow(
            f"{name} is given, but this call of the host does not show which tokens it holds: "
            "call the whole host with input_ids or inputs_embeds"
        )
    if isinstance(call.prompt, int) and call.prompt != given.shape[1]:
        raise BadArgument(
            f"{name} is {tuple(given.shape)}, the prompt has {call.prompt} tokens: give one value "
            "per token of the prompt, padding included"
        )
