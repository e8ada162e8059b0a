"""After a patch by nnsight, an exception or a refusal the host is whole; and what is refused."""

import copy
import gc
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary
from engines import LLAVA, MODES, bits, embedded, left, patch_at, row, same
from torch import Tensor, nn

from vlm_edit import Adapter, Clamp, Host, Patch, VlmEditError
from vlm_edit.hooks import Tokens, tracing
from vlm_edit.patches.active import Active


@pytest.fixture(scope="module", autouse=True)
def nnsight() -> Any:
    return pytest.importorskip("nnsight")


# Left as it was


def test_nothing_of_ours_is_left_after_a_patch_an_exception_or_a_refusal(llava_inputs) -> None:
    host = make_llava()
    before = left(host)
    run = MODES["greedy"](llava_inputs)
    plain = bits(host, run)
    with patch_at().attach(host, via="nnsight"):
        assert left(host) != before
    with pytest.raises(ZeroDivisionError), patch_at().attach(host, via="nnsight"):
        raise ZeroDivisionError
    with pytest.raises(VlmEditError, match="language.9"):
        (patch_at() + patch_at("language.9")).attach(host, via="nnsight")
    assert [line for line in left(host) if "vlm_edit" in line] == []
    assert same(bits(host, run), plain)


@pytest.mark.parametrize("culprit", ["module", "edit", "host"])
def test_an_exception_surfaces_as_itself_and_the_patch_works_on(
    llava_inputs, monkeypatch, culprit
) -> None:
    run = MODES["left-padded batch"](llava_inputs)
    before = bits(LLAVA, run)
    target: Any = {
        "module": Host.of(LLAVA).site("language.1").taps[0].module.mlp,
        "host": LLAVA.model.language_model.norm,
    }.get(culprit)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("mine")

    with patch_at().attach(LLAVA, via="nnsight"):
        expected = bits(LLAVA, run)
        if target is None:
            monkeypatch.setattr(Active, "__call__", fail)
        else:
            handle = target.register_forward_hook(fail)
        with warnings.catch_warnings(), pytest.raises(ZeroDivisionError, match="mine"):
            warnings.simplefilter("error")
            bits(LLAVA, run)
        monkeypatch.undo() if target is None else handle.remove()
        assert same(bits(LLAVA, run), expected)
    assert same(bits(LLAVA, run), before)


def test_a_module_that_fails_leaves_no_worker_waiting_for_it() -> None:
    from greenlet import greenlet

    def alive() -> int:
        return sum(type(o) is greenlet and bool(o) for o in gc.get_objects())

    def fail() -> None:
        with pytest.raises(AttributeError, match="dtype"):
            Host.of(LLAVA).site("language.1").taps[0].module("no hidden state")

    with patch_at().attach(LLAVA, via="nnsight"):
        fail()  # also the main greenlet is made once
        gc.collect()
        gc.disable()
        try:
            before = alive()
            fail()
            assert alive() == before
        finally:
            gc.enable()


def test_an_error_in_the_edit_says_what_to_do(llava_inputs) -> None:
    embeds = embedded(llava_inputs)["inputs_embeds"]
    told = pytest.raises(VlmEditError, match="nobody can tell image tokens")
    with patch_at().attach(LLAVA, via="nnsight"), told:
        LLAVA(inputs_embeds=embeds)


def test_a_patch_that_edits_nothing_warns(llava_inputs) -> None:
    attached = patch_at(phase="decode").attach(LLAVA, via="nnsight")
    LLAVA(**llava_inputs)
    with pytest.warns(UserWarning, match="edited no token"):
        attached.remove()


def test_a_wrapper_that_came_over_a_patch_is_kept_and_the_patch_under_it_is_gone(
    llava_inputs, monkeypatch
) -> None:
    host = make_llava()
    run = MODES["forward"](llava_inputs)
    before = bits(host, run)
    module, calls = Host.of(host).site("language.1").taps[0].module, []
    attached = patch_at().attach(host, via="nnsight")
    patched = module.forward
    module.forward = lambda *args, **kwargs: calls.append(1) or patched(*args, **kwargs)
    assert not same(bits(host, run), before)
    attached.remove()
    monkeypatch.setattr("vlm_edit.hooks.Dispatcher.edit", None)  # would fail if called
    assert same(bits(host, run), before)
    assert len(calls) == 2


def test_a_copy_of_a_patched_host_is_not_patched_and_has_its_own_weights(
    llava_inputs,
) -> None:
    run = MODES["forward"](llava_inputs)
    host = make_llava()
    before = bits(host, run)
    with patch_at().attach(host, via="nnsight"):
        twin = copy.deepcopy(host)
        assert not same(bits(host, run), before)
        assert same(bits(twin, run), before)
        with torch.no_grad():
            Host.of(host).site("language.1").taps[0].module.mlp.up_proj.weight.zero_()
        assert same(bits(twin, run), before)


