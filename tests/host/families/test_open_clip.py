"""OpenCLIP, which has no config, embeds text in a method, and builds vision towers by timm too.

It imports torchvision, whose build must fit torch's: one that does not breaks transformers as well.
So these tests are skipped where OpenCLIP is not installed. `.ci/second` makes an environment for
them, of a Python for which torch's own build has a torchvision, and runs them.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest
import torch
from conftest import random_dictionary
from hosts_page import describe, expect_section
from tiny_hosts import Expected, stack
from torch import Tensor, nn

from vlm_edit import Patch, Scale, Steer, find_sites, load_patch, record
from vlm_edit.host import Site

if importlib.util.find_spec("open_clip") is None:
    pytest.skip(
        "needs OpenCLIP and torchvision: .ci/second makes an environment with both",
        allow_module_level=True,
    )

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP  # noqa: E402

TEXT = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 3}
VISION = {"layers": 3, "width": 24, "head_width": 12, "patch_size": 8, "image_size": 16}
TIMM = {"timm_model_name": "test_vit", "image_size": 160, "timm_proj": "linear"}


def make(kind: type[nn.Module], vision: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    host = kind(embed_dim=12, vision_cfg=CLIPVisionCfg(**vision), text_cfg=CLIPTextCfg(**TEXT))
    with torch.no_grad():
        for weight in host.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
    return host.eval()


HOSTS = {
    "CLIP": functools.cache(lambda: make(CLIP, VISION)),
    "CustomTextCLIP": functools.cache(lambda: make(CustomTextCLIP, VISION)),
    "timm": functools.cache(lambda: make(CustomTextCLIP, TIMM)),
}


def expected(name: str) -> Expected:
    vision = stack("vision", 64, ("image",), 6) if name == "timm" else None
    return {
        "joint": (12, ("image", "text")),
        **(vision or stack("vision", 24, ("image",))),
        **stack("text", 16, ("text",)),
    }


SITES = [(name, site) for name in HOSTS for site in expected(name)]


def inputs(host: nn.Module) -> tuple[Tensor, Tensor]:
    """Two images and two texts; OpenCLIP reads a text at its largest id."""
    texts = torch.zeros(2, 12, dtype=torch.long)
    texts[0, :6] = torch.tensor([62, 5, 6, 7, 8, 63])
    texts[1, :4] = torch.tensor([62, 9, 10, 63])
    size = host.visual.image_size
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)), texts


@torch.no_grad()
def said(host: nn.Module) -> dict[str, Tensor]:
    image, text, _ = host(*inputs(host))
    return {"image": image, "text": text}


WHOLE = {"text": "text+special"}  # no tokenizer tells a text's own tokens here


def edit(site: Site, tokens: str = "all") -> Patch:
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(site.name, random_dictionary(site.width), rules, WHOLE.get(tokens, tokens))


@pytest.mark.parametrize("name", HOSTS)
def test_an_openclip_host_is_found_by_its_class_and_has_its_sites(name):
    found = find_sites(HOSTS[name]())
    assert {n: (s.width, s.streams) for n, s in found.items()} == expected(name)
    assert not any(site.dead for site in found.values())


@pytest.mark.parametrize("name", HOSTS)
def test_every_openclip_site_is_as_wide_as_what_flows_there(name):
    with record(HOSTS[name](), *expected(name)) as recording:
        said(HOSTS[name]())
    assert {(c.site, c.hidden.shape[-1], c.tokens.stream) for c in recording.captures} == {
        (site, width, stream)
        for site, (width, streams) in expected(name).items()
        for stream in streams
    }


@pytest.mark.parametrize(("name", "site"), SITES)
def test_an_edit_reaches_the_embeddings_of_its_stream_only_and_leaves_no_trace(name, site):
    host = HOSTS[name]()
    before = said(host)
    for stream in expected(name)[site][1]:
        with edit(find_sites(host)[site], stream).attach(host):
            during = said(host)
        for other in ("image", "text"):
            moved = (before[other] - during[other]).abs().amax(-1) > 1e-4
            assert moved.tolist() == [other == stream] * 2
    after = said(host)
    assert all(torch.equal(before[stream], after[stream]) for stream in before)
    assert not any(vars(m).get("encode_text") for m in host.modules())


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_joint_edit_of_text_comes_before_the_embedding_is_normalised(name):
    host = HOSTS[name]()
    _, texts = inputs(host)
    with edit(find_sites(host)["joint"], "text").attach(host):
        raw, unit = host.encode_text(texts), host.encode_text(texts, normalize=True)
    assert torch.allclose(unit, raw / raw.norm(dim=-1, keepdim=True), atol=1e-6)
    assert not torch.allclose(raw, host.encode_text(texts), atol=1e-2)


@pytest.mark.parametrize("name", HOSTS)
def test_a_patch_of_an_openclip_host_is_saved_and_loaded(name, tmp_path):
    host = HOSTS[name]()
    patch = edit(find_sites(host)["joint"]) + edit(find_sites(host)["text.1"])
    patch.save(tmp_path / "patch.safetensors", host)
    with patch.attach(host):
        want = said(host)
    with load_patch(tmp_path / "patch.safetensors").attach(host):
        got = said(host)
    assert all(torch.equal(want[stream], got[stream]) for stream in want)


def test_the_page_of_hosts_has_openclip_too() -> None:
    notes = {"timm": " with a vision tower of timm's"}
    hosts = ((make(), notes.get(name, "")) for name, make in HOSTS.items())
    expect_section("openclip", describe(hosts))
