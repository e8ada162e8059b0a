"""What a host is asked with a pair: its image and its text in a template, and which tokens are it.

Written where inputs are made, and asked where tokens are told apart: ``caption_in`` knows the
inputs that ``Host.inputs`` has made, as long as they are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vlm_edit.ground.errors import BadArgument, CannotKnow

CHAT = "chat"
_IMAGE, _TEXT = "{image}", "{text}"
_MANY = 8  # equal tokens in a row, which are an image's or padding
_MARK = "vlmeditcaption"  # in the caption's place while a chat template is read

_captions = WeakIdKeyDictionary()


@dataclass(frozen=True)
class Template:
    """Hold the words around a pair's text.

    Attributes:
        name: What was asked for: ``chat``, or the template.
        before: In front of the text, the image's placeholder in it where the host reads one there.
        after: Behind it.

    Example:
        >>> Template("{text}, a photo", "", ", a photo")("a cat")
        'a cat, a photo'
    """

    name: str
    before: str
    after: str

    def __call__(self, text: str) -> str:
        """Return what the processor is given for a text."""
        return f"{self.before}{text}{self.after}"

    def __str__(self) -> str:
        """Return it with ``{text}`` in the text's place."""
        return self(_TEXT)

    @classmethod
    def of(cls, prompt: str | None, processor: Any, answer: bool = False) -> Template:
        """Return the template that a processor understands.

        Args:
            prompt: ``chat``, for the processor's chat template; or a text with ``{image}`` and
                ``{text}``; None for the first if there is one, else the image before the text.
            processor: Of the host.
            answer: Whether the host is to answer: its turn begins behind the text.

        Raises:
            BadArgument: A template without ``{text}``, one without ``{image}`` where the host
                reads its image there, or the other way round.
            CannotKnow: ``chat``, and the processor has no chat template that takes an image.
        """
        chat = _chat(processor, answer)
        if prompt == CHAT or (prompt is None and isinstance(chat, _Chat)):
            if isinstance(chat, _Chat):
                return chat.template
            raise CannotKnow(f"prompt 'chat': {chat}. Give a template with {_IMAGE} and {_TEXT}")
        token = getattr(processor, "image_token", None)
        token = token if isinstance(token, str) else None
        if isinstance(chat, _Chat) and token is not None:
            token = chat.image or token
        if prompt is None:
            prompt = _TEXT if token is None else f"{_IMAGE}\n{_TEXT}"
        _expect_fields(prompt, token)
        before, after = (part.replace(_IMAGE, token or "") for part in prompt.split(_TEXT))
        return cls(prompt, before, after)


def expect_prompt(prompt: object) -> None:
    """Refuse what is no prompt of any host.

    Raises:
        BadArgument: It is neither ``chat`` nor a template with ``{text}`` in it.
    """
    if prompt == CHAT:
        return
    if not isinstance(prompt, str) or prompt.count(_TEXT) != 1 or prompt.count(_IMAGE) > 1:
        raise BadArgument(
            f"the prompt {prompt!r} must be {CHAT!r}, or hold {_TEXT} once and {_IMAGE} at most "
            "once; or be a function of (processor, images, texts)"
        )


def _expect_fields(prompt: str, token: str | None) -> None:
    expect_prompt(prompt)
    if (_IMAGE in prompt) != (token is not None):
        reads = "no image within its text: leave" if token is None else "its image there: put"
        where = "out" if token is None else "where the image is to stand"
        raise BadArgument(f"the prompt {prompt!r}: this host reads {reads} {_IMAGE} {where}")


def _turn(processor: Any, kinds: Sequence[str], answer: bool = False) -> str:
    words = {"image": {"type": "image"}, "text": {"type": "text", "text": _MARK}}
    turn = {"role": "user", "content": [words[kind] for kind in kinds]}
    return str(processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=answer))


@dataclass(frozen=True)
class _Chat:
    """A processor's chat template as ours, and what it writes for an image; None if unclear."""

    template: Template
    image: str | None


def _written(with_image: str, without: str) -> str | None:
    """Return what stands in the first of two turns and not in the second, where it is one piece."""
    start = len(os.path.commonprefix([with_image, without]))
    end = len(with_image) - (len(without) - start)
    if with_image[end:] != without[start:] or _MARK in with_image[start:end]:
        return None
    return with_image[start:end].strip() or None


def _chat(processor: Any, answer: bool) -> _Chat | str:
    """Return the processor's own chat template, or why it cannot be had."""
    if getattr(processor, "chat_template", None) is None:
        return "the host's processor has no chat template"
    try:
        text = _turn(processor, ("image", "text"), answer)
        plain = _turn(processor, ("text",), answer)
    except Exception as error:  # a template is a program of the checkpoint's
        return f"the processor's chat template fails ({type(error).__name__}: {error})"
    if text.count(_MARK) != 1 or text == plain:
        return "the processor's chat template does not take an image and a text"
    before, after = text.split(_MARK)
    return _Chat(Template(CHAT, before, after), _written(text, plain))


def begins(template: Template, tokenizer: Any) -> bool:
    """Return whether a template writes itself the token that a sequence begins with."""
    token = getattr(tokenizer, "bos_token", None)
    return bool(token) and template.before.startswith(cast("str", token))


