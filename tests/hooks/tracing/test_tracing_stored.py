"""Stored edits of nnsight: what they know of the host's calls, and sites by name in traces."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN
from torch import nn

from vlm_edit import Clamp, Patch, VlmEditError, record, zoo
from vlm_edit.dictionaries import Transcoder
from vlm_edit.hooks import tracing


@pytest.fixture(scope="module")
def nnsight() -> Any:
    return pytest.importorskip("nnsight")


# What stored edits know of the calls


CHOICES: dict[str, dict[str, Any]] = {
    "prompt": {"phase": "prompt"},
    "decode": {"phase": "decode"},
    "steps": {"phase": "decode", "steps": (1, 3)},
    "positions": {"phase": "prompt", "positions": (0, -1)},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_phases_steps_and_positions_of_a_stored_patch_are_those_of_hooks(
    nnsight, llava, llava_inputs, dictionary, choice, cache
) -> None:
    patch = Patch("language.1", dictionary(32), Clamp([1, 2], value=6.0), **CHOICES[choice])
    options = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    if cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    logits = {"return_dict_in_generate": True, "output_logits": True}
    before = llava.generate(**llava_inputs, **options, **logits)
    with patch.attach(llava):
        expected = llava.generate(**llava_inputs, **options, **logits)
    model = tracing.edited(nnsight.NNsight(llava), patch)
    found = model.interleave(lambda: llava.generate(**llava_inputs, **options, **logits))
    with torch.no_grad(), model.trace(**llava_inputs, fn="generate", **options) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))
    assert not torch.equal(torch.stack(found.logits), torch.stack(before.logits))
    assert torch.equal(tokens, expected.sequences)


def test_an_edited_model_that_is_dropped_leaves_nothing_on_the_host(
    nnsight, llava, dictionary
) -> None:
    patch = Patch("language.1", dictionary(32), Clamp([1, 2], value=6.0))
    hooks = len(llava._forward_pre_hooks)
    model = tracing.edited(nnsight.NNsight(llava), patch)
    assert len(llava._forward_pre_hooks) == hooks + 1
    assert "generate" in llava.__dict__
    del model
    gc.collect()
    assert len(llava._forward_pre_hooks) == hooks
    assert "generate" not in llava.__dict__


# The host's own calls under stored edits


@pytest.mark.parametrize("site", ["projector", "language.1"])
def test_the_hosts_own_calls_are_edited_while_interleaved_and_plain_afterwards(
    nnsight, llava, llava_inputs, dictionary, site
) -> None:
    patch = Patch(site, dictionary(32), Clamp([1, 2, 3, 4], value=6.0))
    options = {"max_new_tokens": 6, "do_sample": False}
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: llava(**llava_inputs).logits,
        "generate": lambda: llava.generate(**llava_inputs, **options),
    }
    before = {name: call() for name, call in calls.items()}
    with patch.attach(llava):
        expected = {name: call() for name, call in calls.items()}
    model = tracing.edited(nnsight.NNsight(llava), patch)
    with tracing.interleaved(model) as same:
        assert same is model
        for name, call in calls.items():
            assert torch.equal(call(), expected[name])
            assert not torch.equal(expected[name], before[name])
        with model.trace(**llava_inputs):
            logits = model.output.logits.save()
        assert torch.equal(logits, expected["forward"])
        with model.trace(**llava_inputs, fn="generate", **options) as tracer:
            seen = [].save()
            for _ in tracer.iter[:3]:
                seen.append(tracing.at(model, "language.1").output.shape[1])
        assert seen == [9, 1, 1]
    for name, call in calls.items():
        assert torch.equal(call(), before[name])


def test_a_model_that_prepares_its_inputs_is_interleaved_with_those_of_the_host(
    nnsight, llava, llava_inputs, dictionary
) -> None:
    tokenizer = zoo.load_host()[1].tokenizer
    model = nnsight.TransformersModel(
        llava, tokenizer=tokenizer, processor=tokenizer, task="image-text-to-text"
    )
    patch = Patch("language.1", dictionary(32), Clamp([1, 2, 3, 4], value=6.0))
    options = {"max_new_tokens": 6, "do_sample": False}
    before = llava.generate(**llava_inputs, **options)
    with patch.attach(llava):
        expected = llava.generate(**llava_inputs, **options)
    assert not torch.equal(expected, before)
    with patch.attach(model, via="nnsight"), torch.no_grad():
        assert torch.equal(llava.generate(**llava_inputs, **options), expected)
        with model.generate(**llava_inputs, **options) as tracer:
            traced = tracer.result.save()
    assert torch.equal(traced, expected)
    edited = tracing.edited(model, patch)
    with torch.no_grad(), edited.generate(**llava_inputs, **options) as tracer:
        stored = tracer.result.save()
    assert torch.equal(stored, expected)
    with tracing.interleaved(edited):
        assert torch.equal(llava.generate(**llava_inputs, **options), expected)


def test_a_users_own_stored_edit_acts_on_features_while_interleaved(
    nnsight, clip, clip_inputs
) -> None:
    model = nnsight.NNsight(clip)
    with model.edit() as (tracer, edited):
        edited.text_projection.output = edited.text_projection.output * 2
    given = {name: clip_inputs[name] for name in ("input_ids", "attention_mask")}
    before = clip.get_text_features(**given).pooler_output
    with tracing.interleaved(edited):
        assert torch.equal(clip.get_text_features(**given).pooler_output, before * 2)
    assert torch.equal(clip.get_text_features(**given).pooler_output, before)


def test_an_exception_while_interleaved_leaves_the_host_as_it_was(
    nnsight, llava, llava_inputs, dictionary
) -> None:
    patch = Patch("language.1", dictionary(32), Clamp([1, 2], value=6.0))
    before = llava(**llava_inputs).logits
    with patch.attach(llava):
        expected = llava(**llava_inputs).logits
    model = tracing.edited(nnsight.NNsight(llava), patch)
    with pytest.raises(ValueError, match=r"[Ii]mage"), tracing.interleaved(model):
        llava(**llava_inputs | {"pixel_values": llava_inputs["pixel_values"][:1]})
    assert torch.equal(llava(**llava_inputs).logits, before)
    with tracing.interleaved(model):
        assert torch.equal(llava(**llava_inputs).logits, expected)


# Sites by name


def test_sites_are_found_by_name_in_a_model_that_renames_its_modules(
    nnsight, llava, llava_inputs
) -> None:
    model = nnsight.NNsight(llava, rename={"model.language_model.layers": "layers"})
    assert tracing.at(model, "language.1") is model.layers[1]
    with torch.no_grad(), model.trace(**llava_inputs):
        hidden = tracing.at(model, "language.1").output.save()
    with record(llava, "language.1") as recording, torch.no_grad():
        llava(**llava_inputs)
    assert torch.equal(hidden, recording.captures[0].hidden)


def test_a_joint_site_needs_its_stream(nnsight, clip) -> None:
    model = nnsight.NNsight(clip)
    assert tracing.at(model, "joint", "text") is model.text_projection
    assert tracing.at(model, "joint", "image") is model.visual_projection
    with pytest.raises(VlmEditError, match="for stream 'image' or 'text', and stream is None"):
        tracing.at(model, "joint")
    with pytest.raises(VlmEditError, match="stream is 'mixed'"):
        tracing.at(model, "joint", "mixed")
    with pytest.raises(VlmEditError, match="no site 'middle'"):
        tracing.at(model, "middle")
    with pytest.raises(VlmEditError, match=r"tracing\.at takes an nnsight model, got a CLIPModel"):
        tracing.at(clip, "joint")


def test_a_module_that_came_after_nnsight_is_named(nnsight, clip) -> None:
    model = nnsight.NNsight(clip)
    clip.text_projection = nn.Linear(16, 12)
    with pytest.raises(VlmEditError, match="no module at 'text_projection'"):
        tracing.at(model, "joint", "text")


def test_an_edit_that_reads_another_place_is_not_stored(nnsight, llava, dictionary) -> None:
    transcoder = Transcoder(dictionary(32), "mlp_in", "mlp_out")
    patch = Patch("language.1.mlp_out", transcoder, Clamp([1], value=6.0))
    with pytest.raises(VlmEditError, match="reads other sites than its own, .* attach the patch"):
        tracing.edited(nnsight.NNsight(llava), patch)
