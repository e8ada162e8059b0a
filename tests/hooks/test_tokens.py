"""What is known of an output's tokens is worked out once per call, and asked by everybody."""

import contextlib
import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import CACHE, IMAGE_TOKEN, random_dictionary
from torch import nn

from vlm_edit import Ablate, Adapter, Dictionary, Host, Patch, Steer, VlmEditError, record
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call, CallTracker, Generation, Selection, Tokens, attach
from vlm_edit.patches.report import Tally

LENGTH = 4


def decode_call(**known):
    """A step behind a prompt of five tokens, the third of the answer."""
    call = Call((2, 1), "text", start=7, prompt=5)
    for name, value in known.items():
        setattr(call, name, value)
    return call


@torch.no_grad()
def test_layers_of_one_call_share_what_is_known(llava, llava_inputs):
    with record(llava, "language.0", "language.1") as recording:
        llava(**llava_inputs)
        llava(**llava_inputs)
    first, second, later, _ = (capture.tokens for capture in recording.captures)
    assert first is second
    assert first is not later
    assert first.modality is second.modality is first.modality
    assert first.real is first.real
    assert torch.equal(first.mask("image"), llava_inputs["input_ids"] == IMAGE_TOKEN)
    assert torch.equal(first.mask("text"), llava_inputs["input_ids"] != IMAGE_TOKEN)


def test_an_output_of_another_stream_shape_or_device_has_tokens_of_its_own():
    hidden = torch.zeros(2, 3, 4)
    tokens = Tokens.of("mixed", Call((2, 3)), hidden)
    assert tokens.are_of("mixed", torch.ones(2, 3, 4))
    assert not tokens.are_of("text", hidden)
    assert not tokens.are_of("mixed", torch.zeros(4, 3, 4))
    assert not tokens.are_of("mixed", hidden.to("meta"))
    flat = Tokens("mixed", Call((2, 3)), hidden.shape, hidden.device, output=torch.Size((6, 4)))
    assert flat.are_of("mixed", torch.zeros(6, 4))
    assert not flat.are_of("mixed", hidden)


def test_what_was_known_before_the_host_made_a_longer_sequence_is_forgotten():
    call = Call((2, 4), Mixed.of(image=torch.ones(2, 4, dtype=torch.bool)), start=0, prompt=4)
    call.resolved, call.generated = Tokens.of("mixed", call, torch.zeros(2, 4, 3)), True
    generation = Generation(Call((2, 4), prompt=4), given=4)
    call.grow((2, 9), generation)
    assert call.resolved is None
    assert not call.generated


@torch.no_grad()
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_what_is_known_goes_with_the_call_and_waits_for_no_collector(llava, llava_inputs, ends):
    known = []

    def keep(hidden, tokens):
        known.extend((weakref.ref(tokens), weakref.ref(tokens.call)))
        if ends == "badly":
            raise RuntimeError("in the middle")
        return hidden

    handle = attach(llava, Host.of(llava).site("language.0"), keep)
    gc.disable()
    try:
        if ends == "well":
            llava.generate(**llava_inputs, max_new_tokens=3, suppress_tokens=[IMAGE_TOKEN])
        else:
            with contextlib.suppress(RuntimeError):
                llava(**llava_inputs)
        assert known
        assert [reference() for reference in known] == [None] * len(known)
    finally:
        gc.enable()
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("way", ["generate", "loop"])
def test_of_a_generation_the_steps_are_known_to_be_text_and_the_prompt_is_not(
    llava, llava_inputs, way
):
    with record(llava, "language.0") as recording:
        if way == "generate":
            llava.generate(**llava_inputs, max_new_tokens=3, suppress_tokens=[IMAGE_TOKEN])
        else:
            output = llava(**llava_inputs, use_cache=True)
            for _ in range(2):
                ids = output.logits[:, -1:].argmax(-1)
                output = llava(input_ids=ids, **{CACHE: output.past_key_values})
    captures = [capture.tokens for capture in recording.captures]
    assert [tokens.generated for tokens in captures] == [False, True, True]
    assert [tokens.step for tokens in captures] == [None, 0, 1]
    assert [tokens.phase for tokens in captures] == ["prompt", "decode", "decode"]


@pytest.mark.parametrize(
    "known",
    [
        {"modality": Mixed.of(image=torch.ones(2, 1, dtype=torch.bool))},
        {"real": torch.ones(2, 1, dtype=torch.bool)},
        {"hidden_padding": True},
        {"start": 4},
        {"start": torch.tensor(7)},
        {"prompt": None},
    ],
)
def test_what_a_tensor_must_tell_is_not_taken_for_generated_text(known):
    assert decode_call().is_generated_text
    assert decode_call(modality=None).is_generated_text
    assert not decode_call(**known).is_generated_text


