"""Runs of ``generate`` that ask about more than one sequence, and layers with two states."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import IMAGE_TOKEN, make_llava
from torch import nn
from transformers import LogitsProcessor

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.host import find_adapter

LLAVA = make_llava()
MARK = 4.25
NEW = 4
QUIET = {"do_sample": False, "max_new_tokens": NEW, "suppress_tokens": [IMAGE_TOKEN]}


def patch(**choice):
    return Patch("language.1", Dictionary.identity(32), Clamp([3], MARK), **choice)


def rows(llava_inputs, n=2):
    return {name: value[:n] for name, value in llava_inputs.items()}


def marked(act, attached):
    seen = []
    with attached, torch.no_grad():
        handle = LLAVA.model.language_model.layers[1].register_forward_hook(
            lambda _m, _a, output: seen.append(abs(output[..., 3] - MARK) < 1e-5)
        )
        act()
        handle.remove()
    return seen, attached.report().sites[0]


@pytest.mark.parametrize("negative", [None, torch.tensor([[1, 5, 6]] * 2)])
@pytest.mark.parametrize(
    ("choice", "prompt", "decode"),
    [
        ({"phase": "prompt"}, True, []),
        ({"phase": "decode"}, False, [0, 1, 2]),
        ({"phase": "decode", "steps": (1, 2)}, False, [1]),
    ],
)
def test_guidance_has_a_prompt_of_its_own(llava_inputs, choice, prompt, decode, negative):
    inputs, real = rows(llava_inputs), llava_inputs["attention_mask"].bool()
    guided = {"guidance_scale": 1.5, "negative_prompt_ids": negative}
    act = lambda: LLAVA.generate(**inputs, **QUIET | guided)  # noqa: E731
    seen, report = marked(act, patch(**choice).attach(LLAVA))
    cond, uncond = seen[::2], seen[1::2]
    assert [len(one[0]) for one in uncond] == [1 if negative is None else 3, 1, 1, 1]
    assert torch.equal(cond[0], real & prompt)
    assert torch.equal(uncond[0], torch.full_like(uncond[0], prompt))
    for branch in (cond, uncond):
        assert [i for i, one in enumerate(branch[1:]) if one.all()] == decode
        assert [i for i, one in enumerate(branch[1:]) if one.any()] == decode
    assert report.steps == ((decode[0], decode[-1]) if decode else None)
    assert report.phases["prompt"] == prompt * int(real.sum() + uncond[0].numel())


def test_guidance_shows_the_streams_of_both(llava_inputs):
    inputs = rows(llava_inputs)
    image = inputs["input_ids"] == IMAGE_TOKEN
    act = lambda: LLAVA.generate(**inputs, **QUIET, guidance_scale=1.5)  # noqa: E731
    seen, _ = marked(act, patch(tokens="image").attach(LLAVA))
    assert torch.equal(seen[0], image)
    assert not any(one.any() for one in seen[1:])


def test_guidance_of_a_host_whose_parts_are_followed_shows_them_too(llava_inputs):
    inputs = rows(llava_inputs)
    own = replace(find_adapter(LLAVA), calls=("model.language_model",))
    act = lambda: LLAVA.generate(**inputs, **QUIET, guidance_scale=1.5)  # noqa: E731
    for choice, expected in (
        ({"phase": "decode"}, [False, False, True, True, True, True, True, True]),
        ({"tokens": "text+special", "phase": "prompt"}, [False, True, *[False] * 6]),
    ):
        seen, _ = marked(act, patch(**choice).attach(Host.of(LLAVA, adapter=own)))
        assert [bool(one.all()) for one in seen] == expected


class Contrast(LogitsProcessor):
    """Asks the host about the same tokens again, with other images, as visual contrast does."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __call__(self, ids, scores):
        attention = self.inputs["attention_mask"]
        more = attention.new_ones(len(ids), ids.shape[1] - attention.shape[1])
        output = LLAVA(
            input_ids=ids,
            attention_mask=torch.cat([attention, more], 1),
            pixel_values=self.inputs["pixel_values"].flip(-1),
        )
        return scores - 0.5 * output.logits[:, -1]


