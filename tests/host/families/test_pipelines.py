"""Every kind of pipeline of diffusers that is told of in docs/text-to-image.md, on a tiny one."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from conftest import random_dictionary
from hosts_page import expect_section
from tiny_pipelines import LENGTH, PIPELINES, siglip_encoder
from torch import Tensor, nn

from vlm_edit import Patch, Scale, Steer, VlmEditError, find_sites
from vlm_edit.cli import main
from vlm_edit.hooks import attach
from vlm_edit.host import ENTRY_POINTS, Site, find_adapter, unwrap

LIVE = [
    pytest.param(name, site, id=f"{name}-{site}")
    for name, kind in PIPELINES.items()
    for site in kind.live
]
EMBEDDED = ("sd", "sdxl", "sd3", "flux")  # their calls take what encode_prompt gives
NAMED = {"sd": " 1.x", "sd2": " 2.x", "ip_adapter": " with IP-Adapter"}  # of one class
BRANCHES = ("cond", "uncond", "both")
(POINT,) = entry_points(group=ENTRY_POINTS, name="diffusers.DiffusionPipeline")
REGISTERED = POINT.load()


@functools.cache
def pipeline_of(name: str) -> Any:
    """Shared by tests that leave it as it was, which one of them holds."""
    return PIPELINES[name].make()


def led(name: str) -> dict[str, str]:
    return {"negative_prompt": "a dog"} if PIPELINES[name].negative else {}


@functools.cache
def drawn(name: str) -> Tensor:
    return PIPELINES[name].draw(pipeline_of(name), **led(name))


def edit(site: Site, name: str | None = None) -> Patch:
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(name or site.name, random_dictionary(site.width), rules)


def hooks_of(pipeline: Any) -> int:
    models = [m for m in pipeline.components.values() if isinstance(m, nn.Module)]
    parts = [part for model in models for part in model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts)


@pytest.mark.parametrize(("name", "site"), LIVE)
def test_an_edit_of_an_encoder_reaches_what_is_drawn_and_goes_without_a_trace(name, site):
    kind, pipeline = PIPELINES[name], pipeline_of(name)
    before, own = drawn(name), set(vars(pipeline))
    hooks = hooks_of(pipeline)
    with edit(find_sites(pipeline)[site]).attach(pipeline) as attached:
        during = kind.draw(pipeline, **led(name))
    assert torch.isfinite(during).all()
    assert not torch.equal(during, before)
    report = attached.report()
    assert report.edited_tokens > 0
    assert hooks_of(pipeline) == hooks
    assert set(vars(pipeline)) <= own | {"_guidance_scale", "_num_timesteps"}
    assert torch.equal(kind.draw(pipeline, **led(name)), before)


@pytest.mark.parametrize("name", PIPELINES)
def test_an_edit_that_changes_nothing_draws_the_same_bits(name):
    kind, pipeline = PIPELINES[name], pipeline_of(name)
    sites = find_sites(pipeline)
    before = drawn(name)
    for site in kind.live:
        patch = Patch(site, random_dictionary(sites[site].width), Scale(range(20), 1.0))
        for branch in BRANCHES:
            with patch.attach(pipeline, branch=branch):
                assert torch.equal(kind.draw(pipeline, **led(name)), before)


def encoded(name: str, pipeline: Any, prompt: str) -> tuple[Tensor, Tensor | None]:
    """A prompt's embeddings and what is pooled of them, of a pipeline that encodes one prompt."""
    if name == "sd":
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0], None
    if name == "flux":
        return pipeline.encode_prompt(prompt, None, max_sequence_length=LENGTH)[:2]
    texts = (prompt, None) if name == "sdxl" else (prompt, None, None)
    more = {"max_sequence_length": LENGTH} if name == "sd3" else {}
    found = pipeline.encode_prompt(*texts, do_classifier_free_guidance=False, **more)
    return found[0], found[2]