@pytest.mark.parametrize("stream", ["image", "text"])
def test_at_a_tap_of_one_stream_nothing_is_answered_at_once(stream):
    call, tracker = decode_call(), CallTracker.acquire(nn.Linear(1, 1), Adapter(()))
    call.generated = True
    hidden = torch.zeros(2, 1, 3)
    assert tracker._resolve(call, "mixed", hidden).generated
    tokens = tracker._resolve(call, stream, hidden)
    assert not tokens.generated
    other = {"image": "text", "text": "image"}[stream]
    with pytest.raises(VlmEditError, match=f"no {other} tokens pass here, only {stream}"):
        Selection(other).choose(tokens)


CHOICES = [
    Selection(tokens, phase, steps, positions)
    for tokens, phase, (steps, positions) in itertools.product(
        ("all", "image", "text", "text+special"),
        ("both", "prompt", "decode"),
        [(None, None), ((0, 2), None), ((1, None), None), (None, (0, -1))],
    )
    if not (phase == "prompt" and steps) and not (phase == "decode" and positions)
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("image", [False, None])
def test_a_step_of_generated_text_is_answered_at_once_as_it_is_at_length(choice, image):
    slow = Tokens.of("mixed", decode_call(image=image), torch.zeros(2, 1, 3))
    quick = replace(slow, generated=True)
    assert choice.choose(quick) is choice.choose(slow)
    assert (choice.generated is None) == (choice.steps is not None)
    if choice.generated is not None:
        assert choice.generated is choice.choose(slow)


@pytest.mark.parametrize("chosen", [True, False])
def test_what_is_noted_is_counted_as_what_is_added(chosen):
    noted, added = (Tally("language.0", torch.device("cpu")) for _ in range(2))
    for start in range(5, 5 + 1500):  # more than are kept
        tokens = Tokens.of("mixed", decode_call(start=start), torch.zeros(2, 1, 3))
        noted.note(tokens, chosen)
        added.add(Selection(), tokens, chosen)
    assert len(noted._noted) < 1024
    assert noted.report == added.report
    assert noted.report.tokens == (3000 if chosen else 0)
    assert noted.report.steps == ((0, 1499) if chosen else None)


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["all", "text+special", "image"])
def test_a_new_strength_acts_in_steps_that_were_answered_at_once(llava, llava_inputs, tokens):
    patch = Patch("language.0", random_dictionary(32), [Steer([3], 5.0)], tokens=tokens)
    quiet = {"max_new_tokens": LENGTH, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}

    with patch.attach(llava) as attached:
        llava.generate(**llava_inputs, **quiet)
        before = attached.report().edited_tokens
        attached.set_strength(0.0)
        llava.generate(**llava_inputs, **quiet)
        assert attached.report().edited_tokens == before > 0


def test_what_the_user_says_of_images_is_worked_out_once_for_each_mask():
    call = Call((1, 3), "text", start=0, prompt=3)
    tokens = Tokens.of("mixed", call, torch.zeros(1, 3, 4))
    first, second = (torch.tensor([row]) for row in ([True, False, True], [False, True, True]))
    assert tokens.told(None) is tokens
    assert tokens.told(first) is tokens.told(first)
    assert torch.equal(tokens.told(first).mask("image"), first)
    assert torch.equal(tokens.told(second).mask("image"), second)
    assert tokens.modality == "text"
    of_text = Tokens.of("text", call, torch.zeros(1, 3, 4))
    assert of_text.told(first) is of_text


def test_a_text_tower_that_no_call_tells_of_reads_a_prompt_and_is_counted_so():
    tokens, tally = Tokens.of("text", Call(), torch.zeros(2, 3, 4)), Tally("text.1", "cpu")
    assert Selection(phase="prompt").choose(tokens) is True
    assert Selection(phase="decode").choose(tokens) is False
    tally.add(Selection(), tokens, True)
    assert tally.report.phases == {"prompt": 6, "decode": 0, "unknown": 0}


class Pooled(nn.Module):
    """Gives out one embedding of image and text together."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, pixel_values=None):
        return self.block(self.embed(input_ids).mean(1) + pixel_values.mean())


def test_a_pooled_output_of_both_streams_is_not_centred_by_a_guess():
    dictionary = Dictionary.identity(4)
    centers = {"image": torch.zeros(4), "text": torch.ones(4)}
    centred = replace(dictionary, encoder=replace(dictionary.encoder, centers=centers))
    host, adapter = Pooled(), Adapter.of({"block": ("block", "mixed", 4)}, image_token=7)
    with (
        Patch("block", centred, Ablate([1])).attach(Host.of(host, adapter=adapter)),
        pytest.raises(VlmEditError, match=r"apart: image and text share .*which row is which"),
    ):
        host(torch.tensor([[1, 7, 2], [1, 7, 3]]), torch.ones(1))
