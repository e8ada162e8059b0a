"""Hosts that make a longer sequence than the ids they are given.

The oracle is the host itself, which notes where it puts image features, and where it pads.
"""

import re

import pytest
import torch
from conftest import NO_TOKENS
from tiny_hosts import TEXT, VISION, library
from torch import nn
from transformers import GitConfig, GitForCausalLM, LlamaConfig, LlamaForCausalLM

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.hooks import Call, Generation, Selection, Tokens, record

PLACE, PATCHES, MARK = -200, 4, 4.25


class Merging(LlamaForCausalLM):
    """One id becomes an image's patches, in ``generate`` before it starts, or else in ``forward``.

    As in the code that the first LLaVA models came with: ids outside the vocabulary, texts padded
    on the left anew once images are in, and images under a name of their own.
    """

    def __init__(self):
        super().__init__(LlamaConfig(**TEXT))
        self.model.eye = nn.Conv2d(3, 32, 8, 8)
        self.image = self.real = None  # [B, S], what became of the last prompt

    def see(self, images):
        return self.model.eye(images).flatten(2).transpose(1, 2)

    def merge(self, ids, attention, images):
        features = iter(self.see(images))
        keep = ids != 0 if attention is None else attention.bool()
        rows, places = [], []
        for row, real in zip(ids, keep, strict=True):
            parts, marks = [], []
            for token in row[real]:
                image = int(token) == PLACE
                parts.append(next(features) if image else self.model.embed_tokens(token[None]))
                marks += [image] * len(parts[-1])
            rows.append(torch.cat(parts))
            places.append(marks)
        length = max(map(len, rows))
        embeds = torch.zeros(len(rows), length, 32)
        self.image, self.real = (torch.zeros(2, len(rows), length) > 1).unbind()
        for i, (row, marks) in enumerate(zip(rows, places, strict=True)):
            embeds[i, length - len(row) :] = row
            self.image[i, length - len(row) :] = torch.tensor(marks)
            self.real[i, length - len(row) :] = True
        return embeds, self.real.long()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, images=None, **rest):
        if images is not None and input_ids is not None:
            inputs_embeds, attention_mask = self.merge(input_ids, attention_mask, images)
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **rest,
        )

    @torch.no_grad()
    def generate(self, inputs=None, attention_mask=None, images=None, **options):
        embeds, attention = self.merge(inputs, attention_mask, images)
        return super().generate(inputs_embeds=embeds, attention_mask=attention, **options)


def adapter(**options):
    sites = {"language.{i}": ("model.layers.{i}", "mixed", "hidden_size")}
    return Adapter.of(sites, image_token=PLACE, visual_inputs=("images",), **options)


OWN = adapter()
WHOLE = adapter(calls=("model",))  # names what is called with the whole sequence


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return Merging().eval()


def prompts(rows):
    """One row, or two that differ in length before and after images are in."""
    ids = torch.tensor([[1, 5, PLACE, 6, 7, 8], [0, 0, 1, PLACE, 9, PLACE]][:rows])
    return {"inputs": ids, "attention_mask": (ids != 0).long(), "images": torch.rand(3, 3, 16, 16)}


def marked(host, act, own=OWN, choice=None, **said):
    """Which tokens [B, S] each call of the first layer marks, and the report."""
    seen = []
    patch = Patch("language.0", Dictionary.identity(32), Clamp([3], MARK), **choice or {})
    with patch.attach(Host.of(host, adapter=own), **said) as attached:
        layer = Host.of(host, adapter=own).sites["language.0"].taps[0].module
        handle = layer.register_forward_hook(
            lambda _m, _a, output: seen.append(abs(output[..., 3] - MARK) < 1e-5)
        )
        try:
            with torch.no_grad():
                act()
        finally:
            handle.remove()
    return seen, attached.report().sites[0]


MODES = {
    "greedy": (1, {}),
    "left-padded batch": (2, {}),
    "beams": (2, {"num_beams": 2}),
    "sampling": (2, {"do_sample": True, "num_return_sequences": 2}),
    "static cache": (2, {"cache_implementation": "static", "disable_compile": True}),
    "one row in a static cache": (1, {"cache_implementation": "static", "disable_compile": True}),
}
QUIET = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}


def generating(host, mode):
    rows, options = MODES[mode]
    return lambda: host.generate(**prompts(rows), **QUIET | options)


