"""``attach(via="nnsight")`` beside hooks: the same bits and the same report, however a host is run.

nnsight changes torch for its whole process, so only a fixture imports it, never collection.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary
from engines import (
    LLAVA,
    MODES,
    NEW,
    Inputs,
    Run,
    bits,
    compare,
    embedded,
    generating,
    patch_at,
    row,
    same,
)
from tiny_hosts import FAMILIES
from torch import Tensor, nn

from vlm_edit import Ablate, Adapter, Patch, record
from vlm_edit.hooks import tracing
from vlm_edit.patches import attach_rows

CLIP = make_clip()


@pytest.fixture(scope="module", autouse=True)
def nnsight() -> Any:
    return pytest.importorskip("nnsight")


# However the host is run


@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_a_host_gives_the_bits_and_the_report_of_hooks(
    llava_inputs, mode, tokens
) -> None:
    report = compare(LLAVA, patch_at(tokens=tokens), MODES[mode](llava_inputs))
    assert report.edited_tokens
    if mode != "forward" and tokens != "image":
        assert report.sites[0].phases["decode"]


CHOICES: dict[str, dict[str, Any]] = {
    "prompt": {"phase": "prompt"},
    "decode": {"phase": "decode"},
    "steps": {"phase": "decode", "steps": (1, 3)},
    "positions": {"phase": "prompt", "positions": (0, -1)},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("mode", ["left-padded batch", "static cache", "beams", "no cache"])
def test_phases_steps_and_positions_are_chosen_as_by_hooks(llava_inputs, mode, choice) -> None:
    patch = patch_at(tokens="all", **CHOICES[choice])
    report = compare(LLAVA, patch, MODES[mode](llava_inputs)).sites[0]
    assert bool(report.phases["decode"]) == (choice in ("decode", "steps"))
    assert bool(report.phases["prompt"]) == (choice in ("prompt", "positions"))
    if choice == "steps":
        assert report.steps == (1, 2)


@pytest.mark.parametrize(("site", "width"), [("vision.0", 24), ("vision.1", 24), ("projector", 32)])
@pytest.mark.parametrize("mode", ["forward", "left-padded batch", "beams"])
def test_the_vision_side_is_edited_as_by_hooks(llava_inputs, mode, site, width) -> None:
    compare(LLAVA, patch_at(site, width=width), MODES[mode](llava_inputs))


@pytest.mark.parametrize("mode", ["forward", "left-padded batch", "beams"])
def test_rows_have_their_own_strength_and_masks_as_under_hooks(llava_inputs, mode) -> None:
    run = MODES[mode](llava_inputs)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    patch = patch_at(tokens="all")
    compare(LLAVA, patch, run, strength=[0.0, 0.5])
    compare(LLAVA, patch, run, mask=mask)
    image = llava_inputs["input_ids"] == IMAGE_TOKEN
    compare(LLAVA, patch_at(tokens="image"), run, image_mask=image.roll(1, 1))


def test_a_patch_of_several_sites_acts_whole(llava_inputs) -> None:
    patch = patch_at("vision.1", width=24) + patch_at() + patch_at("language.1", "text+special")
    assert len(compare(LLAVA, patch, MODES["left-padded batch"](llava_inputs)).sites) == 3


CLIP_CALLS: dict[str, Callable[[Inputs], Run]] = {
    "forward": lambda inputs: lambda host: host(**inputs).logits_per_image,
    "positional": lambda i: (
        lambda host: host(i["input_ids"], i["pixel_values"], i["attention_mask"]).logits_per_image
    ),
    "text features": lambda i: (
        lambda host: (
            host.get_text_features(
                input_ids=i["input_ids"], attention_mask=i["attention_mask"]
            ).pooler_output
        )
    ),
    "image features": lambda i: (
        lambda host: host.get_image_features(pixel_values=i["pixel_values"]).pooler_output
    ),
    "features in another order": lambda i: (
        lambda host: [
            host.get_text_features(input_ids=i["input_ids"]).pooler_output,
            host.get_image_features(pixel_values=i["pixel_values"]).pooler_output,
            host.get_text_features(input_ids=i["input_ids"]).pooler_output,
        ]
    ),
}


@pytest.mark.parametrize("call", CLIP_CALLS)
@pytest.mark.parametrize(("site", "width"), [("joint", 12), ("text.1", 16), ("vision.1", 24)])
def test_every_call_of_a_contrastive_host_is_covered(clip_inputs, site, width, call) -> None:
    run = CLIP_CALLS[call](clip_inputs)
    passes = not (
        (site == "text.1" and call == "image features")
        or (site == "vision.1" and call == "text features")
    )
    compare(CLIP, patch_at(site, "all", width), run, acts=passes)


@pytest.mark.parametrize("module", ["model", "model.language_model"])
def test_a_call_of_a_part_of_the_host_is_covered(llava_inputs, module) -> None:
    inputs = row(llava_inputs)
    given = inputs if module == "model" else {"inputs_embeds": embedded(inputs)["inputs_embeds"]}
    compare(
        LLAVA,
        patch_at(tokens="all"),
        lambda host: host.get_submodule(module)(**given).last_hidden_state,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "blip2", "blip2_t5", "florence2", "mllama"])
def test_other_families_are_edited_as_by_hooks(family) -> None:
    known = FAMILIES[family]
    host, inputs = known.make(), known.inputs()
    for site in find_sites_of(known):
        width, streams = known.sites[site]
        tokens = "text+special" if streams[-1] == "text" else streams[-1]
        patch = patch_at(site, tokens, width)
        compare(host, patch, lambda h: h(**inputs).logits)
        compare(host, patch, generating(inputs, output_logits=True, max_new_tokens=3))


def find_sites_of(family: Any) -> list[str]:
    firsts = {name.split(".")[0]: name for name in family.sites if name not in family.dead}
    return list(firsts.values())


class Map(nn.Module):
    """An image [B, D, H, W] whose width is axis 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def embed(self, x: Tensor) -> Tensor:
        return self(x).mean((-1, -2))


