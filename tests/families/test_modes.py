"""Every family in every way its ``generate`` is called: our mask is the host's own.

The oracle is the mask that the host itself gives to ``Tensor.masked_scatter`` when it puts image
features in the place of placeholders.
"""

import functools
import warnings
from dataclasses import dataclass

import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES, IMAGE_TOKEN
from torch import Tensor
from transformers import LogitsProcessor

from vlm_edit import Patch, Scale, Steer
from vlm_edit.hooks import attach
from vlm_edit.sites import find_sites

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
    "prompt lookup": Mode({"prompt_lookup_num_tokens": 2}, rows=(0,)),
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
    quiet = {} if "logits_processor" in mode.options else {"suppress_tokens": [IMAGE_TOKEN, 61]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = host.generate(
            **inputs,
            **{"max_new_tokens": NEW, "do_sample": False} | quiet | mode.options,
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

    def keep(hidden, where):
        ours = where.image_at(hidden)
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


def refusal(name, mode):
    """Why the host itself does not run so; None if it does."""
    host = host_of(name)
    try:
        run(mode, host, inputs_of(name, mode, host))
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return None


NOT_OFFERED = {
    ("paligemma", "inputs_embeds"): "its forwarding implemented",
    ("gemma3", "inputs_embeds"): "its forwarding implemented",
    ("blip2", "chunked prefill"): "The size of tensor a",
    ("florence2", "inputs_embeds"): "Image features and image tokens do not match",
}
# Hosts that say something else in this mode, without any patch: positions in three axes need ids,
# and a prompt that attends in both directions cannot be cut.
CHANGED_BY_THE_HOST = {
    ("qwen2_vl", "inputs_embeds"),
    ("qwen2_5_vl", "inputs_embeds"),
    ("qwen3_vl", "inputs_embeds"),
    ("paligemma", "chunked prefill"),
    ("gemma3", "chunked prefill"),
}


@functools.cache
def host_of(name):
    return FAMILIES[name].make()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SPEAKING)
def test_the_mask_is_the_hosts_own(monkeypatch, name, mode):
    why = refusal(name, MODES[mode])
    if (name, mode) in NOT_OFFERED:
        assert NOT_OFFERED[name, mode] in why
        return
    assert why is None
    host, way = host_of(name), MODES[mode]
    inputs = inputs_of(name, way, host)
    plain, said = run(way, host, inputs), []
    pairs = masks_of(monkeypatch, host, lambda: said.append(run(way, host, inputs)))
    assert torch.equal(plain, *said)
    assert pairs[0][1].any(), "the host scattered nothing: the oracle saw no image"
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)


# An edit is the same however a generation is computed, and acts where it says.

EDITS = {
    "image tokens": {"tokens": "image"},
    "text tokens": {"tokens": "text"},
    "prompt": {"phase": "prompt"},
    "decode": {"phase": "decode"},
    "text of the prompt and step 1": {"tokens": "text", "steps": (1, 2)},
    "positions": {"positions": (0, 2, -1)},
}


def edit(host, choice):
    site = mixed_site(host)
    if host.config.is_encoder_decoder and ("steps" in choice or choice.get("phase") == "decode"):
        site = find_sites(host)["decoder.1"]  # the encoder never sees what is generated
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch.at(site.name, random_dictionary(site.width), rules, **choice)


@functools.cache
def greedy(name, rows, choice):
    """Logits of every step with an edit, computed with a cache; and without any."""
    host, mode = host_of(name), Mode({}, rows)
    inputs = inputs_of(name, mode, host)
    if choice is None:
        return run(mode, host, inputs)
    with edit(host, EDITS[choice]).attach(host):
        return run(mode, host, inputs)


@pytest.mark.parametrize("choice", EDITS)
@pytest.mark.parametrize(
    "mode",
    ["static cache", "use_cache=False", "prompt lookup", "chunked prefill", "inputs_embeds"],
)
@pytest.mark.parametrize("name", SPEAKING)
def test_an_edit_of_a_generation_is_the_same_however_it_is_computed(name, mode, choice):
    if (name, mode) in NOT_OFFERED:
        pytest.skip(NOT_OFFERED[name, mode])
    host, way = host_of(name), MODES[mode]
    inputs = inputs_of(name, way, host)
    plain, expected = greedy(name, way.rows, None), greedy(name, way.rows, choice)
    without = run(way, host, inputs)
    if (name, mode) in CHANGED_BY_THE_HOST:
        assert not torch.allclose(without, plain, rtol=1e-2, atol=1e-2)
        return
    torch.testing.assert_close(without, plain, rtol=1e-3, atol=1e-4)
    with edit(host, EDITS[choice]).attach(host) as attached:
        torch.testing.assert_close(run(way, host, inputs), expected, rtol=1e-3, atol=1e-4)
    assert attached.report().edited_tokens
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize("choice", EDITS)
@pytest.mark.parametrize("name", SPEAKING)
def test_an_edit_of_a_batch_is_that_of_its_rows_unpadded(name, choice):
    batch = greedy(name, (0, 1), choice)
    alone = torch.cat([greedy(name, (row,), choice) for row in (0, 1)])
    torch.testing.assert_close(batch, alone, rtol=1e-3, atol=1e-4)
