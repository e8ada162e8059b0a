"""What a host itself says of the places it puts features into, by its ``get_placeholder_mask``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks.calls import PLACES, Call

_MODALITIES = ("image", "video", "audio")


def masks_in(
    method: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    names: Mapping[int, str],
) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the masks of one answer: modality, [B, S] bool, and whether features go there now.

    Args:
        method: As the host has it. What it takes as ``image_features``, ``video_features`` and
            ``audio_features`` says of what its masks are; or ``token_id`` does.
        args: It was called with.
        kwargs: Likewise.
        output: What it gave.
        names: Modalities by the ids of their placeholders.
    """
    signature = inspect.signature(method)  # without ``self``
    given = signature.bind_partial(*args, **kwargs).arguments
    known = [kind for kind in _MODALITIES if f"{kind}_features" in signature.parameters]
    if "token_id" in given:
        kinds = [names.get(given["token_id"], "")]
    elif isinstance(output, tuple):
        kinds = known if len(known) == len(output) else list(_MODALITIES[: len(output)])
    else:
        kinds = known or [next(iter(names.values()), "image")]
    masks = output if isinstance(output, tuple) else (output,)
    for kind, mask in zip(kinds, masks, strict=False):
        brought = given.get("features" if "token_id" in given else f"{kind}_features")
        if kind in _MODALITIES and isinstance(mask, Tensor) and mask.ndim in (2, 3):
            yield kind, (mask[..., 0] if mask.ndim == 3 else mask).bool(), brought is not None


def hear(call: Call, names: Mapping[int, str], kind: str, mask: Tensor, now: bool) -> None:
    """Take up what a host says of a modality's places in a call; it goes before what ids say.

    Args:
        call: The host's, under way.
        names: Modalities by the ids of their placeholders, as the adapter has them.
        kind: The modality.
        mask: [B, S] bool.
        now: Whether features go there in this call; otherwise it says what ids say anyway.
    """
    known = call.modality
    expected = known.masks.get(kind) if isinstance(known, Mixed) else None
    if call.shape != tuple(mask.shape) or (not now and expected is None and known is not None):
        return
    if expected is not None:
        call.doubt = partial(_difference, names, kind, mask, expected, call.doubt)
    here = known.to(mask.device) if isinstance(known, Mixed) else None
    call.modality = Mixed.of(**{kind: mask}) if here is None else here.marked(kind, mask)
    call.witness, call.resolved = "host", None


def _difference(
    names: Mapping[int, str],
    kind: str,
    mask: Tensor,
    expected: Tensor,
    before: str | Callable[[], str | None] | None,
) -> str | None:
    """Say how the host and the adapter disagree; None where they do not. Waits for the device."""
    earlier = before() if callable(before) else before
    expected = expected.to(mask.device)
    if earlier is not None or not expected.any() or torch.equal(expected, mask):
        return earlier
    ids = ", ".join(str(number) for number, name in names.items() if name == kind)
    return (
        f"the host's own {PLACES} has {int(mask.sum())} {kind} tokens in this call, and "
        f"{int(expected.sum())} ids are {ids}, as the adapter names them"
    )