MAP = Adapter.of({"map": ("first", "image", 4, 1), "joint": ("embed()", "image", 2)})


def test_a_site_of_another_axis_is_edited_as_by_hooks() -> None:
    x = torch.randn(2, 3, 5, 5)
    compare(Map(), patch_at("map", width=4), lambda host: host(x), MAP)


# Through nnsight, and with traces of one's own


def test_traces_of_any_model_around_the_host_run_with_the_patch(nnsight, llava_inputs) -> None:
    patch = patch_at()
    options = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    earlier = nnsight.NNsight(LLAVA)
    with patch.attach(LLAVA) as hooked, torch.no_grad():
        logits = LLAVA(**llava_inputs).logits
        said = LLAVA.generate(**llava_inputs, **options)
        report = hooked.report()
    with warnings.catch_warnings(), patch.attach(earlier, via="nnsight") as attached:
        warnings.simplefilter("error")
        later = nnsight.NNsight(LLAVA)
        for model in (earlier, later):
            with torch.no_grad(), model.trace(**llava_inputs):
                found = model.output.logits.save()
            assert torch.equal(found, logits)
            with torch.no_grad(), model.trace(**llava_inputs, fn="generate", **options) as tracer:
                tokens = tracer.result.save()
            assert torch.equal(tokens, said)
            assert torch.equal(
                model.interleave(lambda: LLAVA.generate(**llava_inputs, **options)), said
            )
    # Two traces, two generations each, where hooks saw one of both.
    whole = attached.report().edited_tokens
    single = int((llava_inputs["input_ids"] == IMAGE_TOKEN).sum())
    assert report.edited_tokens == 2 * single
    assert whole == 6 * single


def test_a_trace_sees_at_the_site_what_was_edited_and_can_change_it(nnsight, llava_inputs) -> None:
    model = nnsight.NNsight(LLAVA)
    with torch.no_grad(), record(LLAVA, "language.1") as plain:
        before = LLAVA(**llava_inputs).logits
    hidden = plain.captures[0].hidden
    patch = patch_at()
    with patch.attach(LLAVA), record(LLAVA, "language.1") as edited, torch.no_grad():
        LLAVA(**llava_inputs)
    with patch.attach(model, via="nnsight"), torch.no_grad(), model.trace(**llava_inputs):
        envoy = tracing.at(model, "language.1")
        seen = envoy.output.save()
        envoy.output = hidden
        logits = model.output.logits.save()
    assert torch.equal(seen, edited.captures[0].hidden)
    assert not torch.equal(seen, hidden)
    assert torch.equal(logits, before)


def test_a_trace_reads_every_step_beside_the_patch(nnsight, llava_inputs) -> None:
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    patch = patch_at(tokens="all")
    with patch.attach(LLAVA), record(LLAVA, "language.1") as recording, torch.no_grad():
        LLAVA.generate(**llava_inputs, **options)
    model = nnsight.NNsight(LLAVA)
    with patch.attach(LLAVA, via="nnsight"), torch.no_grad():  # noqa: SIM117 (a trace's own)
        with model.trace(**llava_inputs, fn="generate", **options) as tracer:
            seen = [].save()
            for _ in tracer.iter[:3]:
                seen.append(tracing.at(model, "language.1").output)
    assert same(seen, [capture.hidden for capture in recording.captures])


