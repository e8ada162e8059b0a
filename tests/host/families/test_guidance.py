"""Whom an encoder of a pipeline is called for, in every way that prompts are given."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from conftest import random_dictionary
from tiny_pipelines import LENGTH, PIPELINES, WIDTH, clip_tokenizer, picture, text_encoder
from torch import Tensor, nn

from vlm_edit import Host, Patch, Scale, Steer, VlmEditError, find_sites, load_patch, record, zoo
from vlm_edit.host import (
    PipelineAdapter,
    PipelineEncoder,
    PipelineHost,
    find_adapter,
    join_adapters,
    unwrap,
)
from vlm_edit.patches import attach_rows

SITE = "text_encoder.text.1"
RULES = (Scale(range(20), -2.0), Steer([25], 3.0))


def edit(site: str = SITE, width: int = WIDTH) -> Patch:
    return Patch(site, random_dictionary(width), RULES)


@functools.cache
def pipeline_of(name: str) -> Any:
    return PIPELINES[name].make()


def draw(name: str, prompt: Any = "a cat", **more: Any) -> Tensor:
    return PIPELINES[name].draw(pipeline_of(name), prompt, **more)


def texts_seen(name: str, site: str, branch: str, prompt: Any, **more: Any) -> list[str]:
    """The texts of the rows that a patch changed at a site, in their order."""
    pipeline = pipeline_of(name)
    encoder = site.partition(".")[0]
    tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
    ids: list[Tensor] = []
    watch = getattr(pipeline, encoder).register_forward_pre_hook(
        lambda _, args: ids.append(args[0])
    )
    width = find_sites(pipeline)[site].width
    try:
        with record(pipeline, site) as plain:
            draw(name, prompt, **more)
        ids.clear()
        with edit(site, width).attach(pipeline, branch=branch), record(pipeline, site) as patched:
            draw(name, prompt, **more)
    finally:
        watch.remove()
    assert len(ids) == len(plain.captures) == len(patched.captures)
    texts = []
    for rows, before, after in zip(ids, plain.captures, patched.captures, strict=True):
        for row, a, b in zip(rows, before.hidden, after.hidden, strict=True):
            if not torch.equal(a, b):
                texts.append(tokenizer.decode(row, skip_special_tokens=True).strip())
    return texts


ONE, TWO = "a cat", ["a cat", "a red dog"]
SD = ("sd", SITE)
SDXL = ("sdxl", "text_encoder_2.text.1")
SD3 = ("sd3", "text_encoder_3.encoder.1")
FLUX = ("flux", "text_encoder_2.encoder.1")
PRIOR = ("stable_unclip", "prior_text_encoder.text.1")
KANDINSKY = ("kandinsky_prior", "text_encoder.text.1")


@pytest.mark.parametrize(
    ("where", "prompt", "more", "cond", "uncond"),
    [
        (SD, ONE, {"negative_prompt": "a dog"}, ["a cat"], ["a dog"]),
        (SD, ONE, {}, ["a cat"], [""]),
        (SD, ONE, {"guidance_scale": 1.0}, ["a cat"], []),
        (SD, "", {}, [""], [""]),
        (SD, "a dog", {"negative_prompt": "a dog"}, ["a dog"], ["a dog"]),
        (SD, TWO, {"negative_prompt": ["a dog", "blue"]}, TWO, ["a dog", "blue"]),
        (SD, TWO, {}, TWO, ["", ""]),
        (SD, ONE, {"num_images_per_prompt": 2}, ["a cat"], [""]),
        (SDXL, ONE, {"negative_prompt": "a dog"}, ["a cat"], ["a dog"]),
        (SDXL, ONE, {"prompt_2": "blue", "negative_prompt": "a cat"}, ["blue"], ["a cat"]),
        (SDXL, ONE, {"negative_prompt_2": "red"}, ["a cat"], ["red"]),
        (SDXL, TWO, {"negative_prompt": "a dog"}, TWO, ["a dog", "a dog"]),
        (SDXL, ONE, {"clip_skip": 1}, ["a cat"], [""]),
        (SD3, ONE, {"negative_prompt": "a dog"}, ["a cat"], ["a dog"]),
        (SD3, ONE, {"prompt_3": "blue", "negative_prompt_3": "red"}, ["blue"], ["red"]),
        (SD3, TWO, {}, TWO, ["", ""]),
        (FLUX, ONE, {}, ["a cat"], []),
        (FLUX, ONE, {"negative_prompt": "a dog"}, ["a cat"], ["a dog"]),
        (FLUX, ONE, {"negative_prompt": ""}, ["a cat"], [""]),
        (FLUX, TWO, {"negative_prompt": ["a dog", "blue"]}, TWO, ["a dog", "blue"]),
        (FLUX, ONE, {"prompt_2": "blue", "negative_prompt": "a cat"}, ["blue"], ["a cat"]),
        (PRIOR, ONE, {"negative_prompt": "a dog"}, ["a cat"], [""]),
        (KANDINSKY, ONE, {}, ["a cat"], [""]),
        (KANDINSKY, ONE, {"negative_prompt": "a dog"}, ["a cat"], ["a dog"] * 3),
        (KANDINSKY, TWO, {"negative_prompt": TWO}, TWO, TWO * 3),
    ],
)
@pytest.mark.filterwarnings("ignore:the patch edited no token")
def test_the_rows_of_a_branch_are_those_of_its_texts(where, prompt, more, cond, uncond):
    assert texts_seen(*where, "cond", prompt, **more) == cond
    assert texts_seen(*where, "uncond", prompt, **more) == uncond
    both = texts_seen(*where, "both", prompt, **more)
    assert sorted(both) == sorted(cond + uncond)


def test_cond_is_the_default():
    pipeline = pipeline_of("sd")
    with edit().attach(pipeline):
        default = draw("sd", negative_prompt="a dog")
    with edit().attach(pipeline, branch="cond"):
        assert torch.equal(draw("sd", negative_prompt="a dog"), default)
    with edit().attach(pipeline, branch="both"):
        assert not torch.equal(draw("sd", negative_prompt="a dog"), default)


def test_words_of_textual_inversion_are_the_prompts_own():
    pipeline = PIPELINES["sd"].make()
    pipeline.load_textual_inversion(torch.randn(2, WIDTH), token="<mine>")
    with edit().attach(pipeline) as attached:
        PIPELINES["sd"].draw(pipeline, "a <mine>", negative_prompt="<mine>")
    assert attached.report().edited_tokens == LENGTH


def test_given_embeddings_leave_nothing_to_edit_and_a_warning_says_so():
    pipeline = pipeline_of("sd")
    with torch.no_grad():
        embeds, led = pipeline.encode_prompt("a cat", "cpu", 1, True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": led}
    before = draw("sd", None, **given)
    with (
        pytest.warns(UserWarning, match="edited no token.*pipeline ran.*text_encoder.*embeddings"),
        edit().attach(pipeline),
    ):
        assert torch.equal(draw("sd", None, **given), before)


def test_a_pipeline_that_never_ran_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit().attach(pipeline_of("sd")).remove()


def test_beside_given_embeddings_the_prompt_that_is_left_is_known():
    pipeline = pipeline_of("sd")
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt("a cat", "cpu", 1, False)
    with edit().attach(pipeline, branch="uncond") as attached:
        draw("sd", None, prompt_embeds=embeds)
    assert attached.report().edited_tokens == LENGTH
    with (
        pytest.warns(UserWarning, match="requests and branch"),
        edit().attach(pipeline, branch="cond"),
    ):
        draw("sd", None, prompt_embeds=embeds)


def test_an_image_of_zeros_is_the_one_to_be_led_away_from():
    pipeline = pipeline_of("ip_adapter")
    site = find_sites(pipeline)["image_encoder.vision.0"]
    patch = edit(site.name, site.width)

    def encoded() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return pipeline.encode_image(picture(), "cpu", 1, output_hidden_states=True)

    plain = encoded()
    for branch, changed in (("cond", [0]), ("uncond", [1]), ("both", [0, 1])):
        with patch.attach(pipeline, branch=branch):
            found = encoded()
        assert [i for i in (0, 1) if not torch.equal(plain[i], found[i])] == changed


def test_edits_of_two_encoders_are_told_apart_in_the_report():
    pipeline = pipeline_of("sdxl")
    patch = edit() + edit("text_encoder_2.joint")
    with patch.attach(pipeline) as attached:
        draw("sdxl", TWO, negative_prompt="a dog")
    first, second = attached.report().sites
    assert (first.site, first.tokens, first.calls) == (SITE, 2 * LENGTH, 2)
    assert (second.site, second.tokens, second.calls) == ("text_encoder_2.joint", 2, 2)
    words = sum(len(text.split()) for text in TWO)
    assert (first.streams["text"], first.streams["special"]) == (words, 2 * LENGTH - words)
    assert first.phases["prompt"] == 2 * LENGTH


def test_every_token_is_edited_also_what_fills_the_prompt_up():
    """The denoiser sees all of them, and no mask is given to the encoder."""
    pipeline = pipeline_of("sd")
    with record(pipeline, SITE) as plain:
        draw("sd")
    with edit().attach(pipeline), record(pipeline, SITE) as patched:
        draw("sd")
    changed = (plain.captures[0].hidden != patched.captures[0].hidden).any(-1)
    assert changed.shape == (1, LENGTH)
    assert changed.all()


def test_rows_and_prompts_of_a_batch_have_strengths_and_patches_of_their_own():
    pipeline = pipeline_of("sd")
    with edit().attach(pipeline):
        edited = draw("sd", TWO)
    plain = draw("sd", TWO)
    with edit().attach(pipeline, strength=[0, 1]):
        found = draw("sd", TWO)
    assert torch.allclose(found[0], plain[0], atol=1e-5)
    assert torch.allclose(found[1], edited[1], atol=1e-5)
    with attach_rows(pipeline, [None, edit()], branch="cond"):
        assert torch.equal(draw("sd", TWO), found)


def test_threads_may_each_have_a_patch_of_their_own_in_one_pipeline():
    pipeline = pipeline_of("sd")
    with edit().attach(pipeline):
        expected = draw("sd", negative_prompt="a dog")
    with edit().attach(pipeline, scope="thread"):
        assert torch.equal(draw("sd", negative_prompt="a dog"), expected)


def test_nnsight_runs_the_same_edit():
    pipeline = pipeline_of("sd")
    with edit().attach(pipeline):
        expected = draw("sd", negative_prompt="a dog")
    with edit().attach(pipeline, via="nnsight") as attached:
        assert torch.equal(draw("sd", negative_prompt="a dog"), expected)
    assert attached.report().edited_tokens == LENGTH


@pytest.mark.slow
def test_a_compiled_encoder_is_followed_too():
    pipeline = PIPELINES["sd"].make()
    with edit().attach(pipeline):
        expected = PIPELINES["sd"].draw(pipeline, negative_prompt="a dog")
    pipeline.text_encoder = torch.compile(pipeline.text_encoder, backend="eager")
    with edit().attach(pipeline) as attached:
        found = PIPELINES["sd"].draw(pipeline, negative_prompt="a dog")
    assert torch.equal(found, expected)
    assert attached.report().edited_tokens == LENGTH


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stream", "given"), [("text", {"prompt": TWO}), ("image", {"image": picture()})]
)
def test_the_zoos_own_pipeline_is_led_away_from_zeros_so_that_all_is_meant(stream, given):
    pipeline = zoo.load_unclip()
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(len(given.get("prompt", [0])), 12, 32, 32)

    def drawn() -> Tensor:
        return pipeline(**given, latents=noise, num_inference_steps=2, output_type="pt").images

    plain = drawn()
    for site in ("joint", f"{'vision' if stream == 'image' else 'text'}.1"):
        width = find_sites(pipeline.clip)[site].width
        with edit(site, width).attach(pipeline.clip):
            expected = drawn()
        with edit(f"clip.{site}", width).attach(pipeline):
            assert torch.equal(drawn(), expected)
        assert not torch.equal(expected, plain)


def test_a_call_that_is_not_the_pipelines_is_an_error_unless_both_branches_are_meant():
    pipeline = pipeline_of("sd")
    ids = pipeline.tokenizer(["a cat"], return_tensors="pt").input_ids
    with (
        edit().attach(pipeline),
        pytest.raises(VlmEditError, match="branch='cond'.*text_encoder.text.1.*branch='both'"),
    ):
        pipeline.text_encoder(ids)
    with edit().attach(pipeline, branch="both") as attached:
        pipeline.text_encoder(ids)
    assert attached.report().edited_tokens == ids.numel()


def test_another_pipeline_of_the_same_encoders_is_not_mistaken_for_this_one():
    pipeline = pipeline_of("sd")
    other = diffusers.StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    with (
        edit().attach(pipeline),
        pytest.raises(VlmEditError, match="does not come from the pipeline"),
    ):
        PIPELINES["sd"].draw(other)
    with edit().attach(other):
        assert PIPELINES["sd"].draw(other).shape[0] == 1


class Prefixing(diffusers.StableDiffusionPipeline):
    """Encodes other texts than it is given."""

    def encode_prompt(self, prompt, *_, do_classifier_free_guidance=True, negative_prompt=""):
        assert do_classifier_free_guidance
        more = {"padding": "max_length", "max_length": LENGTH, "return_tensors": "pt"}
        ids = [self.tokenizer(f"red {t}", **more).input_ids for t in (prompt, negative_prompt)]
        return tuple(self.text_encoder(i)[0] for i in ids)


def test_where_token_ids_are_of_neither_prompt_nobody_guesses():
    pipeline = Prefixing(**pipeline_of("sd").components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    with edit().attach(pipeline), pytest.raises(VlmEditError, match="those of neither"):
        pipeline.encode_prompt("a cat", negative_prompt="a dog")


def test_flux_cannot_tell_a_prompt_from_a_negative_one_of_the_same_words():
    with (
        edit("text_encoder.text.1").attach(pipeline_of("flux")),
        pytest.raises(VlmEditError, match="nobody can tell"),
    ):
        draw("flux", "a cat", negative_prompt="a cat")


def test_after_an_error_inside_the_pipeline_all_is_as_before():
    pipeline, expected = pipeline_of("sd"), draw("sd")
    own = {"encode_prompt", "_encode_prompt"}
    with pytest.raises(ValueError, match="batch size"), edit().attach(pipeline):
        assert own <= set(vars(pipeline))
        draw("sd", TWO, negative_prompt=["a dog"])
    assert not own & set(vars(pipeline))
    assert torch.equal(draw("sd"), expected)


def test_of_two_patches_the_one_that_goes_first_leaves_the_other():
    pipeline = pipeline_of("sd")
    with edit().attach(pipeline):
        expected = draw("sd", negative_prompt="a dog")
    first, second = edit("text_encoder.text.0").attach(pipeline), edit().attach(pipeline)
    draw("sd", negative_prompt="a dog")
    first.remove()
    assert torch.equal(draw("sd", negative_prompt="a dog"), expected)
    second.remove()
    assert "encode_prompt" not in vars(pipeline)


def test_a_copy_of_a_patched_pipeline_is_not_patched():
    pipeline, plain = PIPELINES["sd"].make(), draw("sd", negative_prompt="a dog")
    with edit().attach(pipeline):
        twin = copy.deepcopy(pipeline)
        assert "encode_prompt" not in vars(twin)
        assert torch.equal(PIPELINES["sd"].draw(twin, negative_prompt="a dog"), plain)
        assert not torch.equal(PIPELINES["sd"].draw(pipeline, negative_prompt="a dog"), plain)


def test_a_pipeline_that_is_dropped_while_patched_is_gone_and_leaves_no_hook():
    pipeline = PIPELINES["sd"].make()
    encoder, known = pipeline.text_encoder, weakref.ref(pipeline)
    attached = edit().attach(pipeline)
    del pipeline
    gc.collect()
    assert known() is None
    attached.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


def test_an_encoder_that_is_exchanged_is_the_one_that_is_edited_next():
    pipeline = PIPELINES["sd"].make()
    before = find_sites(pipeline)[SITE].taps[0].module
    pipeline.text_encoder = text_encoder()
    after = find_sites(pipeline)[SITE].taps[0].module
    assert before is not after
    assert pipeline.text_encoder.get_submodule("encoder.layers.1") is after


def test_a_saved_patch_fits_other_pipelines_of_the_same_encoder_and_no_other_encoder(tmp_path):
    pipeline, file = pipeline_of("sd"), tmp_path / "patch.safetensors"
    edit().save(file, pipeline)
    patch = load_patch(file)
    with edit().attach(pipeline):
        expected = draw("sd")
    with patch.attach(pipeline):
        assert torch.equal(draw("sd"), expected)
    other = diffusers.StableDiffusionImg2ImgPipeline(
        **pipeline.components, requires_safety_checker=False
    )
    patch.attach(other).remove()
    stranger = PIPELINES["sd"].make()
    with torch.no_grad():
        for weight in stranger.text_encoder.parameters():
            weight.mul_(-1.5)
    with pytest.raises(VlmEditError, match=r"text_encoder.encoder.layers.1 differ"):
        patch.attach(stranger)
    with pytest.raises(VlmEditError, match="no site 'text_encoder.text.1'"):
        patch.attach(pipeline.text_encoder)
    both = patch + edit("text_encoder.text.0")
    both.save(tmp_path / "both.safetensors", pipeline)
    load_patch(tmp_path / "both.safetensors").attach(pipeline).remove()


def test_a_dictionary_knows_its_site_also_inside_a_pipeline():
    known = random_dictionary(WIDTH)
    for info in ({"site": "text.1"}, {"site": SITE}, {"hook_name": "text_model.encoder.layers.1"}):
        Patch(SITE, dataclasses.replace(known, info=info), RULES)
    for info in ({"site": "text.0"}, {"hook_name": "text_model.encoder.layers.2"}):
        with pytest.raises(VlmEditError, match=f"not at '{SITE}'"):
            Patch(SITE, dataclasses.replace(known, info=info), RULES)


def test_a_branch_belongs_to_pipelines():
    host, _ = zoo.load_host()
    patch = Patch("joint", zoo.load_dictionary("joint"), Scale([3], 0.0))
    with pytest.raises(VlmEditError, match="branch='cond'.*CLIPModel is no pipeline"):
        patch.attach(host, branch="cond")
    with pytest.raises(VlmEditError, match="'cond', 'uncond', 'both'"):
        edit().attach(pipeline_of("sd"), branch="negative")


def test_weights_of_a_pipeline_are_not_baked():
    with pytest.raises(VlmEditError, match="negative prompt.*attach the patch instead"):
        edit().bake(pipeline_of("sd"))


def test_what_is_no_host_is_told_of_pipelines():
    with pytest.raises(VlmEditError, match="pipeline of diffusers"):
        edit().attach(object())


def test_what_cannot_be_followed_as_a_pipeline_is_an_error():
    with pytest.raises(VlmEditError, match="SimpleNamespace cannot be followed.*`components`"):
        find_sites(SimpleNamespace(components={}))


class Encoding(nn.Module):
    """Not known to any adapter."""


def test_a_pipeline_of_unknown_encoders_is_told_as_such():
    pipeline = PIPELINES["sd"].make()
    pipeline.text_encoder = Encoding()
    with pytest.raises(VlmEditError, match="no adapter for Encoding"):
        find_sites(pipeline)


def test_an_unknown_encoder_beside_a_known_one_has_no_site():
    pipeline = PIPELINES["sdxl"].make()
    pipeline.text_encoder = Encoding()
    assert {name.split(".")[0] for name in find_sites(pipeline)} == {"text_encoder_2"}


class Holder:
    """A pipeline of one's own, of no library."""

    def __init__(self) -> None:
        self.words, self.cut = text_encoder(), clip_tokenizer()

    @property
    def components(self) -> dict[str, Any]:
        return {"words": self.words, "cut": self.cut}

    def go(self, asked: str, shun_asked: str = "a dog") -> list[Tensor]:
        more = {"padding": "max_length", "max_length": LENGTH, "return_tensors": "pt"}
        made = [self.cut(text, **more).input_ids for text in (shun_asked, asked)]
        return [self.words(ids)[0] for ids in made]


def test_a_pipeline_of_ones_own_is_declared_in_three_lines():
    holder = Holder()
    host = unwrap(holder)
    assert isinstance(host, PipelineHost)
    with pytest.raises(VlmEditError, match="no adapter for Holder"):
        find_adapter(holder)
    rules = PipelineAdapter(
        (PipelineEncoder("words", "cut", ("asked",)),), ("go",), negative="shun_"
    )
    adapter = join_adapters(holder, rules)
    with torch.no_grad():
        plain = holder.go("a cat")
        with edit("words.text.1").attach(Host.of(holder, adapter=adapter)):
            found = holder.go("a cat")
    assert torch.equal(plain[0], found[0])  # what comes first is not what is asked for
    assert not torch.equal(plain[1], found[1])
