"""Phases, steps, positions, masks and strengths, against hooks written by hand."""

import pytest
import torch
from conftest import CACHE, IMAGE_TOKEN, make_llava, random_dictionary

from vlm_edit import Clamp, Patch, Scale, Steer, VlmEditError
from vlm_edit.patches import attach_rows

LLAVA = make_llava()
NEW = 6
SITE, WIDTH = "language.1", 32
DICTIONARY = random_dictionary(WIDTH)
RULES = [Scale(range(20), -2.0), Steer([25], 3.0)]


def patch(site=SITE, **choice) -> Patch:
    return Patch(site, DICTIONARY, RULES, **choice)


@torch.no_grad()
def generate(inputs, **options):
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "suppress_tokens": [IMAGE_TOKEN],
    } | options
    output = LLAVA.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return torch.stack(output.logits, 1)


def by_hand(inputs, chooses, **options):
    """Edits, at the n-th run of the layer, the tokens [B, S] that ``chooses(n, hidden)`` tells."""
    everything = patch()
    calls = []

    def hook(_module, _args, hidden):
        mask = chooses(len(calls), hidden)
        calls.append(1)
        splice = everything.bindings[0].splice
        return torch.where(mask.unsqueeze(-1), splice(hidden), hidden)

    layer = LLAVA.model.language_model.layers[1]
    handle = layer.register_forward_hook(hook, prepend=True)
    try:
        return generate(inputs, **options)
    finally:
        handle.remove()


def full(hidden, value):
    return torch.full(hidden.shape[:2], value)


@pytest.mark.parametrize(
    ("choice", "steps", "prompt"),
    [
        ({"phase": "prompt"}, range(0), True),
        ({"phase": "decode"}, range(NEW), False),
        ({"phase": "decode", "steps": (1, 3)}, range(1, 3), False),
        ({"phase": "decode", "steps": (2, None)}, range(2, NEW), False),
        ({"steps": (0, 2)}, range(2), True),
        ({"steps": (1, 3)}, range(1, 3), True),
    ],
)
def test_a_phase_and_a_window_of_steps_are_those_of_a_hook_that_counts_calls(
    llava_inputs, choice, steps, prompt
):
    real = llava_inputs["attention_mask"].bool()

    def chooses(call, hidden):
        return real & prompt if call == 0 else full(hidden, call - 1 in steps)

    expected = by_hand(llava_inputs, chooses)
    with patch(**choice).attach(LLAVA) as attached:
        assert torch.equal(generate(llava_inputs), expected)
    done = [step for step in steps if step < NEW - 1]  # the last token is not fed back
    site = attached.report().sites[0]
    assert site.steps == ((done[0], done[-1]) if done else None)
    assert site.phases["prompt"] == (int(real.sum()) if prompt else 0)
    assert site.phases["decode"] == 2 * len(done)


@pytest.mark.parametrize("positions", [(0,), (-1,), (0, 3, -2), range(2, 5)])
def test_positions_count_the_real_tokens_of_the_prompt(llava_inputs, positions):
    real = llava_inputs["attention_mask"]

    def chooses(call, hidden):
        mask = full(hidden, False)
        for row, padding in enumerate((real == 0).sum(1).tolist() if call == 0 else ()):
            places = list(range(padding, real.shape[1]))
            for position in positions:
                mask[row, places[position]] = True
        return mask

    expected = by_hand(llava_inputs, chooses)
    with patch(positions=positions).attach(LLAVA) as attached:
        assert torch.equal(generate(llava_inputs), expected)
    assert attached.report().edited_tokens == 2 * len(positions)


def test_a_position_beyond_a_short_prompt_is_no_token(llava_inputs):
    real = llava_inputs["attention_mask"]
    with patch(positions=(7,)).attach(LLAVA) as attached:
        generate(llava_inputs)
    assert attached.report().edited_tokens == int((real.sum(1) > 7).sum()) == 1


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"num_beams": 2}, {"use_cache": False, "num_beams": 2}],
)
def test_the_users_mask_replaces_the_choice_by_stream_in_the_prompt(llava_inputs, tokens, options):
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    real = llava_inputs["attention_mask"].bool()

    def chooses(_, hidden):
        beams = len(hidden) // 2
        kept = (mask & real).repeat_interleave(beams, 0)
        if hidden.shape[1] == 1:
            return full(hidden, tokens != "image")
        rest = torch.full((len(hidden), hidden.shape[1] - 9), tokens != "image")
        return torch.cat([kept, rest], 1)

    expected = by_hand(llava_inputs, chooses, **options)
    with patch(tokens=tokens).attach(LLAVA, mask=mask):
        torch.testing.assert_close(generate(llava_inputs, **options), expected)


