"""Which tokens are image where a host lines image and text up by position, and no id says it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.modality import Mixed, Modality
from vlm_edit.hooks.calls import Call
from vlm_edit.host import Layout, caption_in

_SEQUENCES = ("hidden_states", "query_embeds", "inputs_embeds")
_PARTS = "parts of a layout"
NO_WORD = -1  # where ids stand for none of the text's


def read_layout(layout: Layout, path: str, inputs: Mapping[str, Any], outer: Call | None) -> Call:
    """Read what a call tells of a sequence that holds image and text by position.

    Args:
        layout: The declaration, its numbers the host's own.
        path: Of the module that is called, for messages.
        inputs: The call's arguments by name.
        outer: The call around it, with the text; None where there is none.

    Returns:
        The call: its padding is that of the mask it was given, of images too, and of the text's
        own. Where nobody can know the parts, it says whose tokens are of none.
    """
    ids, given = inputs.get("input_ids"), _sequence(inputs)
    first = given if ids is None else ids
    if not isinstance(first, Tensor):
        return Call()
    length = sum(x.shape[1] for x in (ids, given) if x is not None)
    text = _text_of(layout, length, inputs, outer) if ids is None else ids.shape[1]
    call = Call((first.shape[0], length), start=0, prompt=length)
    call.by_layout, call.attention = True, inputs.get("attention_mask")
    call.real, call.hidden_padding = _real_of_mask(call.attention, len(first), length)
    if text is not None:
        _place(call, layout, path, text, first.device)
        begin = _begin(layout, length, text)
        _take_words(call, layout, ids, outer, begin, text)
        if ids is None and outer is not None:
            _take_padding(call, layout, path, outer, begin, text)
    call.prompt_real = call.real
    return call


def read_part(call: Call, rows: int, length: int) -> Call:
    """Return what is known of an output inside such a module that has other tokens than the call.

    It is one part's alone, as what queries read of an image, if that part only has its length;
    otherwise nobody can know.
    """
    parts: Mapping[str, tuple[int, int]] = call.fact(_PARTS) or {}
    fitting = [name for name, (_, count) in parts.items() if count == length]
    part = Call((rows, length), start=None)
    part.by_layout, part.doubt = True, call.doubt
    if len(fitting) != 1 or call.shape is None or rows != call.shape[0]:
        part.hidden_padding = call.hidden_padding or call.real is not None
        return part
    begin, end = parts[fitting[0]][0], parts[fitting[0]][0] + length
    part.modality, part.witness = fitting[0], "position"
    part.start, part.prompt, part.hidden_padding = 0, length, call.hidden_padding
    part.real = None if call.real is None else call.real[:, begin:end]
    part.prompt_real = part.real
    if fitting[0] == "text":
        part.ids = None if call.ids is None else call.ids[:, begin:end]
        part.caption = None if call.caption is None else call.caption[:, begin:end]
    return part


def _sequence(inputs: Mapping[str, Any]) -> Tensor | None:
    given = (inputs.get(name) for name in _SEQUENCES)
    return next((x for x in given if isinstance(x, Tensor) and x.ndim == 3), None)


def _text_of(
    layout: Layout, length: int, inputs: Mapping[str, Any], outer: Call | None
) -> int | None:
    """Return how many tokens of a sequence are text; None where nobody can know."""
    if layout.images is not None:
        images = inputs.get(layout.images)
        return 0 if images is None else length - int(layout.ahead) - int(images)
    return None if outer is None or outer.shape is None else outer.shape[1]


def _begin(layout: Layout, length: int, text: int) -> int:
    """Return where the text begins."""
    return int(layout.ahead) if layout.parts[0] == "text" else length - text


def _place(call: Call, layout: Layout, path: str, text: int, device: torch.device) -> None:
    """Say whose the tokens of a call are."""
    assert call.shape is not None
    (rows, length), ahead = call.shape, int(layout.ahead)
    images = length - ahead - text
    if text < 0 or images < 0:
        call.doubt = (
            f"{path} was called with {length} tokens in a row, of which {text} were text and "
            f"{ahead} neither text nor image, as the call around it and the adapter's Layout say"
        )
        return
    first = ahead if layout.parts[0] == "image" else ahead + text
    call.modality, call.witness = _modality(rows, length, first, images, device), "position"
    call.note(_PARTS, {"image": (first, images), "text": (_begin(layout, length, text), text)})


def _modality(rows: int, length: int, first: int, images: int, device: torch.device) -> Modality:
    """Return whose tokens are those of rows in which images stand from a place on."""
    if not images:
        return "text"
    if images == length:
        return "image"
    places = torch.arange(length, device=device)
    return Mixed.of(image=((places >= first) & (places < first + images)).expand(rows, length))


def _take_words(
    call: Call, layout: Layout, ids: Tensor | None, outer: Call | None, begin: int, text: int
) -> None:
    """Know the text's ids, at their places; none where the call around it has other ids."""
    assert call.shape is not None
    caption = None if ids is None else caption_in(ids)
    if ids is None and outer is not None and outer.ids_at is None:
        ids, caption = outer.ids, outer.caption
    if ids is None or call.doubt is not None:
        return
    more = ids.shape[1] - text
    if more and more != layout.cut:
        return
    around = (begin, call.shape[1] - begin - text)
    call.ids = F.pad(ids[:, more:], around, value=NO_WORD)
    if caption is not None:
        call.caption = F.pad(caption[:, more:], around)


def _take_padding(
    call: Call, layout: Layout, path: str, outer: Call, begin: int, text: int
) -> None:
    """Know the text's padding, also where the host's own mask leaves it out."""
    assert call.shape is not None
    known = outer.real
    if known is None or not text or call.doubt is not None:
        return
    more = known.shape[1] - text
    if len(known) != call.shape[0] or more not in (0, layout.cut):
        call.doubt = (
            f"{path} was called with {call.shape[0]} rows, {text} tokens of each text, and the "
            f"call around it has a mask of {tuple(known.shape)}"
        )
        return
    known = known[:, more:]
    if call.real is not None:
        call.doubt = partial(_difference, path, call.real[:, begin : begin + text], known)
        return
    call.real = F.pad(known, (begin, call.shape[1] - begin - text), value=True)


def _difference(path: str, here: Tensor, around: Tensor) -> str | None:
    """Say how two masks of one text disagree; None where they do not. Waits for the device."""
    around = around.to(here.device)
    if torch.equal(here, around):
        return None
    return (
        f"{path} was given a mask that differs at {int((here != around).sum())} tokens of the text "
        "from that of the call around it, where the adapter's Layout says that the text stands"
    )


def _real_of_mask(attention: Any, rows: int, length: int) -> tuple[Tensor | None, bool]:
    """Return the real tokens by a mask in which all see alike; and whether padding hides."""
    if attention is None:
        return None, False
    if not isinstance(attention, Tensor) or attention.ndim not in (2, 4):
        return None, True
    if attention.shape[0] not in (1, rows) or attention.shape[-1] != length:
        return None, True
    if attention.ndim == 2:
        return attention.bool().expand(rows, length), False
    seen = attention if attention.dtype == torch.bool else attention == 0
    return seen.any(1).any(1).expand(rows, length), False