def by_hand(name: str, site: str, branch: str) -> Tensor:
    """Drawn from embeddings, each encoded by itself by an encoder that is patched as a host."""
    pipeline = pipeline_of(name)
    encoder, _, inner = site.partition(".")
    given: dict[str, Any] = {}
    for own, prompt, mark in (("cond", "a cat", ""), ("uncond", "a dog", "negative_")):
        patch = edit(find_sites(pipeline)[site], inner)
        if branch in (own, "both"):
            with torch.no_grad(), patch.attach(getattr(pipeline, encoder)):
                embeds, pooled = encoded(name, pipeline, prompt)
        else:
            with torch.no_grad():
                embeds, pooled = encoded(name, pipeline, prompt)
        given[f"{mark}prompt_embeds"] = embeds
        if pooled is not None:
            given[f"{mark}pooled_prompt_embeds"] = pooled
    return PIPELINES[name].draw(pipeline, None, **given)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("name", "site"), [p for p in LIVE if p.values[0] in EMBEDDED])
def test_a_branch_is_edited_as_if_its_prompt_had_been_encoded_by_itself(name, site, branch):
    kind, pipeline = PIPELINES[name], pipeline_of(name)
    with edit(find_sites(pipeline)[site]).attach(pipeline, branch=branch):
        found = kind.draw(pipeline, **led(name))
    assert torch.equal(found, by_hand(name, site, branch))
    assert not torch.equal(found, drawn(name))


@pytest.mark.parametrize(("name", "site"), LIVE)
def test_each_branch_is_edited_once_and_both_are_the_two_together(name, site):
    kind, pipeline = PIPELINES[name], pipeline_of(name)
    tokens = {}
    for branch in BRANCHES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # images are led away from zeros, which need no encoder
            with edit(find_sites(pipeline)[site]).attach(pipeline, branch=branch) as attached:
                kind.draw(pipeline, **led(name))
        tokens[branch] = attached.report().edited_tokens
    assert tokens["both"] == tokens["cond"] + tokens["uncond"]
    rows = 1 if site.endswith("joint") else 5 if site.startswith("image") else LENGTH
    assert tokens["cond"] == rows
    # Kandinsky's prior draws an embedding of the negative prompt too, led away from itself.
    again = 3 if name.startswith("kandinsky") else 0 if site.startswith("image") else 1
    assert tokens["uncond"] == again * rows


DEAD = [
    pytest.param(name, site, id=f"{name}-{site}")
    for name, site in (("sdxl", "text_encoder.text.2"),)
]


@pytest.mark.parametrize(("name", "site"), DEAD)
def test_a_layer_behind_those_that_are_read_is_refused_and_would_change_nothing(name, site):
    kind, pipeline = PIPELINES[name], pipeline_of(name)
    found = find_sites(pipeline)[site]
    assert [s.name for s in find_sites(pipeline).values() if s.dead] == [site]
    with pytest.raises(VlmEditError, match=r"hidden_states\[-2\] of 4.*text_encoder.text.1 at"):
        edit(found).attach(pipeline)
    handle = attach(pipeline, found, lambda hidden, _: torch.full_like(hidden, 7.0))
    assert torch.equal(kind.draw(pipeline, **led(name)), drawn(name))
    handle.remove()


def test_of_images_stable_diffusion_3_reads_all_but_the_last_layer():
    pipeline = PIPELINES["sd3"].make()
    pipeline.register_modules(image_encoder=siglip_encoder())
    sites = find_sites(pipeline)
    assert "image_encoder.joint" not in sites
    dead = [name for name, site in sites.items() if site.dead]
    assert dead == ["image_encoder.vision.2"]
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = pipeline.encode_image(image, "cpu")
        for name in ("image_encoder.vision.0", "image_encoder.vision.1", *dead):
            site = sites[name]
            handle = attach(pipeline, site, lambda hidden, _: hidden * 2)
            assert torch.equal(pipeline.encode_image(image, "cpu"), before) == bool(site.dead)
            handle.remove()


def test_every_pipeline_that_is_registered_is_one_of_diffusers_and_reads_what_is_said_of_it():
    assert len(REGISTERED) > 20
    for name, adapter in REGISTERED.items():
        assert name.startswith("diffusers.")
        kind = getattr(diffusers, name.removeprefix("diffusers."))
        assert issubclass(kind, diffusers.DiffusionPipeline)
        code = inspect.getsource(inspect.getmodule(kind))
        if any(encoder.read is not None for encoder in adapter.encoders):
            assert "hidden_states[-2]" in code
        if adapter.appended:
            assert "prompt = prompt + negative_prompt" in code


