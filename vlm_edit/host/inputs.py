"""Make a host's inputs of images and texts, and know which of their tokens are the texts' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from vlm_edit.host.prompts import (
    Template,
    begins,
    cut_captions,
    expect_prompt,
    find_captions,
    special_ids,
)

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Inputs:
    """The arguments that a host's forward takes for some pairs.

    Attributes:
        values: Its arguments, on the host's device and in its dtype.
        cut: How many of the texts were cut at the host's limit.
        caption: [B, S] bool, the tokens of each text itself, without what its template and its
            tokenizer put around it; None where the tokenizer's special ids have to tell.
    """

    values: Mapping[str, Any]
    cut: int = 0
    caption: Tensor | None = None


Prompt = str | Callable[[Any, "Sequence[Image.Image]", Sequence[str]], "Mapping[str, Any] | Inputs"]


@dataclass(eq=False)
class InputMaker:
    """Make inputs by a template, or by the user's own function.

    Args:
        processor: Makes its inputs; None where a function needs none.
        prompt: As for ``Host``.
        limit: How many tokens a text may have; None for as many as there are.

    Attributes:
        special: Ids of tokens that are no words, as the tokenizer says; None where there is none.
    """

    processor: Any
    prompt: Prompt | None
    limit: int | None
    special: tuple[int, ...] | None = field(init=False)
    _templates: dict[bool, Template] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse what is no prompt of any host."""
        if self.prompt is not None and not callable(self.prompt):
            expect_prompt(self.prompt)
        self.special = special_ids(self.processor)

    def template(self, answer: bool) -> Template | None:
        """Return the words around each text; None where a function makes the inputs."""
        if callable(self.prompt):
            return None
        if answer not in self._templates:
            self._templates[answer] = Template.of(self.prompt, self.processor, answer)
        return self._templates[answer]

    def words(self, answer: bool = False) -> str:
        """Return the template, or the name of the function."""
        if callable(self.prompt):
            kind = self.prompt if hasattr(self.prompt, "__qualname__") else type(self.prompt)
            return f"{kind.__module__}.{kind.__qualname__}()"
        return str(self.template(answer))

    def inputs(self, images: Sequence[Image.Image], texts: Sequence[str], answer: bool) -> Inputs:
        """Return inputs as they come, wherever the host is.

        Args:
            images: RGB.
            texts: One for each.
            answer: Whether the host is to answer.
        """
        if callable(self.prompt):
            made = self.prompt(self.processor, images, texts)
            return made if isinstance(made, Inputs) else Inputs(made)
        template = cast("Template", self.template(answer))
        tokenizer = getattr(self.processor, "tokenizer", None)
        whole = {"add_special_tokens": False} if begins(template, tokenizer) else {}
        asked = [template(text) for text in texts]
        options = {"images": list(images), "return_tensors": "pt", "padding": True} | whole
        values = self.processor(text=asked, **options)
        caption = find_captions(template, texts, values, tokenizer, **whole)
        if not self.limit or values["input_ids"].shape[1] <= self.limit:
            return Inputs(values, 0, caption)
        count = sum(length > self.limit for length in self._lengths(values, asked))
        short = self.processor(text=asked, **options, truncation=True, max_length=self.limit)
        if caption is not None:
            caption = cut_captions(caption, values, short, self.special or ())
        return Inputs(short, count, caption)

    def _lengths(self, inputs: Mapping[str, Any], texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, an image's included where it takes any."""
        if "attention_mask" in inputs:
            return list(inputs["attention_mask"].sum(1).tolist())
        return [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]]


def as_prompts(
    _processor: Any, _images: Sequence[Image.Image], texts: Sequence[str]
) -> Mapping[str, Any]:
    """Return what a pipeline encodes: the texts, as they are."""
    return {"prompt": list(texts)}