@pytest.mark.parametrize("tokens", ["image", "text+special"])
def test_merged_embeddings_need_the_users_word_for_which_are_image(llava_inputs, tokens):
    ids, attention = llava_inputs["input_ids"], llava_inputs["attention_mask"]
    seen = []
    layer = LLAVA.model.language_model
    handle = layer.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        LLAVA(**llava_inputs)
    handle.remove()
    merged = {"inputs_embeds": seen[0], "attention_mask": attention}
    with patch(tokens=tokens).attach(LLAVA):
        expected = generate(llava_inputs)
        with pytest.raises(VlmEditError, match=r"image_mask="):
            generate(merged)
    with patch(tokens=tokens).attach(LLAVA, image_mask=ids == IMAGE_TOKEN):
        torch.testing.assert_close(generate(merged), expected)


@pytest.mark.parametrize("name", ["mask", "image_mask"])
def test_a_mask_of_another_length_than_the_prompt_is_refused(llava_inputs, name):
    wrong = torch.ones(2, 8, dtype=torch.bool)
    with (
        patch(tokens="image").attach(LLAVA, **{name: wrong}),
        pytest.raises(VlmEditError, match=rf"^{name} is \(2, 8\), the prompt has 9 tokens"),
    ):
        generate(llava_inputs)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
def test_each_row_has_its_own_strength_and_zero_leaves_every_bit(llava_inputs, tokens, options):
    plain = generate(llava_inputs, **options)
    with patch(tokens=tokens).attach(LLAVA, strength=[0.0, 1.0]):
        rows = generate(llava_inputs, **options)
    with patch(tokens=tokens).attach(LLAVA):
        full_strength = generate(llava_inputs, **options)
    plain, rows, full_strength = (
        logits.unflatten(0, (2, -1)) for logits in (plain, rows, full_strength)
    )
    assert torch.equal(rows[0], plain[0])
    torch.testing.assert_close(rows[1], full_strength[1])
    assert not torch.allclose(full_strength[1], plain[1])


def test_the_strength_at_attach_is_the_rules_own_strength(llava_inputs):
    weaker = [Scale(range(20), -2.0, strength=0.25), Clamp([25], 3.0, strength=0.25)]
    strong = [Scale(range(20), -2.0), Clamp([25], 3.0)]
    with Patch(SITE, DICTIONARY, weaker).attach(LLAVA):
        expected = generate(llava_inputs)
    with Patch(SITE, DICTIONARY, strong).attach(LLAVA, strength=0.25):
        torch.testing.assert_close(generate(llava_inputs), expected, rtol=1e-4, atol=1e-4)


def test_each_row_has_its_own_patch_or_none(llava_inputs):
    first, second = patch(tokens="image"), patch("language.0", phase="decode")
    expected = []
    for own in (first, second):
        with own.attach(LLAVA):
            expected.append(generate(llava_inputs))
    plain = generate(llava_inputs)
    with attach_rows(LLAVA, [first, second]) as attached:
        both = generate(llava_inputs)
    torch.testing.assert_close(both[0], expected[0][0])
    torch.testing.assert_close(both[1], expected[1][1])
    assert [site.site for site in attached.report().sites] == ["language.1", "language.0"]
    with attach_rows(LLAVA, [None, first]):
        one = generate(llava_inputs)
    assert torch.equal(one[0], plain[0])
    assert torch.equal(generate(llava_inputs), plain)


def test_rows_that_share_a_patch_are_edited_once_each(llava_inputs):
    one, real = patch(phase="prompt"), int(llava_inputs["attention_mask"].sum())
    with one.attach(LLAVA) as attached:
        expected = generate(llava_inputs)
        assert attached.report().edited_tokens == real
    with attach_rows(LLAVA, [one, one]) as attached:
        torch.testing.assert_close(generate(llava_inputs), expected)
    assert attached.report().edited_tokens == real


def test_rows_that_do_not_fit_the_batch_are_refused(llava_inputs):
    with (
        patch().attach(LLAVA, strength=[1.0, 1.0, 1.0]),
        pytest.raises(VlmEditError, match=r"strength has 3 values, .* has 2 rows"),
    ):
        generate(llava_inputs)


@pytest.mark.parametrize("strength", [float("nan"), [], [[[1.0]]], "much", [1.0, float("inf")]])
def test_a_strength_that_is_none_is_refused_before_anything_is_attached(strength):
    hooks = len(LLAVA._forward_pre_hooks)
    with pytest.raises(VlmEditError, match="strength is"):
        patch().attach(LLAVA, strength=strength)
    assert len(LLAVA._forward_pre_hooks) == hooks
    assert "generate" not in LLAVA.__dict__


