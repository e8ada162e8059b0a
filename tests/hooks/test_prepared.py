"""Prepared hosts: patches come and go, and no compiled code but the host's own is made anew."""

import gc
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import make_clip
from torch import nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.convert_frame import input_codes
from torch._dynamo.utils import counters

from vlm_edit import Adapter, Dictionary, Host, Patch, Scale, VlmEditError, record
from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.hooks import attach, bare, prepare
from vlm_edit.host import Site


class Other(nn.Module):
    """A model of somebody else's, with one kind of module in common with hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).relu()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Tiny(nn.Module):
    """A host that compiles in no time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * 2


ADAPTER = Adapter.of({"text.{i}": ("layers.{i}", "text", 4)})
X = torch.linspace(-1, 1, 12).reshape(3, 4)


def tiny() -> Host:
    return Host.of(Tiny(), adapter=ADAPTER)


def patch(site="text.1", by=3.0) -> Patch:
    return Patch(site, Dictionary.identity(4), Scale(range(4), by))


class Backend:
    """Counts what is compiled."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def _compiled_code_is_of_one_test():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def other() -> tuple[Backend, nn.Module]:
    """Somebody else's model, compiled and run."""
    backend = Backend()
    compiled = torch.compile(Other(), backend=backend)
    compiled(torch.ones(1, 3))
    return backend, compiled


