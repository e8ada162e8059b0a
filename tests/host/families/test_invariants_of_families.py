"""The invariants of docs/architecture.md in every family: at one site of each kind."""

import functools

import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES
from torch import Tensor

from vlm_edit import Ablate, Clamp, Patch, Scale, Steer, find_sites, record


def one_of_each_kind(name):
    """The first live site of each name, layers counted as one."""
    kinds = {}
    for site in FAMILIES[name].sites:
        if site not in FAMILIES[name].dead:
            kinds.setdefault(site.split(".")[0], site)
    return list(kinds.values())


PLACES = [pytest.param(n, site, id=f"{n}-{site}") for n in FAMILIES for site in one_of_each_kind(n)]


@functools.cache
def host_of(name):
    return FAMILIES[name].make()


@functools.cache
def plain(name):
    return said(name, host_of(name), FAMILIES[name].inputs())


@torch.no_grad()
def said(name, host, inputs):
    output = host(**inputs)
    return [output[field] for field in FAMILIES[name].output]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def patch(name, site, *rules):
    width = find_sites(host_of(name))[site].width
    return Patch(site, random_dictionary(width), rules)


def hooks_of(host):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules())


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_an_exception_in_a_patched_forward_leaves_every_bit_and_no_hook(name, site):
    host, before = host_of(name), plain(name)
    hooks, kept = hooks_of(host), set(vars(host))

    def fail(*_):
        raise ZeroDivisionError

    module = find_sites(host)[site].taps[0].module
    with pytest.raises(ZeroDivisionError), patch(name, site, Scale(range(20), -2.0)).attach(host):
        failing = module.register_forward_hook(fail)
        try:
            said(name, host, FAMILIES[name].inputs())
        finally:
            failing.remove()
    assert hooks_of(host) == hooks
    assert set(vars(host)) == kept
    assert same(said(name, host, FAMILIES[name].inputs()), before)


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_strength_zero_is_no_edit_and_ablations_add_up(name, site):
    host, inputs = host_of(name), FAMILIES[name].inputs()
    nothing = patch(name, site, Ablate(range(20), strength=0.0), Clamp([1], 9.0, strength=0.0))
    with nothing.attach(host):
        assert same(said(name, host, inputs), plain(name))
    with patch(name, site, Ablate(range(20))).attach(host):
        once = said(name, host, inputs)
    with patch(name, site, Ablate(range(12)), Ablate(range(8, 20))).attach(host):
        twice = said(name, host, inputs)
    torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-4)
    assert not all(torch.allclose(a, b) for a, b in zip(once, plain(name), strict=True))


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_gradients_pass_through_an_edit_to_what_lies_below(name, site):
    family, host = FAMILIES[name], host_of(name)
    weights = list(find_sites(host)[site].taps[0].module.parameters()) or list(host.parameters())

    def gradients():
        output = host(**family.inputs())
        loss = torch.zeros(())
        for field in family.output:  # weighed at random: the square of a unit vector never moves
            told = output[field]
            generator = torch.Generator().manual_seed(0)
            loss = loss + (told * torch.randn(told.shape, generator=generator)).sum()
        loss.backward()
        found = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
        host.zero_grad()
        return found

    without = gradients()
    with patch(name, site, Scale(range(20), -2.0), Steer([25], 3.0)).attach(host):
        edited = gradients()
    assert all(g.isfinite().all() for g in edited)
    assert any(g.any() for g in edited)
    assert not all(torch.allclose(a, b) for a, b in zip(edited, without, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_host_in_bfloat16_stays_so_at_every_kind_of_site(name):
    host = FAMILIES[name].make().to(torch.bfloat16)
    inputs = {
        key: value.to(torch.bfloat16)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for key, value in FAMILIES[name].inputs().items()
    }
    before = said(name, host, inputs)
    for site in one_of_each_kind(name):
        with (
            patch(name, site, Scale(range(20), -2.0), Steer([25], 3.0)).attach(host),
            record(host, site) as recording,
        ):
            after = said(name, host, inputs)
        assert {capture.hidden.dtype for capture in recording.captures} == {torch.bfloat16}
        assert [a.dtype for a in after] == [b.dtype for b in before]
        assert not same(after, before)
        assert all(a.isfinite().all() for a in after)
