"""In every family, at one site of each kind: baked is as attached, or refused for a reason."""

import functools

import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES

from vlm_edit import Ablate, Dictionary, Patch, Steer, VlmEditError, find_sites

CONTRASTIVE = ("clip", "siglip", "siglip2")
# Constants are folded here besides the sites whose module is an nn.Linear with a bias.
CONSTANTS = {
    **dict.fromkeys(CONTRASTIVE, {"vision.0", "text.0"}),
    **dict.fromkeys(("altclip", "chinese_clip", "idefics3", "smolvlm"), {"vision.0"}),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "llava_headless"), {"projector"}),
    **dict.fromkeys(("paligemma", "internvl"), {"projector"}),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_headless"), {"vision.0", "projector"}),
    "qwen3_vl": {"vision.0", "deepstack.0", "projector"},
    **dict.fromkeys(("blip2", "blip2_t5"), {"vision.0", "projector"}),
    **dict.fromkeys(("clip_vision_model", "clip_vision_projected"), {"vision.0"}),
    **dict.fromkeys(("clip_text_model", "clip_text_projected"), {"text.0"}),
    **dict.fromkeys(("siglip_vision_model", "siglip2_vision_model"), {"joint", "vision.0"}),
    **dict.fromkeys(("siglip_text_model", "siglip2_text_model"), {"joint", "text.0"}),
    **dict.fromkeys(("altclip_vision_model", "chinese_clip_vision_model"), {"vision.0"}),
    "mllama": {"projector"},
}
for _name in ("siglip", "siglip2"):
    CONSTANTS[_name] = CONSTANTS[_name] | {"joint"}
# More than a constant, where the Linear gives the output itself.
MATRICES = {
    **dict.fromkeys(("clip", "altclip", "chinese_clip"), {"joint"}),
    **dict.fromkeys(("clip_vision_projected", "clip_text_projected"), {"joint"}),
    **dict.fromkeys(("siglip_text_model", "siglip2_text_model"), {"joint"}),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "llava_headless"), {"projector"}),
    **dict.fromkeys(("paligemma", "internvl", "idefics3", "smolvlm"), {"projector"}),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_headless"), {"projector"}),
    **dict.fromkeys(("blip2", "blip2_t5", "mllama"), {"projector"}),
    "qwen3_vl": {"deepstack.0", "projector"},
}


def one_of_each_kind(name):
    kinds = {}
    for site in FAMILIES[name].sites:
        if site not in FAMILIES[name].dead:
            kinds.setdefault(site.split(".")[0], site)
    return list(kinds.values())


PLACES = [pytest.param(n, site, id=f"{n}-{site}") for n in FAMILIES for site in one_of_each_kind(n)]


@functools.cache
def host_of(name):
    return FAMILIES[name].make()


def constant(width):
    return random_dictionary(width), Steer([3, 7], 2.0)


def matrix(width):
    return Dictionary.identity(width), Ablate([0, 1, 2])


@pytest.mark.parametrize(("make", "expected"), [(constant, CONSTANTS), (matrix, MATRICES)])
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_baked_is_as_attached_or_refused(name, site, make, expected):
    family, host = FAMILIES[name], host_of(name)
    inputs = family.inputs()
    patch = Patch(site, *make(find_sites(host)[site].width))
    before = {key: value.clone() for key, value in host.state_dict().items()}
    if site not in expected.get(name, ()):
        with pytest.raises(VlmEditError, match="cannot be baked: .*; attach the patch instead"):
            patch.bake(host)
    else:
        plain = family.answers(host, inputs)
        with patch.attach(host):
            attached = family.answers(host, inputs)
        with patch.bake(host):
            found = family.answers(host, inputs)
        for a, b, c in zip(plain, attached, found, strict=True):
            torch.testing.assert_close(c, b, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())
