"""Every family in every way its ``generate`` is called: our mask is the host's own.

The oracle is the mask that the host itself gives to ``Tensor.masked_scatter`` when it puts image
features in the place of placeholders.
"""

import functools
import warnings
from dataclasses import dataclass

import pytest
import torch
import transformers
from conftest import random_dictionary
from hosts_page import expect_section
from tiny_hosts import FAMILIES, IMAGE_TOKEN
from torch import Tensor
from transformers import LogitsProcessor

from vlm_edit import Patch, Scale, Steer
from vlm_edit.hooks import attach
from vlm_edit.host import find_sites

NEW = 4
SPEAKING = [name for name, f in FAMILIES.items() if f.generates and f.image_token is not None]


class Emit(LogitsProcessor):
    """Makes the model say the image placeholder at every step."""

    def __call__(self, _ids, scores):
        forced = torch.full_like(scores, -1e4)
        forced[:, IMAGE_TOKEN] = 0
        return forced


@dataclass(frozen=True)
class Mode:
    """A way of running a host.

    Attributes:
        options: For ``generate``; None for a plain forward.
        rows: The samples of the batch.
        embedded: Whether ids are given as embeddings.
    """

    options: dict | None
    rows: tuple[int, ...] = (0, 1)
    embedded: bool = False


MODES = {
    "forward": Mode(None),
    "greedy": Mode({}, rows=(0,)),
    "left-padded batch": Mode({}),
    "sampling": Mode({"do_sample": True}),
    "beam search": Mode({"num_beams": 2}),
    "several return sequences": Mode({"num_return_sequences": 2, "do_sample": True}),
    "static cache": Mode({"cache_implementation": "static", "disable_compile": True}),
    "use_cache=False": Mode({"use_cache": False}),
    "prompt lookup": Mode({"prompt_lookup_num_tokens": 2, "eos_token_id": -1}, rows=(0,)),
    "chunked prefill": Mode({"prefill_chunk_size": 3}, rows=(0,)),
    "inputs_embeds": Mode({}, embedded=True),
    "emitted image token": Mode({"logits_processor": [Emit()]}),
}


def inputs_of(name, mode, host):
    inputs = FAMILIES[name].inputs(mode.rows)
    if mode.embedded:
        embed = host.get_input_embeddings()
        inputs = {k: v for k, v in inputs.items() if k != "input_ids"} | {
            "inputs_embeds": embed(inputs["input_ids"]).detach()
        }
    return inputs