def test_a_pipeline_goes_by_its_own_line_of_the_table_or_by_the_nearest_it_inherits_from():
    class Mine(diffusers.StableDiffusionXLInpaintPipeline):
        pass

    sdxl, others = pipeline_of("sdxl"), pipeline_of("sd")
    assert find_adapter(sdxl).pipeline is REGISTERED["diffusers.StableDiffusionXLPipeline"]
    assert find_adapter(Mine(**sdxl.components)).pipeline is find_adapter(sdxl).pipeline
    assert find_adapter(others).pipeline is REGISTERED["diffusers.DiffusionPipeline"]
    assert f"diffusers.{type(others).__name__}" not in REGISTERED


@pytest.mark.parametrize(("family", "least"), [("StableDiffusionXL", 15), ("StableDiffusion3", 6)])
def test_no_pipeline_of_a_family_that_skips_layers_goes_by_the_rules_of_others(family, least):
    known = [getattr(diffusers, name) for name in dir(diffusers) if name.startswith(family)]
    kinds = [kind for kind in known if isinstance(kind, type)]
    names = {k.__name__ for k in kinds if issubclass(k, diffusers.DiffusionPipeline)}
    assert len(names) >= least
    assert names <= {name.removeprefix("diffusers.") for name in REGISTERED}


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="the page has the paths of transformers 5"
)
def test_the_page_of_hosts_has_every_pipeline_with_its_sites():
    rows = ["| pipeline | encoder | sites | read up to |", "| --- | --- | --- | --- |"]
    for name, kind in PIPELINES.items():
        pipeline = pipeline_of(name)
        title = f"`{type(pipeline).__name__}`{NAMED.get(name, '')}"
        sites = find_sites(pipeline).values()
        for encoder in dict.fromkeys(site.name.split(".")[0] for site in sites):
            own = [s for s in sites if s.name.startswith(f"{encoder}.")]
            named = dict.fromkeys(re.sub(r"\d+$", "{i}", site.name) for site in own)
            dead = "`hidden_states[-2]`" if any(site.dead for site in own) else "the last layer"
            model = f"`{encoder}`, a `{type(getattr(pipeline, encoder)).__name__}`"
            rows.append(f"| {title} | {model} | {', '.join(f'`{n}`' for n in named)} | {dead} |")
            assert set(kind.live) <= {site.name for site in sites}
    expect_section("pipelines", "\n" + "\n".join(rows) + "\n\n")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_sites_of_a_pipeline_are_those_of_its_encoders(name):
    host = unwrap(pipeline_of(name))
    found = find_sites(pipeline_of(name))
    assert set(PIPELINES[name].live) <= set(found)
    for encoder in find_adapter(pipeline_of(name)).pipeline.encoders:
        own = getattr(pipeline_of(name), encoder.name, None)
        if own is None:
            assert not any(site.startswith(f"{encoder.name}.") for site in found)
            continue
        for inner, site in find_sites(own).items():
            mine = found[f"{encoder.name}.{inner}"]
            assert mine.width == site.width
            assert mine.streams == site.streams
            modules = [tap.module for tap in mine.taps]
            assert modules == [tap.module for tap in site.taps]
            assert [host.get_submodule(tap.path) for tap in mine.taps] == modules


def test_the_command_lists_the_sites_of_every_encoder_of_a_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIPELINES["sdxl"].make().save_pretrained(tmp_path)
    assert main(["sites", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Sites of StableDiffusionXLPipeline")
    dead = [line.split()[0] for line in out.splitlines() if "hidden_states[-2]" in line]
    assert dead == ["text_encoder.text.2"]
    assert "text_encoder_2.joint   32     text" in out
    assert main(["check", str(tmp_path), "zoo:pairs", "--dictionary", "neurons"]) == 2
    assert "is a pipeline (StableDiffusionXLPipeline)" in capsys.readouterr().err
