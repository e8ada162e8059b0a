"""Plug-ins of the tracker: they follow a host's own methods, and tell what they learn of calls."""

import gc
import inspect

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, Host
from vlm_edit.hooks import StandIn, attach, followers, register_follower, tracker

ADAPTER = Adapter.of({"hidden": ("layer", "text", 4)})


class Speaker(nn.Module):
    """Encodes within a method of its own, or without."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)

    def speak(self, x):
        return self(x)


class Ear:
    """Tells calls under ``speak`` by another number of given ids than the rest."""

    def __init__(self, host):
        self.speaking, self.paths = False, []
        self.undo = [StandIn(host, "speak", self._speak).remove]

    def _speak(self, original, args, kwargs):
        self.speaking = True
        try:
            return original(*args, **kwargs)
        finally:
            self.speaking = False

    def tell(self, call, path, inputs):
        self.paths.append((path, sorted(inputs)))
        call.given = 7 if self.speaking else 5


@pytest.fixture
def ears():
    made = []

    @register_follower
    def make(root, adapter):
        if not isinstance(root, Speaker) or adapter is not ADAPTER:
            return None
        made.append(Ear(root))
        return made[-1]

    yield made
    followers._MAKERS.remove(make)


def put(model, adapter, callback):
    host = Host.of(model, adapter=adapter)
    return attach(host, host.site("hidden"), callback)


def test_a_plug_in_follows_a_method_and_tells_of_the_calls_in_it(ears):
    host, told = Speaker(), []

    def look(hidden, where):
        told.append(where.call.given)
        return hidden

    handle = attach(
        Host.of(host, adapter=ADAPTER), Host.of(host, adapter=ADAPTER).site("hidden"), look
    )
    host.speak(torch.ones(1, 2, 4))
    host(torch.ones(1, 2, 4))
    host.layer(torch.ones(1, 2, 4))
    (ear,) = ears
    assert told == [7, 5, 5]
    assert ear.paths == [("", ["x"]), ("", ["x"]), (None, [])]
    handle.remove()
    assert "speak" not in vars(host)
    host.speak(torch.ones(1, 2, 4))
    assert len(told) == len(ear.paths) == 3


def test_one_plug_in_serves_all_patches_of_a_host_and_none_serves_another(ears):
    host, other = Speaker(), nn.Sequential(nn.Linear(4, 4))
    handles = [put(host, ADAPTER, lambda hidden, _: hidden) for _ in range(2)]
    adapter = Adapter.of({"hidden": ("0", "text", 4)})
    seen = []

    def look(hidden, where):
        seen.append(where.call.given)
        return hidden

    handles.append(
        attach(
            Host.of(other, adapter=adapter), Host.of(other, adapter=adapter).site("hidden"), look
        )
    )
    other(torch.ones(1, 2, 4))
    assert len(ears) == 1
    assert seen == [None]
    for handle in handles:
        handle.remove()


def test_it_ends_with_a_host_that_is_dropped_while_patched():
    host, undone = Speaker(), []
    make = register_follower(lambda root, _: Undoing(undone) if isinstance(root, Speaker) else None)
    try:
        attach(
            Host.of(host, adapter=ADAPTER),
            Host.of(host, adapter=ADAPTER).site("hidden"),
            lambda hidden, _: hidden,
        )
    finally:
        followers._MAKERS.remove(make)
    del host, make
    gc.collect()
    assert undone == [True]


class Undoing:
    """Follows nothing, and notes that it is to end."""

    def __init__(self, undone):
        self.undo = [lambda: undone.append(True)]

    def tell(self, call, path, inputs):
        """Nothing."""


def test_the_tracker_knows_no_plug_in():
    source = inspect.getsource(tracker)
    assert "hooks.guidance" not in source
    assert "PipelineHost" not in source
    assert "branch" not in source