@pytest.mark.parametrize("mask", [torch.ones(2, 9), [[True]], torch.tensor(True)])
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(VlmEditError, match="mask must be a tensor of bool"):
        patch().attach(LLAVA, mask=mask)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"tokens": "pictures"},
            "tokens is 'pictures'; use 'all', 'image', 'video', 'visual', 'aud",
        ),
        ({"phase": "prefill"}, "phase is 'prefill'; use 'both', 'prompt', 'decode'"),
        ({"phase": "prompt", "steps": (0, 2)}, "phase='prompt' leaves none"),
        ({"phase": "decode", "positions": (1,)}, "positions are of the prompt"),
        ({"steps": (3, 3)}, r"steps is \(3, 3\): it holds no step"),
        ({"steps": (-1, 3)}, "whole numbers from 0"),
        ({"steps": 3}, "give .first, one past the last."),
        ({"positions": ()}, "at least one"),
        ({"positions": (0.5,)}, "whole numbers"),
        ({"positions": 0.5}, "whole numbers"),
        ({"positions": (True,)}, "whole numbers"),
        ({"positions": (-(10**30),)}, "none beyond"),
        ({"steps": (10**30, None)}, "whole numbers from 0 to"),
    ],
)
def test_choices_that_name_no_token_are_refused(choice, message):
    with pytest.raises(VlmEditError, match=message):
        patch(**choice)


def test_a_vision_site_has_no_decode_phase():
    vision = Patch("vision.1", random_dictionary(24), RULES, phase="decode")
    with pytest.raises(VlmEditError, match="images are encoded with the prompt"):
        vision.attach(LLAVA)


@pytest.mark.parametrize("positions", [(0,), (-1, 1)])
def test_positions_at_a_vision_layer_are_places_in_the_image(llava_inputs, positions):
    vision = Patch("vision.1", random_dictionary(24), RULES, positions=positions)
    with vision.attach(LLAVA) as attached, torch.no_grad():
        LLAVA(**llava_inputs)
    assert attached.report().edited_tokens == 2 * len(positions)


# Loops written by hand.


@torch.no_grad()
def loop(inputs, chunks, new=3):
    """Greedy decoding through the host's forward: the prompt in pieces, then token by token."""
    cache, logits, place = None, [], 0
    embeds = None
    for size in chunks:
        piece = {"input_ids": inputs["input_ids"][:, place : place + size]}
        place += size
        if embeds is None and "pixel_values" in inputs:
            piece["pixel_values"] = inputs["pixel_values"]
        output = LLAVA(
            **piece,
            attention_mask=inputs["attention_mask"][:, :place],
            past_key_values=cache,
            use_cache=True,
        )
        embeds, cache = True, output.past_key_values
    attention = inputs["attention_mask"]
    for _ in range(new):
        logits.append(output.logits[:, -1])
        token = logits[-1].argmax(-1, keepdim=True)
        attention = torch.cat([attention, torch.ones_like(token)], 1)
        output = LLAVA(input_ids=token, attention_mask=attention, past_key_values=cache)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("choice", [{"phase": "prompt"}, {"phase": "decode"}, {"steps": (1, 2)}])
def test_a_loop_of_the_users_own_knows_its_phases_too(llava_inputs, choice):
    with patch(**choice).attach(LLAVA):
        own = loop(llava_inputs, [9])
        expected = generate(llava_inputs, suppress_tokens=None)[:, :3]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_in_pieces_outside_generate_leaves_the_phase_unknown(llava_inputs):
    inputs = {k: v[:1] for k, v in llava_inputs.items()}
    with patch(tokens="image").attach(LLAVA):  # the modality is known all the same
        expected = loop(inputs, [9])
        torch.testing.assert_close(loop(inputs, [6, 3]), expected, rtol=1e-4, atol=1e-4)
    for choice in ({"phase": "decode"}, {"positions": (1,)}):
        with (
            patch(**choice).attach(LLAVA),
            pytest.raises(VlmEditError, match="prompt was not seen in one call|not seen in one"),
        ):
            loop(inputs, [6, 3])
    with (
        patch(phase="decode").attach(LLAVA),
        pytest.raises(VlmEditError, match="nobody can tell prompt from answer"),
    ):
        loop(inputs, [6, 2, 1])


def test_a_conversation_that_goes_on_in_one_cache_has_a_prompt_each_turn(llava_inputs):
    """The second turn's prompt is all that came before and the new question."""
    inputs = {k: v[:1] for k, v in llava_inputs.items()}
    quiet = {"do_sample": False, "suppress_tokens": [IMAGE_TOKEN], "max_new_tokens": 3}
    with torch.no_grad(), patch(phase="decode").attach(LLAVA) as attached:
        first = LLAVA.generate(**inputs, **quiet, return_dict_in_generate=True, use_cache=True)
        ids = torch.cat([first.sequences, torch.tensor([[7, 8]])], 1)
        before = attached.report().sites[0]
        LLAVA.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **{CACHE: first[CACHE]},
            **quiet,
        )
    after = attached.report().sites[0]
    assert before.phases == {"prompt": 0, "decode": 2, "unknown": 0}
    assert after.phases == {"prompt": 0, "decode": 4, "unknown": 0}
    assert after.steps == (0, 1)