def test_a_host_that_is_dropped_while_patched_is_gone() -> None:
    host = make_llava()
    attached = patch_at().attach(host, via="nnsight")
    layer = weakref.ref(Host.of(host).site("language.1").taps[0].module)
    del host, attached
    gc.collect()
    assert layer() is None


def test_threads_run_a_patched_host_side_by_side(llava_inputs) -> None:
    results: list[tuple[int, list[Tensor]]] = []
    runs = [MODES["forward"](row(llava_inputs, i)) for i in (0, 1)]

    def work(i: int) -> None:
        results.extend((i, bits(LLAVA, runs[i])) for _ in range(10))

    with patch_at().attach(LLAVA, via="nnsight"):
        expected = [bits(LLAVA, run) for run in runs]
        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 20
    assert all(same(found, expected[i]) for i, found in results)


def test_gradients_are_those_of_hooks(llava_inputs) -> None:
    found = []
    for via in ("hooks", "nnsight"):
        pixels = llava_inputs["pixel_values"].clone().requires_grad_()
        with patch_at(tokens="all").attach(LLAVA, via=via):
            LLAVA(**llava_inputs | {"pixel_values": pixels}).logits.square().mean().backward()
        found.append(pixels.grad)
    LLAVA.zero_grad()
    assert found[0].any()
    assert torch.equal(*found)


def test_a_host_that_was_compiled_before_is_edited_between_its_graphs() -> None:
    whole = make_clip()
    tower = whole.text_model.requires_grad_(False)
    ids = torch.tensor([[1, 5, 6, 7, 63]])
    compiled = torch.compile(tower, backend="eager")
    before = compiled(input_ids=ids).last_hidden_state
    with patch_at("text.1", "all", 16).attach(whole, via="nnsight"):
        expected = tower(input_ids=ids).last_hidden_state
        assert torch.equal(compiled(input_ids=ids).last_hidden_state, expected)
        torch.compiler.reset()  # what is cut into graphs by now is not refused
        strict = torch.compile(tower, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="attach the patch with via='hooks'"):
            strict(input_ids=ids)
    assert not torch.equal(expected, before)
    assert torch.equal(compiled(input_ids=ids).last_hidden_state, before)
    torch._dynamo.reset()


# What is refused


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


def test_an_unknown_engine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(VlmEditError, match="via is 'hook'; use 'hooks' or 'nnsight'"):
        patch_at().attach(LLAVA, via="hook")


@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_what_is_no_host_is_refused(via) -> None:
    with pytest.raises(VlmEditError, match="a str is no host: give a torch.nn.Module"):
        patch_at().attach("llava", via=via)


def test_a_site_that_is_a_method_is_refused_with_the_mend() -> None:
    host = Map()
    patch = Patch("joint", random_dictionary(2), Clamp([1], 3.0))
    with pytest.raises(VlmEditError, match=r"'embed\(\)' is a method.*via='hooks'"):
        patch.attach(Host.of(host, adapter=MAP), via="nnsight")
    assert not [line for line in left(host) if "vlm_edit" in line]


def test_a_site_that_is_a_method_is_in_no_trace(nnsight) -> None:
    with pytest.raises(VlmEditError, match=r"no module at 'embed\(\)': it is a method"):
        host = Map()
        tracing.at(nnsight.NNsight(host), "joint", host=Host.of(host, adapter=MAP))


@pytest.mark.filterwarnings("ignore:.*was replaced after nnsight wrapped")
def test_a_module_whose_forward_somebody_replaced_is_refused_and_not_bypassed(nnsight) -> None:
    host = Map()
    nnsight.NNsight(host)
    original = host.first.forward
    host.first.forward = lambda x: original(x) * 2
    x = torch.randn(1, 3, 2, 2)
    before = host(x)
    with pytest.raises(VlmEditError, match="forward of 'first' was replaced"):
        patch_at("map", width=4).attach(Host.of(host, adapter=MAP), via="nnsight")
    assert torch.equal(host(x), before)


def test_a_model_without_its_weights_is_refused() -> None:
    class Lazy:
        _module, dispatched = LLAVA, False

    with pytest.raises(VlmEditError, match="dispatch=True"):
        patch_at().attach(Lazy(), via="nnsight")


# The engine alone


def test_a_callback_sees_where_it_is_as_under_hooks(llava_inputs) -> None:
    seen: list[Tokens] = []
    site = Host.of(LLAVA).site("language.0")
    handle = tracing.attach(LLAVA, site, lambda hidden, tokens: seen.append(tokens) or hidden)
    LLAVA.generate(**llava_inputs, max_new_tokens=3, suppress_tokens=[IMAGE_TOKEN])
    handle.remove()
    LLAVA(**llava_inputs)
    assert [tokens.call.start for tokens in seen] == [0, 9, 10]
    assert torch.equal(seen[0].mask("image"), llava_inputs["input_ids"] == IMAGE_TOKEN)
    assert {tokens.call.prompt for tokens in seen} == {9}
