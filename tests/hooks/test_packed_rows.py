"""Several sequences in one row, as training without padding has them.

The oracle is each sequence alone, edited likewise: the plain host's own packed rows equal it to
rounding.
"""

import pytest
import torch
from conftest import IMAGE_TOKEN, NO_TOKENS, make_llava
from tiny_hosts import FAMILIES, TEXT, filled
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError, record
from vlm_edit.patches import attach_rows

pytestmark = pytest.mark.filterwarnings("ignore:the patch edited no token")
PLACED = [
    {"phase": "prompt"},
    {"phase": "decode"},
    {"steps": (1, 3)},
    {"phase": "decode", "steps": (0, None)},
    {"positions": (-1,)},
    {"positions": (0, 2)},
    {"positions": (-3, 1)},
    {"schedule": [0.5]},
]


def patch(site="language.1", **choice):
    width = TEXT["hidden_size"] // TEXT["num_attention_heads"] if ".head." in site else 32
    return Patch(site, Dictionary.identity(width), Clamp([0, 1, 2, 3], 4.0), **choice)


# A row that a collator packs, against each sequence alone.

SEQUENCES = [[1, 5, 6, 7, 8, 9], [1, 9], [1, 3, 4, 5], [7]]
PARTS = [len(sequence) for sequence in SEQUENCES]
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2}
LAYERS = {"language.{i}": ("model.layers.{i}", "text", "hidden_size")}
OWN = {
    "llama": Adapter.of(LAYERS),
    "mixtral": Adapter.of(
        LAYERS | {"experts.{i}": ("model.layers.{i}.mlp.experts", "text", "hidden_size")}
    ),
}
HOSTS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TEXT)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TEXT | EXPERTS)),
}
SITES = [
    *(("llama", "language.1"), ("mixtral", "language.1"), ("mixtral", "experts.1")),
    *(("llama", f"language.1.{part}") for part in ("attention", "mlp", "head.1")),
]


@pytest.fixture(scope="module")
def hosts():
    return {name: Host.of(filled(make()), adapter=OWN[name]) for name, make in HOSTS.items()}


def collated(start=0, **options):
    features = [{"input_ids": sequence} for sequence in SEQUENCES]
    row = DataCollatorWithFlattening(return_tensors="pt", **options)(features)
    row["position_ids"] += start
    return {name: value for name, value in row.items() if name != "labels"}


COLLATED = {
    "places": {},
    "places and lengths": {"return_flash_attn_kwargs": True},
    "places, lengths and numbers": {"return_flash_attn_kwargs": True, "return_seq_idx": True},
    "places that begin at two": {"start": 2},
}


def logits(host, **inputs):
    with torch.no_grad():
        return host.model(**inputs, use_cache=False).logits[0]


def alone(host, patches, start=0):
    """Each sequence by itself, with its patch and how strongly that acts."""
    told = []
    for sequence, (own, said) in zip(SEQUENCES, patches, strict=True):
        places = torch.arange(len(sequence)).unsqueeze(0) + start
        inputs = {"input_ids": torch.tensor([sequence]), "position_ids": places}
        if own is None:
            told.append(logits(host, **inputs))
            continue
        with own.attach(host, **said) as attached:
            told.append(logits(host, **inputs))
        told[-1].report = attached.report().sites[0]
    return told


