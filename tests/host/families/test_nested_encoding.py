"""Whose a call of an encoder is: of methods that call each other, and where one call has both."""

import pytest
import torch
from conftest import random_dictionary
from tiny_pipelines import LENGTH, PIPELINES, WIDTH, clip_tokenizer, text_encoder

from vlm_edit import Host, Patch, Scale, record
from vlm_edit.host import PipelineAdapter, PipelineEncoder, join_adapters

SITE = "words.text.1"
PATCH = Patch(SITE, random_dictionary(WIDTH), Scale(range(20), -2.0))


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
        (PipelineEncoder("words", "cut", ("asked",)),), ("go", "title", "failing"), negative="shun_"
    )
    adapter = join_adapters(holder, rules)
    with torch.no_grad():
        texts = ("a red cat", "a dog", "a cat")
        plain = [holder.encoded(text) for text in texts]
        with PATCH.attach(Host.of(holder, adapter=adapter), branch="both"):
            edited = [holder.encoded(text) for text in texts]
        with PATCH.attach(Host.of(holder, adapter=adapter), branch=branch):
            found = holder.go("a cat", getattr(holder, inner))
    expected = [edited[i] if i in meant else plain[i] for i in range(3)]
    for got, wanted in zip(found, expected[-len(found) :], strict=True):
        assert torch.equal(got, wanted)
    assert len(found) == (3 if inner == "title" else 2)
    assert not any(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_of_rows_that_are_meant_only_the_chosen_tokens_are_edited(branch):
    """Kandinsky encodes prompts and negative prompts in one call, behind each other."""
    kind, texts, shunned = PIPELINES["kandinsky_prior"], ["a cat", "a red dog"], ["a dog", "blue"]
    pipeline, site, ids = kind.make(), "text_encoder.text.1", []
    pipeline.text_encoder.register_forward_pre_hook(lambda _, args: ids.append(args[0]))
    patch = Patch(site, random_dictionary(WIDTH), Scale(range(20), -2.0), positions=(0, 2))
    with (
        record(pipeline, site) as before,
        patch.attach(pipeline, branch=branch),
        record(pipeline, site) as after,
    ):
        kind.draw(pipeline, texts, negative_prompt=shunned)
    mixed = 0
    for rows, a, b in zip(ids, before.captures, after.captures, strict=True):
        words = [pipeline.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        assert set(words) <= {*texts, *shunned}
        mixed += bool(set(words) & set(texts)) and bool(set(words) & set(shunned))
        for word, changed in zip(words, (a.hidden != b.hidden).any(-1), strict=True):
            meant = branch == "both" or (word in texts) == (branch == "cond")
            assert changed.nonzero().flatten().tolist() == ([0, 2] if meant else [])
    assert mixed
