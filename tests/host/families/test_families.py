"""Every family of hosts that the library ships an adapter for, on a tiny random host of each."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_edit import Patch, Scale, Steer, VlmEditError, find_sites, record
from vlm_edit.hooks import attach
from vlm_edit.host import Site
from vlm_edit.testing import check_adapter

LIVE = [
    pytest.param(name, site, id=f"{name}-{site}")
    for name, family in FAMILIES.items()
    for site in family.sites
    if site not in family.dead
]
DEAD = [(name, site) for name, family in FAMILIES.items() for site in family.dead]
JOINT = [name for name, family in FAMILIES.items() if "joint" in family.sites]
CONTRASTIVE = [name for name in JOINT if len(FAMILIES[name].output) == 2]
MIXED = [name for name, family in FAMILIES.items() if family.image_token is not None]


@functools.cache
def host_of(name: str) -> nn.Module:
    """Shared by tests that leave it as it was, which one of them holds."""
    return FAMILIES[name].make()


@functools.cache
def said(name: str) -> list[Tensor]:
    """What the host says without a patch; the host's own hooks are installed by then."""
    family = FAMILIES[name]
    return family.answers(host_of(name), family.inputs())


WHOLE = {"text": "text+special"}  # no tokenizer tells a text's own tokens here


def edit(site: Site, tokens: str = "all") -> Patch:
    """Half of the features scaled, one steered: nothing a LayerNorm would cancel."""
    rules = [Scale(range(20), -2.0), Steer([25], 3.0)]
    return Patch(site.name, random_dictionary(site.width), rules, WHOLE.get(tokens, tokens))


def hooks_of(host: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules())


