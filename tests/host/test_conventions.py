"""What a model of transformers tells of itself: the same as is declared, and what its config says.

Whole-sized models are made on the meta device, of the configs that the library itself gives.
"""

import functools
import warnings

import pytest
import torch
import transformers
from tiny_hosts import FAMILIES
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from vlm_edit import Host, VlmEditError
from vlm_edit.host import find_adapter, registered_adapter
from vlm_edit.host.conventions import read_conventions

# Sites that only a declaration knows: a second stack, a Q-Former, stages of convolutions.
DECLARED_ONLY = {
    "mllama": {"global"},
    "blip2": {"qformer"},
    "blip2_t5": {"qformer"},
    "florence2": {"vision"},
    # Its head is what all of it is for, or one of somebody's own.
    "siglip_vision_model": {"joint"},
    "siglip2_vision_model": {"joint"},
}
# A text tower alone is a language model like any other, to its own library.
TEXT_TOWERS = [n for n in FAMILIES if n.split("_")[0] in ("t5", "umt5") or "_text_" in n]


def told(host):
    return {
        name: (site.width, site.dead is None, [(t.path, t.stream, t.axis) for t in site.taps])
        for name, site in host.sites.items()
    }


def kind(name):
    return name.split(".")[0]


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in TEXT_TOWERS])
def test_a_family_that_is_declared_tells_the_same_of_itself(name):
    model = FAMILIES[name].make()
    adapter = read_conventions(model)
    declared = told(Host.of(model))
    by_convention = told(Host.of(model, adapter=adapter))
    left_out = DECLARED_ONLY.get(name, set())
    expected = {site: facts for site, facts in declared.items() if kind(site) not in left_out}
    if name == "florence2":
        by_convention = {s: facts for s, facts in by_convention.items() if kind(s) != "vision"}
    assert by_convention == expected
    assert list(by_convention) == list(expected)
    assert adapter.grid == registered_adapter(model).grid


# Classes by type, as the library itself lists them.
TYPES = {
    **modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
# What the default config of these types does not build, whoever asks: it is no whole config, or
# wants timm.
NOT_BUILT = {
    "aya_vision",
    "chameleon",
    "cohere_compass",
    "deepseek_ocr2",
    "diffusion_gemma",
    "emu3",
    "fast_vlm",
    "gemma3n",
    "granite4_vision",
    "hunyuan_vl",
    "perception_lm",
    "qwen4_exp",
}
# Where a default config is of no vision-language model, or images have no tower of layers.
NO_TOWER = {"apertus1p5", "evolla", "fuyu", "gemma4", "gemma4_unified", "mistral4"}
ELSEWHERE = {
    # Proteins, no images.
    "evolla",
    # A policy of robots: its vision-language model is a part, and it says nothing.
    "pi0",
    # Words and patches share the encoder by their position.
    "udop",
}


@functools.cache
def whole_host(model_type):
    """A model of the library's own size, without weights."""
    named = TYPES[model_type]
    name = named if isinstance(named, str) else named[0]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return getattr(transformers, name)(CONFIG_MAPPING[model_type]())


def size_of(config, *names):
    return next((v for n in names if type(v := getattr(config, n, None)) is int), None)


@pytest.mark.parametrize("model_type", [t for t in TYPES if t not in NOT_BUILT | ELSEWHERE])
def test_a_model_of_whole_size_has_the_layers_that_its_config_says(model_type):
    model = whole_host(model_type)
    sites = Host.of(model, adapter=read_conventions(model)).sites
    text = model.config.get_text_config(decoder=True)
    depth = size_of(text, "decoder_layers", "num_hidden_layers", "num_layers")
    spoken = [s for n, s in sites.items() if kind(n) in ("language", "decoder", "text")]
    assert len(spoken) == depth
    assert {site.width for site in spoken} == {size_of(text, "hidden_size", "d_model")}
    seen = [site for name, site in sites.items() if kind(name) == "vision"]
    assert bool(seen) == (model_type not in NO_TOWER)
    vision = getattr(model.config, "vision_config", None) or getattr(model.config, "encoder", None)
    depth = size_of(vision, "num_hidden_layers", "depth", "num_layers", "encoder_layers")
    if depth is not None and seen:
        assert len(seen) == depth
    projected = sites.get("projector")
    assert projected is None or projected.taps[0].stream == "image"


@pytest.mark.parametrize("model_type", sorted(NOT_BUILT))
def test_a_type_left_out_is_left_out_for_a_reason_of_its_own(model_type):
    with pytest.raises((ValueError, AttributeError, KeyError, TypeError, ImportError)):
        whole_host(model_type)


def test_a_host_that_is_registered_goes_by_what_is_declared():
    llava = FAMILIES["llava"].make()
    assert find_adapter(llava) is registered_adapter(llava)
    assert find_adapter(llava) != read_conventions(llava)


def test_the_stages_of_a_tower_of_another_library_are_its_layers():
    model = FAMILIES["llava"].make()
    tower = model.model.vision_tower = nn.Module()
    tower.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    tower.stages = nn.Sequential(
        *(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, width, 1)) for width in (8, 16))
    )
    sites = Host.of(model, adapter=read_conventions(model)).sites
    seen = {name: site for name, site in sites.items() if kind(name) == "vision"}
    assert {name: site.width for name, site in seen.items()} == {"vision.0": 8, "vision.1": 16}
    assert {(site.taps[0].path, site.taps[0].axis) for site in seen.values()} == {
        ("model.vision_tower.stages.0", 1),
        ("model.vision_tower.stages.1", 1),
    }


def test_what_projects_sounds_is_no_projector_of_images():
    model = FAMILIES["llava"].make()
    embed = model.model.embed_audio = nn.Module()
    embed.embedding_projection = nn.Linear(8, model.config.text_config.hidden_size)
    sites = Host.of(model, adapter=read_conventions(model)).sites
    assert sites["projector"].taps[0].path == "model.multi_modal_projector"


def test_what_keeps_no_convention_is_refused_with_the_mend():
    with pytest.raises(VlmEditError, match=r"it has no get_decoder\(\) with layers"):
        find_adapter(torch.nn.Linear(2, 2))