def test_the_same_tokens_asked_about_again_have_the_same_prompt(llava_inputs):
    inputs, real = rows(llava_inputs), llava_inputs["attention_mask"].bool()
    act = lambda: LLAVA.generate(**inputs, **QUIET, logits_processor=[Contrast(inputs)])  # noqa: E731
    seen, _ = marked(act, patch(phase="decode").attach(LLAVA))
    assert [one.shape[1] for one in seen[1::2]] == [9, 10, 11, 12]
    for one in seen[1::2]:
        assert not one[:, :9].any()
        assert one[:, 9:].all()
    seen, _ = marked(act, patch(phase="prompt").attach(LLAVA))
    for one in seen[1::2]:
        assert torch.equal(one[:, :9], real)
        assert not one[:, 9:].any()


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("negative", ["last", "other", "the prompt", "the prompt and more"])
def test_guidance_without_a_cache_is_as_with_one(llava_inputs, negative, followed):
    inputs = rows(llava_inputs)
    ids = inputs["input_ids"]
    negatives = {
        "last": None,
        "other": torch.tensor([[1, 5, 6]] * 2),
        "the prompt": ids.masked_fill(ids == IMAGE_TOKEN, 9),
        "the prompt and more": torch.cat([ids.masked_fill(ids == IMAGE_TOKEN, 9), ids[:, :1]], 1),
    }
    if negative.startswith("the prompt"):  # of text alone, so that nothing else tells it apart
        inputs = {"input_ids": negatives["the prompt"], "attention_mask": inputs["attention_mask"]}
    guided = {"guidance_scale": 1.5, "negative_prompt_ids": negatives[negative]}
    calls = ("model.language_model",) if followed else ()
    host = Host.of(LLAVA, adapter=replace(find_adapter(LLAVA), calls=calls))
    choices = [
        *({"phase": phase} for phase in ("prompt", "decode")),
        *({"positions": (place,)} for place in (0, -1)),
        {"phase": "decode", "steps": (1, 2)},
    ]
    plain = LLAVA.generate(**inputs, **QUIET, **guided)
    for choice in choices:
        told = []
        for use_cache in (True, False):
            act = lambda: LLAVA.generate(**inputs, **QUIET | guided, use_cache=use_cache)  # noqa: B023, E731
            told.append(marked(act, patch(**choice).attach(host))[0])
        cached, whole = told
        for branch in (0, 1):
            first, *later = cached[branch::2]
            expected = torch.cat([first, *later], 1)
            for one in whole[branch::2]:
                assert torch.equal(one, expected[:, : one.shape[1]])
    assert torch.equal(LLAVA.generate(**inputs, **QUIET, **guided), plain)
    assert "_get_logits_processor" not in LLAVA.__dict__


def test_guidance_without_a_cache_by_a_processor_of_ones_own_host_is_refused(
    llava_inputs, monkeypatch
):
    """Where the host does not show what guides it, nothing tells the two apart."""
    monkeypatch.setattr("vlm_edit.hooks.tracker._PROCESSORS", "_not_there")
    options = {"guidance_scale": 1.5, "use_cache": False}
    with (
        patch(phase="decode").attach(LLAVA),
        pytest.raises(VlmEditError, match="a sequence beside the prompt's, without a cache"),
    ):
        LLAVA.generate(**rows(llava_inputs), **QUIET, **options)


class Negative(LogitsProcessor):
    """Guides as no one can see: with ids of its own, anew at every step."""

    def __call__(self, ids, scores):
        other = torch.cat([torch.tensor([[1, 5, 6]] * len(ids)), ids[:, 9:]], 1)
        return scores - 0.5 * LLAVA(input_ids=other, use_cache=False).logits[:, -1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_sequence_that_is_begun_anew_beside_the_prompt_is_not_guessed(llava_inputs, use_cache):
    with (
        patch(phase="decode").attach(LLAVA),
        pytest.raises(VlmEditError, match="a sequence beside the prompt's, without a cache"),
    ):
        LLAVA.generate(
            **rows(llava_inputs), **QUIET, use_cache=use_cache, logits_processor=[Negative()]
        )


def test_beams_without_a_cache_are_of_the_prompt(llava_inputs):
    inputs, real = rows(llava_inputs), llava_inputs["attention_mask"].bool()[:2]
    act = lambda: LLAVA.generate(**inputs, **QUIET, num_beams=2, use_cache=False)  # noqa: E731
    seen, _ = marked(act, patch(phase="prompt").attach(LLAVA))
    for one in seen:
        assert torch.equal(one[:, :9], real.repeat_interleave(2, 0)[: len(one)])
        assert not one[:, 9:].any()


def test_a_model_that_drafts_does_not_tell_the_phase(llava_inputs):
    inputs, main = rows(llava_inputs, 1), copy.deepcopy(LLAVA)
    expected = main.generate(**inputs, **QUIET)
    for choice in ({"phase": "prompt"}, {"phase": "decode"}, {"positions": (-1,)}):
        with (
            patch(**choice).attach(LLAVA),
            pytest.raises(VlmEditError, match="drafts for another model"),
        ):
            main.generate(**inputs, **QUIET, assistant_model=LLAVA)
    with patch().attach(LLAVA) as attached:
        drafted = main.generate(**inputs, **QUIET, assistant_model=LLAVA)
    assert torch.equal(drafted, expected)
    assert attached.report().sites[0].phases["unknown"] == attached.report().edited_tokens > 0


class Fused(nn.Module):
    """A layer that leaves the last sum of its residual stream to the next."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden, residual=None):
        residual = hidden if residual is None else hidden + residual
        return self.linear(residual), residual


class Engine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Fused() for _ in range(2))

    def forward(self, hidden):
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


def test_a_layer_that_leaves_its_sum_to_the_next_is_refused():
    engine = Engine()
    own = Adapter.of({"language.{i}": ("layers.{i}", "text", 4)})
    edit = Patch("language.0", Dictionary.identity(4), Clamp([1], 2.0))
    with (
        edit.attach(Host.of(engine, adapter=own)),
        pytest.raises(VlmEditError, match=r"Fused returns two tensors of \(1, 3, 4\).*their sum"),
    ):
        engine(torch.randn(1, 3, 4))
