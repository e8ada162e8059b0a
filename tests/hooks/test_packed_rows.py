"""Several sequences in one row: continuous batching, and training without padding."""

import pytest
import torch
from conftest import IMAGE_TOKEN, NO_TOKENS, make_llava
from tiny_hosts import FAMILIES, TEXT
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.patches import attach_rows

OWN = Adapter.of({"language.{i}": ("model.layers.{i}", "text", "hidden_size")})
PROMPTS = [[1, 5, 6, 7, 8, 9], [1, 9, 10], [1, 3, 4, 5]]
NEW = 4
REFUSED = [
    {"phase": "prompt"},
    {"phase": "decode"},
    {"steps": (1, 3)},
    {"positions": (-1,)},
    {"schedule": [0.5]},
]


def patch(site="language.1", **choice):
    return Patch(site, Dictionary.identity(32), Clamp([0, 1, 2, 3], 4.0), **choice)


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
    return made


@pytest.fixture(autouse=True)
def quiet():
    """The engine logs what it is told to expect here."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)


def alone(host):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    rows = [torch.tensor([prompt]) for prompt in PROMPTS]
    return [host.generate(row, **options)[0, row.shape[1] :].tolist() for row in rows]


def batched(host):
    outputs = host.generate_batch(
        inputs=PROMPTS,
        generation_config=GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=16, max_batch_tokens=64, allow_block_sharing=False, use_async_batching=False
        ),
        progress_bar=False,
        warmup=False,
    )
    return [list(output.generated_tokens) for output in outputs.values()]


def test_an_edit_of_all_tokens_is_the_same_in_continuous_batching(host):
    plain = alone(host)
    with patch().attach(Host.of(host, adapter=OWN)) as attached:
        expected = alone(host)
        one_by_one = attached.report().edited_tokens
    with patch().attach(Host.of(host, adapter=OWN)) as attached:
        assert batched(host) == expected != plain
    site = attached.report().sites[0]
    assert site.tokens == site.phases["unknown"] == one_by_one
    assert batched(host) == plain == alone(host)
    assert "generate_batch" not in host.__dict__


@pytest.mark.parametrize("choice", REFUSED)
def test_what_continuous_batching_does_not_tell_is_refused_where_it_was_called(host, choice):
    with (
        patch(**choice).attach(Host.of(host, adapter=OWN)) as attached,
        pytest.raises(VlmEditError, match="packs several sequences into a row.*host's generate"),
    ):
        batched(host)
    assert attached.report().edited_tokens == 0


def test_strengths_and_masks_of_rows_are_refused_in_continuous_batching(host):
    said = [
        ({"strength": [0.0, 1.0, 1.0]}, "strength has 3 values, .* 1 rows"),
        ({"strength": [[1.0] * 6] * 3}, "strength is given, but this call packs several"),
        ({"mask": torch.ones(3, 6, dtype=torch.bool)}, "mask is given, but this call packs"),
    ]
    for options, message in said:
        with (
            patch().attach(Host.of(host, adapter=OWN), **options),
            pytest.raises(VlmEditError, match=message),
        ):
            batched(host)
    with (
        attach_rows(Host.of(host, adapter=OWN), [patch(), None, patch()]),
        pytest.raises(VlmEditError),
    ):
        batched(host)


def test_an_error_of_the_engines_own_is_not_made_ours(host):
    def fail(*_):
        raise ValueError("not an edit's")

    handle = host.model.layers[2].register_forward_hook(fail)
    try:
        plain = batched(host)
        assert not any(plain)
        with patch().attach(Host.of(host, adapter=OWN)):
            assert batched(host) == plain
    finally:
        handle.remove()


# A row that a collator packs.

LLAVA = make_llava()
IMAGE = [IMAGE_TOKEN] * 4
FIRST, SECOND = [1, 5, *IMAGE, 6, 7], [1, *IMAGE, 9]
PLACES = [*range(len(FIRST)), *range(len(SECOND))]
ENDS = torch.tensor([0, len(FIRST), len(FIRST) + len(SECOND)], dtype=torch.int32)
PACKED = {
    "input_ids": torch.tensor([FIRST + SECOND]),
    "pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
}
WAYS = {
    "places": {"position_ids": torch.tensor([PLACES])},
    "places and a mask of ones": {
        "position_ids": torch.tensor([PLACES]),
        "attention_mask": torch.ones(1, len(PLACES), dtype=torch.long),
    },
    "places that begin at one": {"position_ids": torch.tensor([PLACES]) + 1},
    "a first sequence of one token": {"position_ids": torch.tensor([[0, *range(len(PLACES) - 1)]])},
    "lengths": {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS},
}


@pytest.mark.parametrize("choice", REFUSED)
@pytest.mark.parametrize("way", WAYS)
def test_a_packed_row_does_not_tell_where_its_tokens_stand(way, choice):
    with (
        patch(**choice).attach(LLAVA),
        torch.no_grad(),
        pytest.raises(VlmEditError, match="packs several sequences into a row"),
    ):
        LLAVA(**PACKED, **WAYS[way])


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize("way", WAYS)
def test_a_packed_row_shows_its_streams(way, tokens):
    image = PACKED["input_ids"] == IMAGE_TOKEN
    expected = {"all": image | True, "image": image, "text+special": ~image}[tokens]
    seen = []
    with patch(tokens=tokens).attach(LLAVA) as attached, torch.no_grad():
        handle = LLAVA.model.language_model.layers[1].register_forward_hook(
            lambda _m, _a, output: seen.append(((output[..., :4] - 4).abs() < 1e-4).all(-1))
        )
        LLAVA(**PACKED, **WAYS[way])
        handle.remove()
    assert torch.equal(seen[0], expected)
    site = attached.report().sites[0]
    assert site.phases["unknown"] == site.tokens == int(expected.sum())
    counts = {"image": int((expected & image).sum()), "text": int((expected & ~image).sum())}
    assert site.streams == NO_TOKENS | counts


def test_a_decoding_step_with_lengths_is_no_prompt():
    ids, ends = torch.tensor([[7, 8]]), torch.tensor([0, 1, 2], dtype=torch.int32)
    with patch(phase="prompt").attach(LLAVA), torch.no_grad():
        for one in (ids, ids[:, :1]):
            with pytest.raises(VlmEditError, match="packs several sequences"):
                LLAVA(input_ids=one, cu_seq_lens_q=ends[: one.shape[1] + 1])


# Places that are no packing.


def padded():
    ids = torch.tensor([FIRST, [0, 0, *SECOND]])
    return {**PACKED, "input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("filler", [0, 1])
@pytest.mark.parametrize("choice", [*REFUSED, {"tokens": "image"}])
def test_places_of_padded_rows_change_nothing(choice, filler):
    inputs = padded()
    real = inputs["attention_mask"]
    places = (real.cumsum(1) - 1).masked_fill(real == 0, filler)
    with torch.no_grad():
        with patch(**choice).attach(LLAVA) as plain:
            LLAVA(**inputs)
        with patch(**choice).attach(LLAVA) as attached:
            LLAVA(**inputs, position_ids=places)
    assert attached.report() == plain.report()


def test_places_of_three_axes_are_no_packing():
    family = FAMILIES["qwen2_5_vl"]
    host, inputs = family.make(), family.inputs()
    keys = ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")
    places, _ = host.model.get_rope_index(**{key: inputs[key] for key in keys})
    assert places.shape[0] == 3
    with patch(phase="prompt", tokens="image").attach(host) as attached, torch.no_grad():
        host(**inputs, position_ids=places)
    assert attached.report().sites[0].streams["image"] == int((inputs["input_ids"] == 60).sum())


def test_text_places_before_those_of_three_axes_tell_of_packing():
    family = FAMILIES["qwen2_5_vl"]
    host, ids = family.make(), torch.tensor([[1, 5, 6, 7, 1, 9]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1]]).expand(4, 1, 6)
    with (
        patch(phase="prompt").attach(host),
        torch.no_grad(),
        pytest.raises(VlmEditError, match="packs several sequences"),
    ):
        host(input_ids=ids, position_ids=places)