@torch.no_grad()
def run(mode, host, inputs):
    if mode.options is None:
        return host(**inputs).logits
    torch.manual_seed(0)
    inputs = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
    # Copied: ``generate`` adds its own to what it is given.
    options = {k: [*v] if isinstance(v, list) else v for k, v in mode.options.items()}
    quiet = {} if "logits_processor" in mode.options else {"suppress_tokens": [IMAGE_TOKEN, 61]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = host.generate(
            **inputs,
            **{"max_new_tokens": NEW, "do_sample": False} | quiet | options,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack(output.logits, 1)


def mixed_site(host):
    return next(s for s in find_sites(host).values() if s.taps[0].stream == "mixed")


def masks_of(monkeypatch, host, act):
    """For each pass through the first layer that both streams share: our mask, the host's own."""
    scattered, pairs = [], []
    original = Tensor.masked_scatter

    def spy(self, mask, source):
        scattered.append(mask.expand_as(self)[..., 0])
        return original(self, mask, source)

    def keep(hidden, tokens):
        ours = tokens.mask("visual")
        theirs = scattered.pop() if scattered else torch.zeros(hidden.shape[:2], dtype=torch.bool)
        scattered.clear()
        pairs.append((ours, theirs.repeat_interleave(len(hidden) // len(theirs), 0)))
        return hidden

    monkeypatch.setattr(Tensor, "masked_scatter", spy)
    handle = attach(host, mixed_site(host), keep)
    try:
        act()
    finally:
        handle.remove()
        monkeypatch.undo()
    return pairs


# What a host without any patch refuses in its own words, and where it says something else than in
# other modes: positions in three axes need ids, a prompt attended in both directions is not cut.
NOT_OFFERED = {
    ("paligemma", "inputs_embeds"): "its forwarding implemented",
    ("gemma3", "inputs_embeds"): "its forwarding implemented",
    ("blip2", "chunked prefill"): "The size of tensor a",
    ("florence2", "inputs_embeds"): "Image features and image tokens do not match",
}
CHANGED_BY_THE_HOST = {
    ("qwen2_vl", "inputs_embeds"),
    ("qwen2_5_vl", "inputs_embeds"),
    ("qwen3_vl", "inputs_embeds"),
    ("paligemma", "chunked prefill"),
    ("gemma3", "chunked prefill"),
}
COMPARED = ("static cache", "use_cache=False", "prompt lookup", "chunked prefill", "inputs_embeds")


@functools.cache
def host_of(name):
    return FAMILIES[name].make()


@functools.cache
def mask_in(name, mode):
    """What a run tells of the mask, in a word for the page."""
    host, way = host_of(name), MODES[mode]
    inputs = inputs_of(name, way, host)
    try:
        plain = run(way, host, inputs)
    except Exception as error:
        return "not offered" if NOT_OFFERED.get((name, mode), "?") in str(error) else repr(error)
    said = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        pairs = masks_of(monkeypatch, host, lambda: said.append(run(way, host, inputs)))
    if not torch.equal(plain, said[0]):
        return "what the host says has changed"
    if not pairs[0][1].any():
        return "the host scattered nothing: the oracle saw no image"
    return "same" if all(torch.equal(*pair) for pair in pairs) else "another mask"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SPEAKING)
def test_the_mask_is_the_hosts_own(name, mode):
    assert mask_in(name, mode) == ("not offered" if (name, mode) in NOT_OFFERED else "same")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("mode", ["forward", "left-padded batch", "beam search", "use_cache=False"])
def test_places_of_videos_are_the_hosts_own(name, mode):
    host, way = host_of(name), MODES[mode]
    inputs = inputs_of(name, way, host)
    ids = inputs["input_ids"]
    videos = {
        "pixel_values_videos": inputs.pop("pixel_values"),
        "video_grid_thw": inputs.pop("image_grid_thw"),
        "mm_token_type_ids": 2 * inputs["mm_token_type_ids"],
    }
    inputs |= videos | {"input_ids": torch.where(ids == IMAGE_TOKEN, 61, ids)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        pairs = masks_of(monkeypatch, host, lambda: run(way, host, inputs))
    assert pairs[0][1].any()
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_and_videos_of_one_row_are_told_apart(name):
    host, inputs = host_of(name), FAMILIES[name].inputs()
    ids, seen = inputs["input_ids"].clone(), {}
    ids[1] = torch.where(ids[1] == IMAGE_TOKEN, 61, ids[1])  # a video in the second row
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    inputs |= {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long() + 2 * (ids == 61).long(),
        "pixel_values": pixels[: len(pixels) // 2],
        "pixel_values_videos": pixels[len(pixels) // 2 :],
        "image_grid_thw": grid[:1],
        "video_grid_thw": grid[1:],
    }
    real = inputs["attention_mask"].bool()
    expected = {"image": ids == IMAGE_TOKEN, "video": ids == 61}
    expected |= {"visual": expected["image"] | expected["video"]}
    expected |= {"text+special": ~expected["visual"] & real}
    for tokens, mask in expected.items():
        patch = Patch("language.2", random_dictionary(32), Scale(range(20), -2.0), tokens=tokens)
        with patch.attach(host) as attached:
            seen[tokens] = run(Mode(None), host, inputs)
        moved = (seen[tokens] != run(Mode(None), host, inputs)).any(-1)
        assert torch.equal(moved & real, mask & real), tokens
        counts = attached.report().sites[0].streams
        apart = {name: int((expected[name] & mask).sum()) for name in ("image", "video")}
        assert {name: counts[name] for name in apart} == apart


# An edit is the same however a generation is computed, and acts where it says.

EDITS = {
    "image tokens": {"tokens": "image"},
    "text tokens": {"tokens": "text+special"},
    "prompt": {"phase": "prompt"},
    "decode": {"phase": "decode"},
    "text of the prompt and step 1": {"tokens": "text+special", "steps": (1, 2)},
    "positions": {"positions": (0, 2, -1)},
}


def edit(host, choice):
    site = mixed_site(host)
    if host.config.is_encoder_decoder and ("steps" in choice or choice.get("phase") == "decode"):
        site = find_sites(host)["decoder.1"]  # the encoder never sees what is generated
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(site.name, random_dictionary(site.width), rules, **choice)


@functools.cache
def greedy(name, rows, choice):
    """Logits of every step with an edit, computed with a cache; and without any."""
    host, mode = host_of(name), Mode({}, rows)
    inputs = inputs_of(name, mode, host)
    if choice is None:
        return run(mode, host, inputs)
    with edit(host, EDITS[choice]).attach(host):
        return run(mode, host, inputs)


@functools.cache
def edit_in(name, mode, choice):
    """Whether an edit's logits are those of greedy decoding with a cache, in a word."""
    host, way = host_of(name), MODES[mode]
    inputs = inputs_of(name, way, host)
    plain, expected = greedy(name, way.rows, None), greedy(name, way.rows, choice)
    if not close(run(way, host, inputs), plain):
        return "host differs"
    with edit(host, EDITS[choice]).attach(host) as attached:
        edited = run(way, host, inputs)
    if not attached.report().edited_tokens or close(edited, plain):
        return "no effect"
    return "same" if close(edited, expected) else "another edit"


def close(left, right):
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4)


OFFERED = [(n, m) for n in SPEAKING for m in COMPARED if (n, m) not in NOT_OFFERED]


@pytest.mark.parametrize("choice", EDITS)
@pytest.mark.parametrize(("name", "mode"), OFFERED)
def test_an_edit_of_a_generation_is_the_same_however_it_is_computed(name, mode, choice):
    expected = "host differs" if (name, mode) in CHANGED_BY_THE_HOST else "same"
    assert edit_in(name, mode, choice) == expected


@pytest.mark.parametrize("choice", EDITS)
@pytest.mark.parametrize("name", SPEAKING)
def test_an_edit_of_a_batch_is_that_of_its_rows_unpadded(name, choice):
    batch = greedy(name, (0, 1), choice)
    alone = torch.cat([greedy(name, (row,), choice) for row in (0, 1)])
    torch.testing.assert_close(batch, alone, rtol=1e-3, atol=1e-4)


def table(columns, cell):
    lines = [f"| family | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]
    for name in SPEAKING:
        lines.append(f"| `{name}` | {' | '.join(cell(name, column) for column in columns)} |")
    return "\n".join(lines) + "\n"


def edits_in(name, mode):
    if (name, mode) in NOT_OFFERED:
        return "not offered"
    return ", ".join(sorted({edit_in(name, mode, choice) for choice in EDITS}))


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="the page tells of transformers 5"
)
def test_the_page_has_the_modes_that_were_run():
    text = (
        "\nThe mask of image tokens against the one the host itself scatters image features with, "
        "at every\nforward. `not offered`: the host refuses to run so, with or without a patch.\n\n"
        f"{table(MODES, mask_in)}"
        "\nGenerations with an edit against greedy decoding with a cache: the same logits for "
        f"edits of\n{', '.join(EDITS)}. `host differs`: without any\npatch the host's own logits "
        "are others in this mode.\n\n"
        f"{table(COMPARED, edits_in)}\n"
    )
    expect_section("modes", text)