def special_ids(processor: Any) -> tuple[int, ...] | None:
    """Return the ids of tokens that are no words: of beginning, end, padding, turns, delimiters.

    The id of what a tokenizer does not know is a word's, unless it has another use.

    Args:
        processor: A processor, or a tokenizer; without one, None comes back.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = getattr(tokenizer, "all_special_ids", None)
    if ids is None:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {})
    known = {*ids, *(i for i, token in added.items() if getattr(token, "special", False))}
    names = ("bos", "eos", "pad", "cls", "sep", "mask")
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    unknown = getattr(tokenizer, "unk_token_id", None)
    return tuple(sorted(known - ({unknown} - others)))


def remember(ids: Tensor, caption: Tensor) -> None:
    """Know from now on which tokens of an input are the caption's, as long as it is there.

    Args:
        ids: [B, S], as the host will be given it.
        caption: [B, S] bool.
    """
    _captions[ids] = caption


def caption_in(ids: Any) -> Tensor | None:
    """Return which tokens of an input are the caption's, [B, S] bool; None where nobody knows."""
    if torch.compiler.is_compiling() or not isinstance(ids, Tensor):
        return None
    caption = _captions.get(ids)
    return caption if caption is None or caption.shape == ids.shape else None


def find_captions(
    template: Template,
    texts: Sequence[str],
    values: Mapping[str, Any],
    tokenizer: Any,
    **options: Any,
) -> Tensor | None:
    """Find each text's own tokens among those that a processor has made, before any is cut.

    The template is tokenized once more with the characters of each token told, and found again
    where the processor has only put tokens for an image in: before the text, or behind it.

    Args:
        template: Of the inputs.
        texts: One for each row.
        values: What the processor made of them: ``input_ids`` [B, S] and ``attention_mask``.
        tokenizer: The processor's.
        options: Of the tokenizer's call.

    Returns:
        [B, S] bool; None where a tokenizer tells no characters, or a row is not found again.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    told = tokenizer([template(text) for text in texts], return_offsets_mapping=True, **options)
    rows = zip(values["input_ids"].tolist(), _real(values).tolist(), strict=True)
    first, caption = len(template.before), []
    for text, plain, spans, (ids, real) in zip(
        texts, told["input_ids"], told["offset_mapping"], rows, strict=True
    ):
        last = first + len(text)
        own = [
            i for i, (start, end) in enumerate(spans) if start < last and end > max(first, start)
        ]
        columns = [column for column, is_real in enumerate(real) if is_real]
        found = _aligned(plain, own, [ids[column] for column in columns])
        if found is None:
            return None
        chosen = {columns[place] for place in found}
        caption.append([column in chosen for column in range(len(ids))])
    return torch.tensor(caption, dtype=torch.bool, device=values["input_ids"].device)


def _aligned(plain: list[int], places: list[int], row: list[int]) -> list[int] | None:
    """Return where tokens at places of a template are in a row of ids, into which more was put."""
    if not places:
        return []
    first, last, gap = places[0], places[-1] + 1, len(row) - len(plain)
    if row[:last] == plain[:last]:
        return places
    if gap >= 0 and row[first + gap :] == plain[first:]:
        return [place + gap for place in places]
    return None


def cut_captions(
    caption: Tensor, uncut: Mapping[str, Any], values: Mapping[str, Any], special: Sequence[int]
) -> Tensor | None:
    """Return which tokens are the captions' where rows have been cut at the host's limit.

    Args:
        caption: [B, S] bool, of the uncut rows.
        uncut: Those rows, as the processor made them.
        values: The same, cut at their ends; a tokenizer may end them anew.
        special: Ids of tokens that are no words.

    Returns:
        [B, limit] bool; None where a row is no beginning of what it was.
    """
    before, after = _real(uncut), _real(values)
    ends = torch.isin(values["input_ids"], torch.tensor(special, dtype=torch.long))
    cut = torch.zeros_like(after)
    for row in range(len(caption)):
        columns = after[row].nonzero()[:, 0]
        ids, flags = uncut["input_ids"][row][before[row]], caption[row][before[row]]
        same = ids[: len(columns)] == values["input_ids"][row][columns]
        if not bool((same | ends[row][columns]).all()):
            return None
        cut[row, columns] = flags[: len(columns)]
    return cut & ~ends


def read_back(values: Mapping[str, Any], processor: Any) -> str | None:
    """Return the first row of some inputs as the text it is, an image's many tokens as one.

    Args:
        values: What a processor made.
        processor: The processor; without a tokenizer, None comes back.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or "input_ids" not in values:
        return None
    ids = values["input_ids"][0][_real(values)[0].to(values["input_ids"].device)]
    runs = [(token, len(list(run))) for token, run in groupby(ids.tolist())]
    text = ""
    for many, part in groupby(runs, lambda run: run[1] > _MANY):
        if many:
            text += "".join(f"{tokenizer.decode([token])} (x {count:,}) " for token, count in part)
        else:
            text += tokenizer.decode([token for token, count in part for _ in range(count)])
    return text


def _real(values: Mapping[str, Any]) -> Tensor:
    mask = values.get("attention_mask")
    ids = values["input_ids"]
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