def last_mixed(name: str) -> Site:
    mixed = [s for s in find_sites(host_of(name)).values() if len(s.streams) == 2]
    return mixed[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_sites_with_their_widths_and_streams(name):
    found = find_sites(host_of(name))
    assert {n: (s.width, s.streams) for n, s in found.items()} == FAMILIES[name].sites
    assert list(found) == list(FAMILIES[name].sites)
    assert tuple(n for n, s in found.items() if s.dead) == FAMILIES[name].dead


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_passes_the_suite_that_adapters_of_others_are_given(name):
    check_adapter(host_of(name), FAMILIES[name].inputs())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_as_wide_as_what_flows_there_and_runs_in_one_forward(name):
    family, host = FAMILIES[name], host_of(name)
    with record(host, *family.sites) as recording:
        family.answers(host, family.inputs())
    for site, (width, streams) in family.sites.items():
        seen = [capture for capture in recording.captures if capture.site == site]
        assert {capture.hidden.shape[-1] for capture in seen} == {width}
        mixed = len(find_sites(host)[site].taps) < len(streams)
        assert {c.tokens.stream for c in seen} == ({"mixed"} if mixed else set(streams))


@pytest.mark.parametrize(("name", "site"), LIVE)
def test_an_edit_reaches_what_the_host_says_of_each_sample_and_leaves_no_trace(name, site):
    family, host = FAMILIES[name], host_of(name)
    before, hooks = said(name), hooks_of(host)
    for tokens in {"all", *family.sites[site][1]}:
        with edit(find_sites(host)[site], tokens).attach(host):
            during = family.answers(host, family.inputs())
        for old, new in zip(before, during, strict=True):
            assert (old - new).abs().max() > 1e-4, tokens
    after = family.answers(host, family.inputs())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert hooks_of(host) == hooks


@pytest.mark.parametrize(("name", "site"), DEAD)
def test_a_site_that_the_host_never_reads_is_refused_with_the_reason(name, site):
    host = host_of(name)
    with pytest.raises(VlmEditError, match=r"would change nothing: the host reads vision_feature"):
        edit(find_sites(host)[site]).attach(host)


@pytest.mark.parametrize(("name", "site"), DEAD)
def test_a_site_called_dead_is_dead(name, site):
    """An edit there, past the check, changes no bit of what the host says."""
    family, host = FAMILIES[name], host_of(name)
    before = said(name)
    handle = attach(host, find_sites(host)[site], lambda hidden, _: hidden * 3 - 1)
    try:
        after = family.answers(host, family.inputs())
    finally:
        handle.remove()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(("name", "site"), LIVE)
def test_an_edited_batch_is_its_samples_one_by_one(name, site):
    family, host = FAMILIES[name], host_of(name)
    found = find_sites(host)[site]
    with edit(found, found.streams[0]).attach(host):
        batch = family.answers(host, family.inputs())
        alone = [family.answers(host, family.inputs([row]))[0] for row in (0, 1)]
    for old, new in zip(alone, batch, strict=True):
        assert torch.allclose(old, new, atol=2e-5)


@pytest.mark.parametrize("name", MIXED)
def test_an_edit_of_image_tokens_at_a_layer_changes_image_tokens_only(name):
    family, host, inputs = FAMILIES[name], host_of(name), FAMILIES[name].inputs()
    site = last_mixed(name)
    hidden: dict[bool, Tensor] = {}
    for patched in (False, True):
        patch = edit(site, "image").attach(host) if patched else None
        with record(host, site.name) as recording:
            family.answers(host, inputs)
        if patch is not None:
            patch.remove()
        hidden[patched] = recording.last(site.name, "mixed").hidden
    moved = (hidden[True] != hidden[False]).any(-1)
    image = inputs["input_ids"] == family.image_token
    assert torch.equal(moved, image)
    assert image.sum(1).tolist() == [family.tokens] * 2


@pytest.mark.parametrize("name", [name for name in MIXED if "language.2" in FAMILIES[name].sites])
def test_an_edit_of_image_tokens_at_the_last_layer_changes_what_is_said_there_only(name):
    family, host, inputs = FAMILIES[name], host_of(name), FAMILIES[name].inputs()
    with edit(find_sites(host)["language.2"], "image").attach(host):
        during = family.answers(host, inputs)
    texts: list[Any] = [family.text(row) for row in (0, 1)]
    for old, new, text in zip(said(name), during, texts, strict=True):
        assert ((old != new).any(-1) == (torch.tensor(text) == family.image_token)).all()


@pytest.mark.parametrize("name", [n for n in FAMILIES if hasattr(host_of(n), "model")])
def test_a_host_without_its_head_has_the_same_sites_at_the_same_modules(name):
    whole, headless = find_sites(host_of(name)), find_sites(host_of(name).model)
    assert list(headless) == list(whole)
    for site in whole:
        assert headless[site].width == whole[site].width
        assert headless[site].dead == whole[site].dead
        (there,), (here,) = headless[site].taps, whole[site].taps
        assert there.module is here.module
        assert here.path == f"model.{there.path}"


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_padding_is_known_in_a_text_tower_that_runs_without_its_host(name):
    host, inputs = host_of(name), FAMILIES[name].inputs()
    texts = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    texts.setdefault("attention_mask", (texts["input_ids"] != 0).long())
    with record(host, "text.1") as recording, torch.no_grad():
        host.get_text_features(**texts)
    real = recording.last("text.1", "text").tokens.real
    assert torch.equal(real, texts["attention_mask"].bool())
    assert not real.all()


@pytest.mark.parametrize("name", JOINT)
def test_the_joint_site_is_the_embedding_before_it_is_normalised(name):
    family, host = FAMILIES[name], host_of(name)
    with record(host, "joint") as recording:
        answers = torch.stack(family.answers(host, family.inputs()))
    parts = answers.chunk(len(family.output), -1)
    for stream, part in zip(family.sites["joint"][1], parts, strict=True):
        hidden = recording.last("joint", stream).hidden
        assert torch.allclose(F.normalize(hidden, dim=-1), F.normalize(part, dim=-1), atol=1e-6)
