"""What one call tells of its tokens: from its own ids, embeddings and attention mask."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlm_edit import Adapter, Host, VlmEditError
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call, CallTracker, Generation, Selection, Tokens, read_call, record
from vlm_edit.hooks.calls import read_step

ADAPTER = Adapter((), image_token="image_token_id")
IMAGE = 60


def masks(llava, *args, **kwargs):
    with record(llava, "language.0") as recording, torch.no_grad():
        llava(*args, **kwargs)
    return recording.captures[-1].tokens


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.lists(st.sampled_from([5, IMAGE]), min_size=4, max_size=4), min_size=1),
    visual=st.sampled_from([None, "pixel_values", "image_embeds", "mm_encoder_outputs"]),
    padded=st.integers(0, 3),
)
def test_ids_count_as_image_only_in_calls_that_carry_images(ids, visual, padded):
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    inputs = {"input_ids": torch.tensor(ids), "pixel_values": None, "mm_encoder_outputs": {}}
    if visual:
        inputs[visual] = {"image": 1} if visual == "mm_encoder_outputs" else torch.zeros(1)
    attention = torch.ones(len(ids), 4, dtype=torch.long)
    attention[:, :padded] = 0
    call = read_call(host, ADAPTER, inputs | {"attention_mask": attention})
    if visual:
        assert call.modality.at("image").tolist() == [[i == IMAGE for i in row] for row in ids]
    else:
        assert call.modality == "text"
    assert call.real.tolist() == [[j >= padded for j in range(4)] for _ in ids]


@pytest.mark.parametrize(
    ("tokens", "brings", "expected"),
    [
        ({"image_token": 7}, "pixel_values_videos", {"image"}),
        ({"image_token": 7}, "input_features", set()),
        ({"image_token": 7, "audio_token": 9}, "pixel_values_videos", {"image"}),
        ({"image_token": 7, "audio_token": 9}, "input_features", {"audio"}),
        ({"image_token": 7, "video_token": 8}, "pixel_values_videos", {"video"}),
        ({"image_token": 7, "video_token": 8}, "pixel_values", {"image"}),
        ({"video_token": 8}, "pixel_values", {"video"}),
    ],
)
def test_ids_count_only_where_what_they_stand_for_is_brought(tokens, brings, expected):
    ids = torch.tensor([[7, 8, 9, 5]])
    host = SimpleNamespace(config=SimpleNamespace())
    call = read_call(host, Adapter((), **tokens), {"input_ids": ids, brings: torch.zeros(1)})
    found = {} if call.modality == "text" else call.modality.masks
    assert {name for name, mask in found.items() if mask.any()} == expected


def test_encoder_outputs_without_images_carry_none():
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    ids = torch.tensor([[IMAGE]])
    outputs = {"image": None, "video": None}
    call = read_call(host, ADAPTER, {"input_ids": ids, "mm_encoder_outputs": outputs})
    assert call.modality == "text"


def test_only_the_end_of_a_longer_attention_mask_belongs_to_a_call_with_a_cache():
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    attention = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    inputs = {"input_ids": torch.tensor([[5], [6]]), "attention_mask": attention}
    cache = SimpleNamespace(get_seq_length=lambda: 3)
    call = read_call(host, ADAPTER, inputs | {"past_key_values": cache})
    assert call.real.tolist() == [[False], [True]]


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "memory"])
def test_a_cache_is_known_by_whatever_name_it_comes(name):
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    inputs = {"input_ids": torch.full((2, 1), 5), name: SimpleNamespace(get_seq_length=lambda: 3)}
    call = read_call(host, ADAPTER, inputs, generation=Generation(Call((2, 3), prompt=3)))
    assert (call.start, call.decodes) == (3, True)
    assert read_step(ADAPTER, inputs, Generation(Call((2, 3), prompt=3))).step == 0


@pytest.mark.parametrize("attention", [torch.ones(2, 1, 4, 4), torch.ones(2, 3), {"full": 1}])
def test_an_attention_mask_of_another_form_says_nothing_of_padding(attention):
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    inputs = {"input_ids": torch.full((2, 4), 5), "attention_mask": attention}
    assert read_call(host, ADAPTER, inputs).real is None


@pytest.mark.parametrize("measured", [int, torch.tensor])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_padding_is_that_of_the_calls_own_places_whatever_mask_comes_with_it(measured, start):
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    whole = torch.tensor([[0, 1, 1], [0, 0, 1]])
    longer = torch.cat([whole, torch.ones(2, 3, dtype=torch.long)], 1)
    prompt = Call((2, 3), "text", prompt=3, prompt_real=whole.bool())
    cache = SimpleNamespace(get_seq_length=lambda: measured(start))
    for attention in (longer, torch.ones(2, 1, 2, 6), longer[:, : start + 2]):
        inputs = {
            "input_ids": torch.full((2, 2), 5),
            "past_key_values": cache,
            "attention_mask": attention,
        }
        generation = Generation(prompt, torch.tensor(3))
        call = read_call(host, ADAPTER, inputs, generation=generation)
        if start >= 3 and measured is int:
            assert call.real is None
        elif attention.ndim == 4 or attention.shape[1] >= start + 2:
            assert torch.equal(call.real, longer[:, start : start + 2].bool())


def test_a_cache_that_cannot_be_measured_leaves_the_place_unknown():
    host = SimpleNamespace(config=SimpleNamespace(image_token_id=IMAGE))
    attention = torch.tensor([[1, 1, 0]])
    inputs = {"input_ids": torch.tensor([[5]]), "past_key_values": ((),)}
    call = read_call(host, ADAPTER, inputs | {"attention_mask": attention})
    assert call.start is None
    assert call.real.tolist() == [[False]]


@pytest.mark.parametrize("length", [2, 4])
def test_a_call_inside_another_has_its_streams_wherever_it_stands(length):
    host, cache = SimpleNamespace(), SimpleNamespace(get_seq_length=lambda: 3)
    outer = Call((1, 2), Mixed.of(image=torch.tensor([[True, False]])), start=3)
    inputs = {"inputs_embeds": torch.zeros(1, length, 4), "past_key_values": cache}
    call = read_call(host, ADAPTER, inputs, outer)
    if length == 2:
        assert call.modality.at("image").tolist() == [[True, False]]
    else:
        assert call.modality is None


def test_a_pooled_output_is_of_the_prompt_and_takes_a_mask_of_its_own_shape():
    tokens = Tokens.of("text", Call((2, 3)), torch.zeros(2, 4))
    assert Selection("text", "decode").choose(tokens) is False
    mask = torch.tensor([True, False])
    assert torch.equal(Selection("text").choose(tokens, mask), mask)
    with pytest.raises(VlmEditError, match=r"it needs a mask of \(2,\)"):
        Selection("text").choose(tokens, mask.view(1, 2))


def test_packed_rows_that_are_no_part_of_the_patches_are_refused():
    call = Call(grid=torch.tensor([[1, 2, 2], [1, 2, 4]]))
    assert Tokens.of("image", call, torch.zeros(3, 5)).requests.tolist() == [0, 1, 1]
    with pytest.raises(VlmEditError, match="12 patches in all"):
        _ = Tokens.of("image", call, torch.zeros(5, 5)).requests


def test_a_host_without_a_mixed_sequence_has_no_image_mask():
    call = read_call(nn.Linear(1, 1), Adapter(()), {"input_ids": torch.ones(1, 2)})
    assert call.modality is None
    assert call.real is None
    assert read_call(nn.Linear(1, 1), Adapter(()), {}).shape is None


def test_a_config_without_the_placeholder_is_named():
    host = SimpleNamespace(config=SimpleNamespace())
    with pytest.raises(VlmEditError, match=r"config of SimpleNamespace has no 'image_token_id'"):
        read_call(host, ADAPTER, {"input_ids": torch.ones(1, 2), "pixel_values": torch.ones(1)})


def test_inputs_may_come_by_position(llava, llava_inputs):
    expected = llava_inputs["input_ids"] == IMAGE
    ids, pixels, attention = (
        llava_inputs[k] for k in ("input_ids", "pixel_values", "attention_mask")
    )
    tokens = masks(llava, ids, pixels, attention)
    assert torch.equal(tokens.mask("image"), expected)
    assert torch.equal(tokens.real, attention.bool())


def test_images_in_the_rest_of_the_keywords_count_beside_ids_by_position():
    class Host(nn.Module):
        config = SimpleNamespace(image_token_id=IMAGE)

        def forward(self, input_ids, **_):
            return input_ids

    host = Host()
    seen = []
    host.register_forward_hook(lambda *_: seen.append(tracker.now("").modality))
    tracker = CallTracker.acquire(host, ADAPTER)  # its hooks come last and see the end
    ids = torch.tensor([[5, IMAGE]])
    host(ids, image_embeds=torch.zeros(1))
    tracker.release(host)
    assert torch.equal(seen[0].at("image"), ids == IMAGE)


def test_embeddings_are_compared_with_the_placeholders(llava, llava_inputs):
    embeds = llava.get_input_embeddings()(llava_inputs["input_ids"]).detach()
    rest = {k: v for k, v in llava_inputs.items() if k != "input_ids"}
    tokens = masks(llava, inputs_embeds=embeds, **rest)
    assert torch.equal(tokens.mask("image"), llava_inputs["input_ids"] == IMAGE)


@torch.no_grad()
def test_an_embedding_that_agrees_with_the_placeholder_in_part_is_text(llava, llava_inputs):
    table = llava.get_input_embeddings().weight
    table[5, :31] = table[IMAGE, :31]
    embeds = llava.get_input_embeddings()(llava_inputs["input_ids"])
    rest = {k: v for k, v in llava_inputs.items() if k != "input_ids"}
    tokens = masks(llava, inputs_embeds=embeds, **rest)
    assert torch.equal(tokens.mask("image"), llava_inputs["input_ids"] == IMAGE)


def test_merged_embeddings_alone_tell_nothing_and_an_edit_of_one_stream_is_refused(llava):
    tokens = masks(llava, inputs_embeds=torch.randn(2, 4, 32))
    assert tokens.modality is None
    assert tokens.select("all") is None
    for choice in ("image", "text"):
        with pytest.raises(VlmEditError, match=rf"tokens='{choice}': .*Call the whole host with"):
            tokens.select(choice)


def test_an_image_token_that_the_model_emits_is_text(llava):
    ids = torch.tensor([[1, 5, IMAGE, 7]])
    assert masks(llava, input_ids=ids).modality == "text"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_selection_is_the_stream_without_padding(data):
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    bits = st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)
    image = torch.tensor(data.draw(bits)).view(rows, length)
    real = torch.tensor(data.draw(bits)).view(rows, length) if data.draw(st.booleans()) else None
    beams = data.draw(st.integers(1, 3))
    hidden = torch.zeros(rows * beams, length, 5)
    asked = Tokens.of("mixed", Call((rows, length), Mixed.of(image=image), real), hidden)
    here = torch.ones_like(image) if real is None else real
    for tokens, chosen in (("image", image & here), ("text+special", ~image & here)):
        expected = torch.stack([row for row in chosen for _ in range(beams)])
        assert torch.equal(asked.select(tokens), expected)
    every = asked.select("all")
    assert every is None if real is None else every.sum() == real.sum() * beams


def test_at_a_tap_of_one_stream_its_own_name_means_all():
    hidden, real = torch.zeros(1, 2, 3), torch.tensor([[True, False]])
    assert Tokens.of("image", Call(), hidden).select("image") is None
    tokens = Tokens.of("text", Call((1, 2), None, real), hidden)
    assert torch.equal(tokens.select("text+special"), real)


def test_a_pooled_output_has_no_tokens_to_mask():
    call = Call((1, 2), None, torch.tensor([[True, False]]))
    assert Tokens.of("text", call, torch.zeros(1, 3)).select("all") is None


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 4, 3)])
def test_an_output_whose_tokens_are_not_those_of_the_call_is_refused(shape):
    call = Call((2, 4), Mixed.of(image=torch.ones(2, 4, dtype=torch.bool)))
    with pytest.raises(VlmEditError, match=r"token ids of shape \(2, 4\) but this site's output"):
        Tokens.of("mixed", call, torch.zeros(shape)).select("image")


def test_two_adapters_on_one_host_keep_their_own_placeholders():
    class Taking(nn.Module):
        """Takes images, and does not say where they go."""

        def __init__(self):
            super().__init__()
            self.block = nn.Identity()

        def forward(self, input_ids, pixel_values):  # noqa: ARG002
            return self.block(torch.zeros(*input_ids.shape, 2))

    host, ids = Taking(), torch.tensor([[5, IMAGE, 5], [IMAGE, 6, 7]])
    one, other = (Adapter.of({"block": ("block", "mixed", 2)}, image_token=i) for i in (IMAGE, 5))
    with (
        record(Host.of(host, adapter=one), "block") as first,
        record(Host.of(host, adapter=other), "block") as second,
    ):
        host(input_ids=ids, pixel_values=torch.zeros(1))
    assert torch.equal(first.captures[0].tokens.mask("image"), ids == IMAGE)
    assert torch.equal(second.captures[0].tokens.mask("image"), ids == 5)
    assert not host._forward_pre_hooks


def test_the_tracker_stays_until_its_last_user_leaves(llava):
    first = CallTracker.acquire(llava, ADAPTER)
    assert CallTracker.acquire(llava, Adapter((), image_token="image_token_id")) is first
    first.release(llava)
    assert len(llava._forward_pre_hooks) == 1
    first.release(llava)
    assert not llava._forward_pre_hooks
    assert not llava._forward_hooks


def test_no_former_name_of_a_cache_is_asked_for() -> None:
    """Outputs of transformers 5.24 answer to them and warn on the user's screen."""
    script = (
        "import torch\n"
        "from vlm_edit import Ablate, Dictionary, Patch\n"
        "from conftest import make_clip\n"
        "host = make_clip()\n"
        "patch = Patch('text.1', Dictionary.identity(16), Ablate([1]))\n"
        "with patch.attach(host), torch.no_grad():\n"
        "    host(input_ids=torch.tensor([[1, 2]]), pixel_values=torch.zeros(1, 3, 16, 16))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "deprecated" not in done.stdout + done.stderr