@pytest.mark.parametrize(("is_prepared", "again"), [(True, 0), (False, 5)])
@torch.no_grad()
def test_a_model_of_others_is_not_compiled_again_where_the_host_is_prepared(is_prepared, again):
    host = tiny()
    if is_prepared:
        host.prepare()
    backend, stranger = other()
    compiled = torch.compile(host.model, backend="eager")
    for _ in range(5):
        compiled(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error" if is_prepared else "ignore", VlmEditWarning)
            with patch().attach(host):
                compiled(X)
                stranger(torch.ones(1, 3))
    assert backend.graphs - 1 == again


@torch.no_grad()
def test_several_patches_and_a_second_site_on_a_prepared_host():
    host = tiny()
    host.prepare()
    compiled = torch.compile(host.model, backend="eager", fullgraph=True)
    plain = compiled(X)
    first, second, third = patch(), patch("text.0"), patch(by=-1.0)
    with first.attach(host):
        for more in (second, third):
            with more.attach(host):
                expected = host.model(X)
                got = compiled(X)
            torch.testing.assert_close(got, expected)
    assert torch.equal(compiled(X), plain)


@torch.no_grad()
def test_a_method_that_is_a_site_of_a_prepared_host():

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def encode(self, x):
            return self.linear(x)

        def forward(self, x):
            return self.encode(x).tanh()

    model, x = Model(), torch.ones(2, 3)
    host = Host.of(model, adapter=Adapter.of({"joint": ("encode()", "text", 4)})).prepare()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain = compiled(x)
    for _ in range(2):
        with Patch("joint", Dictionary.identity(4), Scale(range(4), 3.0)).attach(host):
            torch.testing.assert_close(compiled(x), model(x))
            assert not torch.equal(compiled(x), plain)
        assert torch.equal(compiled(x), plain)


@torch.no_grad()
def test_an_unprepared_host_that_was_compiled_is_edited_with_a_warning_that_names_the_mend():
    host = tiny()
    compiled = torch.compile(host.model, backend="eager")
    plain = compiled(X)
    with pytest.warns(VlmEditWarning, match=r"not prepared.*prepare\(\) once") as caught:
        attached = patch().attach(host)
    assert [warning.filename for warning in caught] == [__file__]
    assert not torch.allclose(compiled(X), plain)
    attached.remove()
    assert torch.equal(compiled(X), plain)
    with (
        pytest.warns(VlmEditWarning, match="prepared") as caught,
        record(host, "text.1") as recording,
    ):
        compiled(X)
    assert recording.captures
    assert caught[0].filename == __file__


def test_a_warning_that_is_an_error_leaves_nothing_on_the_host():
    host = tiny()
    torch.compile(host.model, backend="eager")(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        with pytest.raises(VlmEditWarning, match="prepare"):
            patch().attach(host)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.model.modules())
    assert "generate" not in vars(host.model)


@pytest.mark.parametrize("what", ["nothing", "a model of others", "a function"])
def test_where_nothing_is_compiled_that_may_hold_the_host_all_code_stays(what, monkeypatch):
    if what == "a model of others":
        other()
    elif what == "a function":
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    monkeypatch.setattr(torch.compiler, "reset", None)  # would fail if called
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        patch().attach(tiny()).detach()


@pytest.mark.parametrize("drop", ["skip_guard_on_all_nn_modules_unsafe"])
@torch.no_grad()
def test_code_without_guards_on_modules_is_known_to_hold_the_host(drop):
    drop = getattr(torch.compiler, drop, None)
    if drop is None:
        pytest.skip("torch cannot leave out such guards yet")
    host = tiny()
    compiled = torch.compile(host.model, backend="eager", options={"guard_filter_fn": drop})
    plain = compiled(X)
    with pytest.warns(VlmEditWarning, match="not prepared"), patch().attach(host):
        assert not torch.equal(compiled(X), plain)


@torch.no_grad()
def test_a_part_that_was_compiled_alone_or_in_a_function_is_known():
    for wrap in (
        lambda host: torch.compile(host.model.layers[1], backend="eager"),
        lambda host: torch.compile(lambda x: host.model.layers[1](x), backend="eager"),
    ):
        host = tiny()
        run = wrap(host)
        plain = run(X)
        with pytest.warns(VlmEditWarning, match="not prepared"), patch().attach(host):
            assert not torch.equal(run(X), plain)


@torch.no_grad()
def test_who_prepares_too_late_is_told_and_has_the_patches_all_the_same():
    host = tiny()
    compiled = torch.compile(host.model, backend="eager")
    plain = compiled(X)
    with pytest.warns(VlmEditWarning, match="before torch.compile"):
        host.prepare()
    compiled(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        host.prepare()
        with patch().attach(host):
            assert not torch.allclose(compiled(X), plain)


@torch.no_grad()
def test_a_site_that_was_not_named_is_not_prepared():
    host = tiny()
    host.prepare("text.1")
    compiled = torch.compile(host.model, backend="eager")
    plain = compiled(X)
    with pytest.warns(VlmEditWarning, match="not prepared"), patch("text.0").attach(host):
        assert not torch.allclose(compiled(X), plain)
    with pytest.raises(VlmEditError, match="no site 'text.9'"):
        host.prepare("text.9")


@torch.no_grad()
def test_what_is_compiled_while_all_is_off_the_host_is_compiled_anew():
    host = tiny()
    host.prepare()
    compiled = torch.compile(host.model, backend="eager")
    with pytest.warns(VlmEditWarning, match="prepare"), bare(host):
        plain = compiled(X)
    with patch().attach(host):
        assert not torch.allclose(compiled(X), plain)
    compiled(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        with bare(host):
            pass


def test_what_prepares_a_host_can_be_taken_back():
    host = tiny()
    take_back = prepare(host)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.model.modules()) == 4
    take_back()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.model.modules())
    take_back()
    prepare(host, ["text.1"])()


@torch.no_grad()
def test_a_site_at_what_a_module_is_called_with_is_prepared_too():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x.tanh())

    model = Heads()
    host = Host.of(model, adapter=Adapter.of({"joint": ("linear", "text", 4)}))
    (tap,) = host.site("joint").taps
    heads = Site("heads", (replace(tap, columns=(0, 2)),), 2)
    host._sites["heads"] = heads
    host.prepare("heads")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain = compiled(X)
    for by in (0.0, 0.0, 2.0):
        with warnings.catch_warnings():
            warnings.simplefilter("error", VlmEditWarning)
            handle = attach(host, heads, lambda hidden, _, by=by: hidden * by)
        torch.testing.assert_close(compiled(X), model(X))
        assert not torch.equal(compiled(X), plain)
        handle.remove()
        assert torch.equal(compiled(X), plain)


@torch.no_grad()
def test_what_torch_keeps_of_a_patched_host_that_is_gone_holds_nothing(clip_inputs):
    clip = make_clip()
    compiled = torch.compile(clip, backend="eager")
    compiled(**clip_inputs)
    with pytest.warns(VlmEditWarning, match="not prepared"):
        handle = attach(compiled, Host.of(clip).site("vision.1"), lambda hidden, _: hidden + 0.1)
    compiled(**clip_inputs)
    clip(**clip_inputs)
    handle.remove()
    compiled(**clip_inputs)
    del handle, compiled, clip
    gc.collect()
    kept = [
        entry.code
        for code in input_codes.seen
        if code() is not None
        for entry in _debug_get_cache_entry_list(code())
    ]
    assert None in kept
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        patch().attach(tiny()).detach()