def expect_equal(packed, expected, plain):
    for own, other in zip(packed.split(PARTS), expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    return any(not torch.equal(a, b) for a, b in zip(expected, plain, strict=True))


@pytest.mark.parametrize(
    ("way", "choice"),
    [*(("places", choice) for choice in PLACED), *((way, PLACED[5]) for way in COLLATED)],
)
@pytest.mark.parametrize(("name", "site"), SITES)
def test_a_packed_row_is_edited_as_each_sequence_alone(hosts, name, site, way, choice):
    host, own = hosts[name], patch(site, **choice)
    start = COLLATED[way].get("start", 0)
    plain = alone(host, [(None, {})] * 4, start)
    expected = alone(host, [(own, {})] * 4, start)
    with own.attach(host) as attached:
        packed = logits(host, **collated(**COLLATED[way]))
    changed = expect_equal(packed, expected, plain)
    decodes = choice.get("phase") == "decode"
    assert changed == (not decodes)
    site = attached.report().sites[0]
    reports = [one.report for one in expected]
    assert site.tokens == site.phases["prompt"] == sum(report.tokens for report in reports)
    assert site.steps is None


def test_sequences_have_strengths_patches_and_masks_of_their_own(hosts):
    host, row = hosts["llama"], collated()
    plain = alone(host, [(None, {})] * 4)
    strengths = [0.0, 1.0, 0.5, 0.25]
    expected = alone(host, [(patch(), {"strength": s}) for s in strengths])
    with patch().attach(host, strength=strengths) as attached:
        assert expect_equal(logits(host, **row), expected, plain)
        attached.set_strength([1.0, 0.0, 0.0, 0.0])
        first, *others = logits(host, **row).split(PARTS)
    assert not torch.equal(first, plain[0])
    torch.testing.assert_close(torch.cat(others), torch.cat(plain[1:]), atol=1e-5, rtol=1e-5)
    assert attached.report().sites[0].tokens == sum(PARTS)


def test_a_patch_for_each_sequence(hosts):
    host = hosts["llama"]
    last, first = patch(positions=(-1,)), patch(positions=(0,))
    expected = alone(host, [(last, {}), (None, {}), (first, {}), (last, {})])
    with attach_rows(host, [last, None, first, last]):
        packed = logits(host, **collated())
    assert expect_equal(packed, expected, alone(host, [(None, {})] * 4))


def test_a_mask_and_strengths_of_tokens_are_of_the_packed_row(hosts):
    host, row = hosts["llama"], collated()
    mask = torch.zeros(1, sum(PARTS), dtype=torch.bool)
    mask[0, [1, 5, 7, 12]] = True
    own = [part.unsqueeze(0) for part in mask[0].split(PARTS)]
    plain = alone(host, [(None, {})] * 4)
    expected = alone(host, [(patch(), {"mask": part}) for part in own])
    with patch().attach(host, mask=mask):
        assert expect_equal(logits(host, **row), expected, plain)
    expected = alone(host, [(patch(), {"strength": part * 0.5}) for part in own])
    with patch().attach(host, strength=mask * 0.5):
        assert expect_equal(logits(host, **row), expected, plain)
    wrong = {"mask": mask[:, :6]}, {"strength": torch.ones(4, 6)}
    for said in wrong:
        with (
            patch().attach(host, **said),
            pytest.raises(VlmEditError, match="packs 4 sequences into .*one value per token"),
        ):
            logits(host, **row)
    with (
        patch().attach(host, strength=[1.0, 0.5]),
        pytest.raises(VlmEditError, match="2 values, and there are 4 sequences"),
    ):
        logits(host, **row)


def test_gradients_of_a_packed_row_are_those_of_its_sequences(hosts):
    host, own = hosts["llama"], patch(positions=(-1,))

    def gradient(*rows):
        host.model.zero_grad()
        for row in rows:
            host.model(**row, use_cache=False).logits.square().sum().backward()
        return host.model.model.layers[0].mlp.down_proj.weight.grad.clone()

    with own.attach(host):
        packed = gradient(collated())
        one_by_one = gradient(*[{"input_ids": torch.tensor([ids])} for ids in SEQUENCES])
    torch.testing.assert_close(packed, one_by_one, atol=1e-4, rtol=1e-4)


def test_rows_that_are_packed_and_padded_tell_their_sequences_in_order(hosts):
    host = hosts["llama"]
    ids = torch.tensor([[1, 5, 6, 1, 9, 3], [1, 7, 8, 1, 0, 0]])
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 1]])
    row = {"input_ids": ids, "position_ids": places, "attention_mask": (ids != 0).long()}
    for choice, expected in (
        ({"positions": (-1,)}, [[0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0]]),
        ({"positions": (1,)}, [[0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]]),
        ({"phase": "prompt"}, [[1] * 6, [1, 1, 1, 1, 0, 0]]),
    ):
        with patch(**choice).attach(host), record(host, "language.1") as recording:
            logits(host, **row)
        hidden = recording.captures[0].hidden[..., :4]
        assert torch.equal(((hidden - 4).abs() < 1e-4).all(-1), torch.tensor(expected).bool())
    with patch().attach(host, strength=[0.0, 1.0, 0.0, 0.0]) as attached:
        logits(host, **row)
    assert attached.report().edited_tokens == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"position_ids": [[0, 1, 2, 0, 1, 5, 6]]}, "do not go on by one"),
        ({"position_ids": [[3, 4, 5, 0, 1, 2, 3]]}, "do not go on by one"),
        ({"cu_seq_lens_q": [0, 3, 7]}, "neither position_ids nor cu_seq_lens_k"),
        ({"cu_seq_lens_q": [0, 3, 7], "cu_seq_lens_k": [0, 9, 20]}, "neither position_ids"),
        ({"cu_seq_lens_q": [0, 3, 6], "cu_seq_lens_k": [0, 3, 6]}, "do not lead from 0 to its 7"),
        (
            {"position_ids": [[0, 1, 2, 0, 1, 2, 3]], "cu_seq_lens_q": [0, 4, 7]},
            "do not agree where each begins",
        ),
        (
            {"position_ids": [[0, 1, 2, 0, 1, 2, 3]], "seq_idx": [[0, 0, 0, 0, 1, 1, 1]]},
            "do not agree where each begins",
        ),
    ],
)
def test_rows_that_do_not_say_where_each_sequence_begins_are_refused(hosts, row, reason):
    host, ids = hosts["llama"], torch.tensor([[1, 5, 6, 1, 9, 3, 4]])
    row = {name: torch.tensor(value) for name, value in row.items()}
    said = [
        ({"phase": "prompt"}, {}),
        ({"positions": (-1,)}, {}),
        ({"schedule": [0.5]}, {}),
        ({}, {"strength": [1.0, 0.0]}),
        ({}, {"mask": ids > 4}),
    ]
    for choice, options in said:
        with (
            patch(**choice).attach(host, **options),
            pytest.raises(VlmEditError, match=f"packs several sequences into a row.*{reason}"),
        ):
            logits(host, input_ids=ids, **row)
    with patch().attach(host) as attached:
        logits(host, input_ids=ids, **row)
    assert attached.report().sites[0].phases["unknown"] == 7


