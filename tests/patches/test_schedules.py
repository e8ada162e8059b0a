"""Schedules over decode steps and strengths per token, against hooks written by hand."""

import pytest
import torch
from conftest import IMAGE_TOKEN, random_dictionary
from test_where_edits_act import DICTIONARY, LLAVA, SITE, by_hand, full, generate, patch

from vlm_edit import Patch, Scale, Steer, VlmEditError, load_patch, record

MODES = [
    {},
    {"num_beams": 2},
    {"cache_implementation": "static", "disable_compile": True},
    {"use_cache": False},
    {"prefill_chunk_size": 3},
]


def scheduled(inputs, factors, **options):
    """The same generation with the change of every call multiplied by hand."""
    splice, calls = patch().bindings[0].splice, []

    def hook(_module, _args, hidden):
        factor = factors(len(calls), hidden)
        calls.append(1)
        return splice(hidden, None, strength=factor)

    handle = LLAVA.model.language_model.layers[1].register_forward_hook(hook, prepend=True)
    try:
        return generate(inputs, **options)
    finally:
        handle.remove()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_schedule_multiplies_each_decode_step_and_leaves_the_prompt(llava_inputs, mode):
    schedule = [0.0, 2.0, -1.0]
    edited = patch(schedule=schedule)
    with edited.attach(LLAVA), torch.no_grad():
        found = generate(llava_inputs, **mode)
    length = llava_inputs["input_ids"].shape[1]
    real = llava_inputs["attention_mask"].bool()

    def factors(call, hidden):
        if mode.get("use_cache") is False:  # the whole sequence at every call
            steps = torch.arange(hidden.shape[1]) - length
        elif mode.get("prefill_chunk_size"):
            chunks = -(-length // 3)
            first = call * 3 if call < chunks else length + call - chunks
            steps = torch.arange(first, first + hidden.shape[1]) - length
        else:
            steps = torch.arange(hidden.shape[1]) + (0 if call == 0 else length + call - 1) - length
        rows = [1.0 if s < 0 else schedule[min(int(s), 2)] for s in steps]
        factor = torch.tensor(rows).repeat(len(hidden), 1)
        inside = steps < 0
        shown = real.repeat_interleave(len(hidden) // len(real), 0)
        factor[:, inside] *= shown[:, (steps + length)[inside]]
        return factor

    torch.testing.assert_close(
        found, scheduled(llava_inputs, factors, **mode), rtol=1e-4, atol=1e-4
    )


def test_a_schedule_of_ones_is_none_and_of_zeros_edits_the_prompt_alone(llava_inputs):
    with patch().attach(LLAVA):
        plain = generate(llava_inputs)
    with patch(schedule=[1.0]).attach(LLAVA):
        assert torch.equal(generate(llava_inputs), plain)
    with patch(phase="prompt").attach(LLAVA):
        prompt = generate(llava_inputs)
    with patch(schedule=[0.0]).attach(LLAVA) as attached:
        assert torch.equal(generate(llava_inputs), prompt)
    assert attached.report().sites[0].phases["decode"] == 0


def test_a_schedule_goes_with_strengths_and_windows(llava_inputs):
    with patch(phase="decode", steps=(0, 2), schedule=[2.0, 3.0]).attach(LLAVA, strength=0.5):
        found = generate(llava_inputs)
    with patch(phase="decode", steps=(0, 2), schedule=[1.0, 1.5]).attach(LLAVA):
        assert torch.equal(generate(llava_inputs), found)


def test_a_schedule_travels_with_the_patch(llava_inputs, tmp_path):
    one = patch(schedule=(0.5, 0.25))
    one.save(tmp_path / "patch.safetensors", LLAVA)
    back = load_patch(tmp_path / "patch.safetensors")
    assert back.bindings[0].schedule == (0.5, 0.25)
    with one.attach(LLAVA):
        expected = generate(llava_inputs)
    with back.attach(LLAVA):
        assert torch.equal(generate(llava_inputs), expected)


@pytest.mark.parametrize("schedule", [[], 2.0, [float("nan")], ["1"], [True], "1"])
def test_a_schedule_that_is_no_list_of_numbers_is_refused(schedule):
    with pytest.raises((VlmEditError, TypeError), match="schedule is|not iterable"):
        patch(schedule=schedule)


def test_a_schedule_needs_to_know_the_step(llava_inputs):
    with torch.no_grad():
        cache = LLAVA(**llava_inputs, use_cache=True).past_key_values
        ids = torch.ones(len(llava_inputs["input_ids"]), 1, dtype=torch.long)
        one = patch(schedule=[0.5])
        with one.attach(LLAVA), pytest.raises(VlmEditError, match="a schedule counts decode steps"):
            LLAVA(input_ids=ids, past_key_values=cache)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_strengths_per_token_are_those_of_the_prompt_then_one(llava_inputs, mode):
    ids = llava_inputs["input_ids"]
    given = torch.linspace(-1, 2, ids.numel()).view(ids.shape)
    given[:, ::3] = 0.0
    with patch().attach(LLAVA, strength=given):
        found = generate(llava_inputs, **mode)
    length, real = ids.shape[1], llava_inputs["attention_mask"].bool()

    def factors(call, hidden):
        if mode.get("use_cache") is False:
            first = 0
        elif mode.get("prefill_chunk_size"):
            chunks = -(-length // 3)
            first = call * 3 if call < chunks else length + call - chunks
        else:
            first = 0 if call == 0 else length + call - 1
        places = torch.arange(first, first + hidden.shape[1])
        rows = len(hidden) // len(given)
        known = (given * real).repeat_interleave(rows, 0)[:, places.clamp(max=length - 1)]
        return torch.where(places < length, known, 1.0)

    torch.testing.assert_close(
        found, scheduled(llava_inputs, factors, **mode), rtol=1e-4, atol=1e-4
    )


def test_tokens_of_strength_zero_are_left_and_not_counted(llava_inputs):
    ids, real = llava_inputs["input_ids"], llava_inputs["attention_mask"].bool()
    given = (ids == IMAGE_TOKEN).float()
    with patch(phase="prompt").attach(LLAVA, strength=given) as attached:
        found = generate(llava_inputs)
    with patch(phase="prompt", tokens="image").attach(LLAVA) as other:
        assert torch.equal(generate(llava_inputs), found)
    assert attached.report().edited_tokens == other.report().edited_tokens
    expected = by_hand(llava_inputs, lambda n, h: real & (given > 0) if n == 0 else full(h, False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_strengths_of_another_length_are_refused(llava_inputs):
    length = llava_inputs["input_ids"].shape[1]
    rows = len(llava_inputs["input_ids"])
    with (
        patch().attach(LLAVA, strength=torch.ones(rows, length + 1)),
        pytest.raises(VlmEditError, match=f"the prompt has {length} tokens"),
    ):
        generate(llava_inputs)
    with pytest.raises(VlmEditError, match="one per row of the batch, or"):
        patch().attach(LLAVA, strength=torch.ones(1, 2, 3))


def test_at_a_vision_site_strengths_are_of_its_own_tokens(llava_inputs):
    one = Patch("vision.0", random_dictionary(24), Steer([3], 2.0))
    with record(LLAVA, "vision.0") as recording, torch.no_grad():
        LLAVA(**llava_inputs)
    plain = recording.last("vision.0", "image").hidden
    given = torch.arange(plain.shape[1]).float().expand(len(plain), -1)
    with one.attach(LLAVA, strength=given), record(LLAVA, "vision.0") as recording:
        with torch.no_grad():
            LLAVA(**llava_inputs)
        found = recording.last("vision.0", "image").hidden
    splice = one.bindings[0].splice
    torch.testing.assert_close(found, splice(plain, strength=given))
    with (
        one.attach(LLAVA, strength=given[:, :-1]),
        pytest.raises(VlmEditError, match=r"one per token is \(\d+, \d+\) here"),
    ):
        LLAVA(**llava_inputs)


def test_strengths_per_token_are_not_changed_in_place():
    with (
        patch().attach(LLAVA) as attached,
        pytest.raises(VlmEditError, match="strengths per token belong to one prompt"),
    ):
        attached.set_strength([[1.0, 2.0]])
    with (
        patch().attach(LLAVA, strength=torch.ones(2, 3)) as attached,
        pytest.raises(VlmEditError, match="strengths per token belong to one prompt"),
    ):
        attached.set_strength(2.0)


def test_a_gate_travels_with_the_patch(llava_inputs, tmp_path):
    one = Patch(SITE, DICTIONARY, Scale(range(20), -2.0), gate=0.0)
    one.save(tmp_path / "patch.safetensors", LLAVA)
    back = load_patch(tmp_path / "patch.safetensors")
    assert back.bindings[0].splice.gate.least == 0.0
    with one.attach(LLAVA):
        expected = generate(llava_inputs)
    with back.attach(LLAVA):
        assert torch.equal(generate(llava_inputs), expected)
    with Patch(SITE, DICTIONARY, Scale(range(20), -2.0)).attach(LLAVA):
        assert not torch.equal(generate(llava_inputs), expected)