def expect(seen, prompt, decode):
    """Compare with the prompt's tokens, and whether all are marked at each step of decoding."""
    beams = len(seen[0]) // len(prompt)
    assert torch.equal(seen[0], prompt.repeat_interleave(beams, 0))
    assert [bool(one.all()) for one in seen[1:]] == decode
    assert [bool(one.any()) for one in seen[1:]] == decode


@pytest.mark.parametrize(
    ("choice", "of_prompt", "decode"),
    [
        ({}, lambda real: real, [True] * 3),
        ({"phase": "prompt"}, lambda real: real, [False] * 3),
        ({"phase": "decode"}, lambda real: real & False, [True] * 3),
        ({"phase": "decode", "steps": (1, 2)}, lambda real: real & False, [False, True, False]),
        (
            {"positions": (0, -2)},
            lambda real: real & ((real.cumsum(1) == 1) | (real.flip(1).cumsum(1).flip(1) == 2)),
            [False] * 3,
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_the_prompt_is_what_the_host_reads(host, mode, choice, of_prompt, decode):
    seen, report = marked(host, generating(host, mode), choice=choice)
    prompt = of_prompt(host.real)
    expect(seen, prompt, decode)
    beams = len(seen[0]) // len(prompt)
    assert report.phases["prompt"] == int(prompt.sum()) * beams
    assert report.phases["decode"] == sum(decode) * len(seen[0])
    at = [i for i, edited in enumerate(decode) if edited]
    assert report.steps == ((at[0], at[-1]) if at else None)


@pytest.mark.parametrize("tokens", ["image", "text+special"])
@pytest.mark.parametrize("mode", MODES)
def test_streams_are_told_by_a_mask_of_the_merged_prompt_and_by_nothing_else(host, mode, tokens):
    with pytest.raises(
        VlmEditError, match=rf"^tokens='{re.escape(tokens)}': .* of 6 ids, .*image_mask="
    ):
        marked(host, generating(host, mode), choice={"tokens": tokens})
    image, real = host.image, host.real
    assert image.any()
    seen, report = marked(host, generating(host, mode), choice={"tokens": tokens}, image_mask=image)
    expect(seen, (image if tokens == "image" else ~image) & real, [tokens == "text+special"] * 3)
    assert report.streams["text" if tokens == "image" else "image"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_of_the_merged_prompt_chooses_its_tokens(host, mode):
    generating(host, mode)()
    mask = torch.rand(host.real.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    seen, _ = marked(host, generating(host, mode), mask=mask)
    expect(seen, mask & host.real, [True] * 3)


@pytest.mark.parametrize("name", ["mask", "image_mask"])
def test_a_mask_of_the_ids_is_refused(host, name):
    mask = torch.ones(1, 6, dtype=torch.bool)
    with pytest.raises(VlmEditError, match=rf"{name} is \(1, 6\), the prompt has 9 tokens"):
        marked(host, generating(host, "greedy"), choice={"tokens": "text+special"}, **{name: mask})


@pytest.mark.parametrize("own", [OWN, WHOLE])
def test_a_generation_without_images_follows_as_ever(host, own):
    ids = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    act = lambda: LlamaForCausalLM.generate(host, **ids, **QUIET)  # noqa: E731
    seen, _ = marked(host, act, own)
    assert [one.shape[1] for one in seen] == [4, 1, 1, 1]


# In a forward.


def calling(host, rows):
    inputs = prompts(rows)
    return lambda: host(input_ids=inputs.pop("inputs"), **inputs)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_forward_that_merges_is_followed_where_the_whole_sequence_is_called(host, rows):
    places = lambda real: real & (real.cumsum(1) == 1)  # noqa: E731
    for choice, tokens in (({}, lambda real: real), ({"positions": (0,)}, places)):
        (seen,), _ = marked(host, calling(host, rows), WHOLE, choice)
        assert torch.equal(seen, tokens(host.real))
    for tokens in ("image", "text+special"):
        with pytest.raises(VlmEditError, match=rf"^tokens='{re.escape(tokens)}': .*image_mask="):
            marked(host, calling(host, rows), WHOLE, {"tokens": tokens})
        said = {"choice": {"tokens": tokens}, "image_mask": host.image}
        (seen,), report = marked(host, calling(host, rows), WHOLE, **said)
        assert torch.equal(seen, (host.image if tokens == "image" else ~host.image) & host.real)
        assert report.streams[tokens.split("+")[0]] == report.tokens


def test_a_forward_that_merges_alone_tells_of_its_tokens_where_none_is_padding(host):
    (seen,), _ = marked(host, calling(host, 1), choice={"positions": (-1,)})
    assert seen.tolist() == [[False] * 8 + [True]]
    (seen,), _ = marked(host, calling(host, 1), choice={"tokens": "image"}, image_mask=host.image)
    assert torch.equal(seen, host.image)
    (seen,), report = marked(host, calling(host, 1))
    assert seen.all()
    assert report.streams == NO_TOKENS | {"unknown": 9}


def test_a_forward_that_merges_alone_cannot_tell_padding(host):
    for choice in ({}, {"positions": (0,)}, {"phase": "prompt"}):
        with pytest.raises(VlmEditError, match=r"10 tokens of 6 ids, .*Adapter\.calls, or .*mask="):
            marked(host, calling(host, 2), choice=choice)
    (seen,), _ = marked(host, calling(host, 2), mask=host.real)  # the user says it all
    assert torch.equal(seen, host.real)


def test_a_recording_does_not_tell_streams_that_nobody_knows(host):
    with record(Host.of(host, adapter=OWN), "language.0") as recording, torch.no_grad():
        calling(host, 1)()
    tokens = recording.captures[0].tokens
    assert tokens.modality is None
    with pytest.raises(VlmEditError, match="of 6 ids"):
        tokens.select("image")


def test_a_loop_of_the_users_own_knows_the_phases(host):
    def loop():
        inputs = prompts(1)
        output = host(input_ids=inputs["inputs"], images=inputs["images"], use_cache=True)
        for _ in range(2):
            token = output.logits[:, -1:].argmax(-1)
            output = host(input_ids=token, past_key_values=output.past_key_values)

    seen, report = marked(host, loop, choice={"phase": "decode"})
    expect(seen, host.real & False, [True, True])
    assert report.steps == (0, 1)


def test_positions_from_the_end_do_not_count_what_was_generated_without_a_cache():
    call, generation = Call((2, 8), start=0, prompt=6), Generation(Call((2, 6), prompt=6), given=6)
    call.attention = torch.tensor([[0] + [1] * 11, [1] * 12])
    call.grow((2, 12), generation)
    assert generation.call.prompt == call.prompt == 10
    assert call.prompt_real.shape == generation.call.prompt_real.shape == (2, 10)
    tokens = Tokens.of("mixed", call, torch.zeros(2, 12, 3))
    chosen = Selection(positions=(-1,)).choose(tokens)
    assert chosen.nonzero().tolist() == [[0, 9], [1, 9]]


@pytest.mark.parametrize("window", [None, 3])
def test_padding_shows_in_what_tokens_see_unless_a_window_hides_it(window):
    real = torch.tensor([[False, False, True, True, True, True]])
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & real
    if window is not None:
        seen = seen.triu(1 - window)
    call = Call((1, 3), start=0, prompt=3)
    call.attention = torch.where(seen, 0.0, -1e9).view(1, 1, 6, 6)
    call.grow((1, 6), None)
    assert call.hidden_padding is (window is not None)
    if window is None:
        assert torch.equal(call.real, real)


class Shortening(Merging):
    """Its language model gets fewer tokens than there are ids."""

    def forward(self, input_ids=None, **rest):
        if input_ids is not None and input_ids.shape[1] > 1:
            rest["attention_mask"] = rest["attention_mask"][:, 2:]
            input_ids, rest["inputs_embeds"] = None, self.model.embed_tokens(input_ids[:, 2:])
        return super().forward(input_ids=input_ids, **rest)

    generate = LlamaForCausalLM.generate


def test_a_sequence_shorter_than_the_ids_is_followed_too():
    host, ids = Shortening().eval(), torch.tensor([[1, 5, 6, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    act = lambda: host.generate(**inputs, **QUIET)  # noqa: E731
    for choice, expected in (
        ({"phase": "prompt"}, [[True] * 4, [False], [False], [False]]),
        ({"phase": "decode"}, [[False] * 4, [True], [True], [True]]),
        ({"positions": (-1,)}, [[False] * 3 + [True], [False], [False], [False]]),
    ):
        seen, _ = marked(host, act, WHOLE, choice)
        assert [one[0].tolist() for one in seen] == expected
    with pytest.raises(VlmEditError, match=r"of 6 ids, .*image_mask="):
        marked(host, act, WHOLE, {"tokens": "text+special"})


# Image tokens before the text, in each forward, which no id shows.


@pytest.fixture(scope="module")
def git():
    torch.manual_seed(0)
    text = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "eos_token_id")}
    return GitForCausalLM(GitConfig(vision_config=VISION, **text, eos_token_id=63)).eval()


GIT = Adapter.of({"language.{i}": ("git.encoder.layer.{i}", "mixed", "hidden_size")})
FRONT = 5  # patches and a class token


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}])
@pytest.mark.parametrize(
    ("choice", "said", "prompt", "decode"),
    [
        ({}, {}, range(9), [True] * 3),
        ({"phase": "prompt"}, {}, range(9), [False] * 3),
        ({"phase": "decode"}, {}, range(0), [True] * 3),
        ({"steps": (1, 2), "phase": "decode"}, {}, range(0), [False, True, False]),
        ({"positions": (0, -1)}, {}, (0, 8), [False] * 3),
        ({"tokens": "image"}, {"image_mask": True}, range(FRONT), [False] * 3),
        ({"tokens": "text+special"}, {"image_mask": True}, range(FRONT, 9), [True] * 3),
        ({"tokens": "text+special"}, {"mask": True}, range(FRONT), [True] * 3),
    ],
)
def test_tokens_put_before_the_ids_are_the_prompts(git, choice, said, prompt, decode, options):
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "pixel_values": torch.rand(1, 3, 16, 16)}
    front = torch.arange(9)[None] < FRONT
    act = lambda: git.generate(**inputs, **QUIET | options, min_new_tokens=4)  # noqa: E731
    seen, report = marked(git, act, GIT, choice, **{name: front for name in said})
    told = [[i for i, edited in enumerate(row) if edited] for row in seen[0].tolist()]
    assert told == [list(prompt)] * len(seen[0])
    if options == {"use_cache": False}:
        assert [one[0].tolist()[9:] for one in seen] == [decode[:i] for i in range(4)]
        assert all(torch.equal(one[:, :9], seen[0]) for one in seen)
    else:
        assert [bool(one.all()) for one in seen[1:]] == decode
        steps = [i for i, edited in enumerate(decode) if edited]
        assert report.steps == ((steps[0], steps[-1]) if steps else None)


@pytest.mark.parametrize("tokens", ["image", "text+special"])
def test_tokens_put_before_the_ids_are_of_no_known_stream(git, tokens):
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "pixel_values": torch.rand(1, 3, 16, 16)}
    with pytest.raises(
        VlmEditError, match=rf"^tokens='{re.escape(tokens)}': .* of 4 ids, .*image_mask="
    ):
        marked(git, lambda: git.generate(**inputs, **QUIET), GIT, {"tokens": tokens})


def test_padding_behind_tokens_put_before_the_ids_is_not_edited_unseen(git):
    ids = torch.tensor([[1, 5, 6, 7], [0, 0, 1, 5]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    inputs["pixel_values"] = torch.rand(2, 3, 16, 16)
    with pytest.raises(VlmEditError, match="9 tokens of 4 ids, some of which are padding"):
        marked(git, lambda: git.generate(**inputs, **QUIET), GIT)


# A module that ``generate`` calls alone, by a path that the adapter does not name.


class Hidden(nn.Module):
    """Generates by its language model, of which its adapter says nothing."""

    def __init__(self):
        super().__init__()
        self.language = library("LlamaForCausalLM")(LlamaConfig(**TEXT))

    def forward(self, input_ids):
        return self.language(input_ids)

    def generate(self, input_ids):
        return self.language.generate(input_ids, **QUIET)


def test_steps_of_a_module_that_nobody_follows_are_not_taken_for_the_prompt():
    host, ids = Hidden(), torch.tensor([[1, 5, 6, 7]])
    sites = {"language.{i}": ("language.model.layers.{i}", "mixed", 32)}
    seen, _ = marked(host, lambda: host.generate(ids), Adapter.of(sites))
    assert all(one.all() for one in seen)
    for choice in ({"phase": "prompt"}, {"phase": "decode"}):
        with pytest.raises(VlmEditError, match="nobody can tell prompt from answer"):
            marked(host, lambda: host.generate(ids), Adapter.of(sites), choice)
    followed = Adapter.of(sites, calls=("language",))
    seen, report = marked(host, lambda: host.generate(ids), followed, {"phase": "decode"})
    assert [bool(one.all()) for one in seen] == [False, True, True, True]
    assert report.steps == (0, 2)