# Packed rows with images.

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


def edited(way):
    seen = []
    handle = LLAVA.model.language_model.layers[1].register_forward_hook(
        lambda _m, _a, output: seen.append(((output[..., :4] - 4).abs() < 1e-4).all(-1))
    )
    with torch.no_grad():
        LLAVA(**PACKED, **WAYS[way])
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("choice", PLACED)
@pytest.mark.parametrize("way", WAYS)
def test_a_packed_row_tells_where_its_tokens_stand(way, choice):
    begin = 1 if way == "a first sequence of one token" else len(FIRST)
    lengths = begin, len(PLACES) - begin
    expected = torch.ones(1, len(PLACES), dtype=torch.bool)
    if choice.get("phase") == "decode":
        expected[:] = False
    if "positions" in choice:
        parts = [torch.zeros(length, dtype=torch.bool) for length in lengths]
        for part, place in [(part, place) for part in parts for place in choice["positions"]]:
            if -len(part) <= place < len(part):
                part[place] = True
        expected = torch.cat(parts).unsqueeze(0)
    with patch(**choice).attach(LLAVA) as attached:
        assert torch.equal(edited(way), expected)
    site = attached.report().sites[0]
    assert site.phases["prompt"] == site.tokens == int(expected.sum())


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize("way", WAYS)
def test_a_packed_row_shows_its_streams(way, tokens):
    image = PACKED["input_ids"] == IMAGE_TOKEN
    expected = {"all": image | True, "image": image, "text+special": ~image}[tokens]
    with patch(tokens=tokens).attach(LLAVA) as attached:
        assert torch.equal(edited(way), expected)
    site = attached.report().sites[0]
    assert site.phases["prompt"] == site.tokens == int(expected.sum())
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
@pytest.mark.parametrize("choice", [*PLACED, {"tokens": "image"}])
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


@pytest.mark.parametrize("choice", [*PLACED, {"tokens": "image", "positions": (2, -3)}])
def test_a_packed_row_of_images_is_edited_as_each_sequence_alone(choice):
    def answers(**inputs):
        with torch.no_grad():
            return LLAVA(**inputs, use_cache=False).logits[0]

    own, pixels = patch(**choice), PACKED["pixel_values"]
    with own.attach(LLAVA):
        packed = answers(**PACKED, **WAYS["places"])
        one_by_one = [
            answers(input_ids=torch.tensor([ids]), pixel_values=pixels[i : i + 1])
            for i, ids in enumerate([FIRST, SECOND])
        ]
    torch.testing.assert_close(packed, torch.cat(one_by_one), atol=1e-5, rtol=1e-5)


def test_strengths_of_images_are_those_of_images_in_their_order():
    def projected(**said):
        with patch("projector").attach(LLAVA, **said), record(LLAVA, "projector") as recording:
            LLAVA(**PACKED, **WAYS["places"])
        return recording.captures[0].hidden

    with torch.no_grad():
        told, whole, none = projected(strength=[1.0, 0.0]), projected(), projected(strength=0.0)
    assert torch.equal(told[0], whole[0])
    assert torch.equal(told[1], none[1])


def test_text_places_before_those_of_three_axes_tell_of_packing():
    family = FAMILIES["qwen2_5_vl"]
    host, inputs = family.make(), family.inputs()
    keys = ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")
    places, _ = host.model.get_rope_index(**{key: inputs[key] for key in keys})
    real = inputs["attention_mask"].bool()
    lengths = real.sum(1).tolist()
    text = torch.cat([torch.arange(length) for length in lengths]).expand(1, 1, -1)
    axes = torch.cat([places[:, i, row] for i, row in enumerate(real)], -1).unsqueeze(1)
    row = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    row["input_ids"] = inputs["input_ids"][real].unsqueeze(0)
    row["position_ids"] = torch.cat([text, axes])
    row["mm_token_type_ids"] = inputs["mm_token_type_ids"][real].unsqueeze(0)
    for choice in (*PLACED, {"tokens": "image", "phase": "prompt"}):
        with patch(**choice).attach(host) as attached, torch.no_grad():
            expected = host(**inputs).logits[real]
            count = attached.report().edited_tokens
            packed = host(**row, use_cache=False).logits[0]
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
        assert attached.report().edited_tokens == 2 * count
