"""Ways of calling a host that a selection must see through."""

import pytest
import torch
from conftest import CACHE, IMAGE_TOKEN
from test_where_edits_act import LLAVA, generate, patch
from transformers import LogitsProcessor, StaticCache

from vlm_edit import VlmEditError

QUIET = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
CHOICES = [{"tokens": "image"}, {"tokens": "text+special", "steps": (0, 1)}, {"phase": "decode"}]


def first(inputs):
    return {k: v[:1] for k, v in inputs.items()}


@pytest.mark.parametrize("by", ["position", "inputs"])
@pytest.mark.parametrize("choice", CHOICES)
def test_generate_takes_its_ids_in_any_way(llava_inputs, choice, by):
    rest = {k: v for k, v in llava_inputs.items() if k != "input_ids"}
    ids = llava_inputs["input_ids"]
    with torch.no_grad(), patch(**choice).attach(LLAVA) as attached:
        expected = LLAVA.generate(**llava_inputs, **QUIET)
        before = attached.report().edited_tokens
        args, named = ((ids,), {}) if by == "position" else ((), {"inputs": ids})
        got = LLAVA.generate(*args, **named, **rest, **QUIET)
    assert torch.equal(got, expected)
    assert attached.report().edited_tokens == 2 * before > 0


@pytest.mark.parametrize("choice", [*CHOICES, {"positions": (-1, -3)}, {"phase": "prompt"}])
@pytest.mark.parametrize("padded", [False, True])
def test_a_turn_of_its_new_part_alone_is_that_of_the_whole_conversation(
    llava_inputs, choice, padded
):
    """The new part brings a new image."""
    inputs = llava_inputs if padded else first(llava_inputs)
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    text["input_ids"] = torch.where(text["input_ids"] == IMAGE_TOKEN, 11, text["input_ids"])
    answers = []
    for new in (False, True):
        with torch.no_grad(), patch(**choice).attach(LLAVA) as attached:
            before = LLAVA.generate(**text, **QUIET, return_dict_in_generate=True)
            cache, said = before[CACHE], before.sequences
            image = torch.full((len(said), 4), IMAGE_TOKEN)
            ids = torch.cat([said, image, torch.full((len(said), 2), 9)], 1)
            attention = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, 9:])], 1)
            done = attached.report().sites[0]
            after = LLAVA.generate(
                input_ids=ids[:, cache.get_seq_length() :] if new else ids,
                attention_mask=attention,
                pixel_values=inputs["pixel_values"],
                **{CACHE: cache},
                **QUIET,
            )
            site = attached.report().sites[0]
            tokens = {k: n - done.streams[k] for k, n in site.streams.items()}
            phases = {k: n - done.phases[k] for k, n in site.phases.items()}
        answers.append((after[:, -3:].tolist(), tokens, phases))
    assert answers[0] == answers[1]
    assert sum(tokens.values()) > 0


def test_a_generation_inside_another_gives_back_its_place(llava_inputs):
    class Ask(LogitsProcessor):
        def __call__(self, _ids, scores):
            with torch.no_grad():
                LLAVA.generate(**llava_inputs, **QUIET)
            return scores

    inputs = first(llava_inputs)
    for choice in CHOICES:
        with patch(**choice).attach(LLAVA):
            expected = generate(inputs)
            assert torch.equal(generate(inputs, logits_processor=[Ask()]), expected)


@pytest.mark.parametrize("way", ["generate", "forward"])
def test_a_call_after_an_interrupt_begins_anew(llava_inputs, way):
    def stop(*_):
        raise KeyboardInterrupt

    with torch.no_grad(), patch(tokens="image").attach(LLAVA) as attached:
        handle = LLAVA.model.language_model.layers[2].register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            LLAVA.generate(**llava_inputs) if way == "generate" else LLAVA(**llava_inputs)
        handle.remove()
        if way == "generate":
            with pytest.raises(VlmEditError, match="nobody can tell image tokens from text"):
                LLAVA.model.language_model(inputs_embeds=torch.randn(2, 9, 32))
        before = attached.report().edited_tokens
        LLAVA(input_ids=llava_inputs["input_ids"][:, :2])
    assert attached.report().edited_tokens == before


def test_a_cache_that_was_added_to_tells_no_phase(llava_inputs):
    inputs = first(llava_inputs)
    with torch.no_grad(), patch(tokens="image").attach(LLAVA):
        cache = LLAVA(**inputs, use_cache=True)[CACHE]
        LLAVA(input_ids=torch.tensor([[7, 8]]), **{CACHE: cache})
        with (
            patch(phase="decode").attach(LLAVA),
            pytest.raises(VlmEditError, match="nobody can tell prompt from answer"),
        ):
            LLAVA(input_ids=torch.tensor([[7]]), **{CACHE: cache})


@pytest.mark.parametrize("words", [1, 3])
def test_a_cache_that_was_emptied_begins_with_a_prompt_of_its_own(words):
    cache = StaticCache(config=LLAVA.config.get_text_config(), max_cache_len=16)
    with torch.no_grad(), patch(phase="decode").attach(LLAVA) as attached:
        LLAVA(input_ids=torch.tensor([[1, 5, 6, 7]]), **{CACHE: cache})
        LLAVA(input_ids=torch.tensor([[8]]), **{CACHE: cache})
        assert attached.report().sites[0].phases["decode"] == 1
        cache.reset()
        LLAVA(input_ids=torch.tensor([[1, 5, 6][:words]]), **{CACHE: cache})
        assert attached.report().sites[0].phases["decode"] == 1
        for _ in range(2):
            LLAVA(input_ids=torch.tensor([[8]]), **{CACHE: cache})
    site = attached.report().sites[0]
    assert (site.phases["decode"], site.steps) == (3, (0, 1))


def test_a_mask_counts_also_where_nothing_else_is_chosen(llava_inputs):
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 3] = True
    with patch().attach(LLAVA, mask=mask) as attached, torch.no_grad():
        LLAVA(**first(llava_inputs))
    assert attached.report().edited_tokens == 1


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 2}, {"cache_implementation": "static"}])
def test_a_mask_is_cut_as_the_prompt_is(llava_inputs, options):
    inputs = first(llava_inputs)
    mask = torch.tensor([[True, False, False, True, True, False, True, False, False]])
    with patch(tokens="image").attach(LLAVA, mask=mask):
        expected = generate(inputs)
        got = generate(inputs, disable_compile=True, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_position_past_the_prompt_is_no_generated_token(llava_inputs):
    with patch(positions=(0, 9)).attach(LLAVA) as attached:
        generate(first(llava_inputs), use_cache=False)
    site = attached.report().sites[0]
    assert (site.phases["prompt"], site.phases["decode"]) == (site.calls, 0)