def test_a_trace_of_a_part_of_the_model_runs_with_the_patch(nnsight, llava_inputs) -> None:
    embeds = embedded(row(llava_inputs))["inputs_embeds"]
    model = nnsight.NNsight(LLAVA)
    patch = patch_at(tokens="all")
    with patch.attach(LLAVA), torch.no_grad():
        expected = LLAVA.model.language_model(inputs_embeds=embeds).last_hidden_state
    with patch.attach(model, via="nnsight"), torch.no_grad():
        part = model.model.language_model
        with part.trace(inputs_embeds=embeds):
            found = part.output.last_hidden_state.save()
    assert torch.equal(found, expected)


def test_a_trace_that_stops_at_the_site_keeps_what_it_read(nnsight, llava_inputs) -> None:
    model = nnsight.NNsight(LLAVA)
    with patch_at().attach(LLAVA, via="nnsight") as attached, torch.no_grad():
        with model.trace(**llava_inputs) as tracer:
            seen = tracing.at(model, "language.1").output.save()
            tracer.stop()
        assert seen.shape == (2, 9, 32)
        assert attached.report().sites[0].calls == 1
        with patch_at("language.2").attach(LLAVA) as after:
            LLAVA(**llava_inputs)
        assert after.report().sites[0].calls == 1


def test_a_model_of_nnsight_for_transformers_is_taken_too(nnsight, llava_inputs) -> None:
    model = nnsight.NNsight(LLAVA)
    for via in ("hooks", "nnsight"):
        with patch_at().attach(model, via=via) as attached, torch.no_grad():
            LLAVA(**llava_inputs)
        assert attached.report().edited_tokens == 8


@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_inputs_by_position_of_a_wrapped_host_are_understood(nnsight, llava_inputs, via) -> None:
    names = ("input_ids", "pixel_values", "attention_mask")
    host = make_llava()
    with patch_at().attach(host), torch.no_grad():
        expected = host(**llava_inputs).logits
    model = nnsight.NNsight(host)
    with patch_at().attach(model, via=via), torch.no_grad():
        found = host(*[llava_inputs[name] for name in names])
    assert torch.equal(found.logits, expected)


# Several patches


@pytest.mark.parametrize("engines", [("hooks", "nnsight"), ("nnsight", "hooks"), ("nnsight",) * 2])
def test_two_patches_act_both_whatever_attaches_them(llava_inputs, engines) -> None:
    patches = patch_at(), patch_at("language.2", "text+special")
    run = MODES["left-padded batch"](llava_inputs)
    before = bits(LLAVA, run)
    with patches[0].attach(LLAVA), patches[1].attach(LLAVA):
        expected = bits(LLAVA, run)
    with patches[0].attach(LLAVA, via=engines[0]) as first:
        alone = bits(LLAVA, run)
        with patches[1].attach(LLAVA, via=engines[1]):
            assert same(bits(LLAVA, run), expected)
        assert same(bits(LLAVA, run), alone)
    assert first.report().edited_tokens == 3 * 8
    assert same(bits(LLAVA, run), before)


def test_rows_have_their_own_patches_as_under_hooks(llava_inputs) -> None:
    run, patches = (
        MODES["beams"](llava_inputs),
        (patch_at(), patch_at("language.2", "text+special")),
    )
    found = []
    for via in ("hooks", "nnsight"):
        with attach_rows(LLAVA, patches, via=via) as attached:
            found.append((bits(LLAVA, run), attached.report()))
    assert same(found[0][0], found[1][0])
    assert not same(found[0][0], bits(LLAVA, run))
    assert found[0][1] == found[1][1]


def test_two_patches_of_one_site_act_in_the_order_they_came(clip_inputs) -> None:
    one, other = patch_at("joint", "all", 12), Patch("joint", random_dictionary(12), Ablate([3]))
    run = CLIP_CALLS["forward"](clip_inputs)
    found = {}
    for via in ("hooks", "nnsight"):
        for name, (a, b) in {"ab": (one, other), "ba": (other, one)}.items():
            with a.attach(CLIP, via=via), b.attach(CLIP, via=via):
                found[via, name] = bits(CLIP, run)
    assert same(found["hooks", "ab"], found["nnsight", "ab"])
    assert same(found["hooks", "ba"], found["nnsight", "ba"])
    assert not same(found["hooks", "ab"], found["hooks", "ba"])


def test_a_site_inside_another_is_edited_too(clip_inputs) -> None:
    adapter = Adapter.of(
        {
            "whole": ("text_projection", "text", 12),
            "tower": ("text_model.encoder.layers.0", "text", 16),
            "inner": ("text_model.encoder.layers.0.mlp", "text", 16),
        }
    )
    patch = patch_at("tower", "all", 16) + patch_at("inner", "all", 16)
    run = CLIP_CALLS["forward"](clip_inputs)
    assert compare(CLIP, patch, run, adapter).edited_tokens > 0
