"""Methods of a pipeline that encode and call each other: each call is its own method's."""

import pytest
import torch
from conftest import random_dictionary
from tiny_pipelines import LENGTH, WIDTH, clip_tokenizer, text_encoder

from vlm_edit import Patch, Scale
from vlm_edit.sites import Encoder, PipelineAdapter, join_adapters

SITE = "words.text.1"
PATCH = Patch.at(SITE, random_dictionary(WIDTH), Scale(range(20), -2.0))


class Nested:
    """Encodes a title by a method of its own on the way."""

    def __init__(self) -> None:
        self.words, self.cut = text_encoder(), clip_tokenizer()

    @property
    def components(self):
        return {"words": self.words, "cut": self.cut}

    def encoded(self, text):
        more = {"padding": "max_length", "max_length": LENGTH, "return_tensors": "pt"}
        return self.words(self.cut(text, **more).input_ids).last_hidden_state

    def title(self, asked):
        return self.encoded(asked)

    def failing(self, asked):
        self.encoded(asked)
        raise KeyError(asked)

    def go(self, asked, inner, shun_asked="a dog"):
        try:
            made = [inner("a red cat")]
        except KeyError:
            made = []
        return [*made, self.encoded(shun_asked), self.encoded(asked)]


@pytest.mark.parametrize(("branch", "meant"), [("cond", [0, 2]), ("uncond", [1])])
@pytest.mark.parametrize("inner", ["title", "failing"])
def test_after_a_method_within_a_method_the_outer_ones_prompts_are_known(branch, meant, inner):
    holder = Nested()
    rules = PipelineAdapter(
        (Encoder("words", "cut", ("asked",)),), ("go", "title", "failing"), negative="shun_"
    )
    adapter = join_adapters(holder, rules)
    with torch.no_grad():
        texts = ("a red cat", "a dog", "a cat")
        plain = [holder.encoded(text) for text in texts]
        with PATCH.attach(holder, adapter, branch="both"):
            edited = [holder.encoded(text) for text in texts]
        with PATCH.attach(holder, adapter, branch=branch):
            found = holder.go("a cat", getattr(holder, inner))
    expected = [edited[i] if i in meant else plain[i] for i in range(3)]
    for got, wanted in zip(found, expected[-len(found) :], strict=True):
        assert torch.equal(got, wanted)
    assert len(found) == (3 if inner == "title" else 2)
    assert not any(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))
