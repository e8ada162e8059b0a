"""Layers that hand on what they are called with: what passes, what does not run, what is left."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from tiny_hosts import FAMILIES
from torch import Tensor, nn

from vlm_edit import Host, record
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName
from vlm_edit.hooks import EarlyStop, OnHost, bypassed

LAYERS = ("vision.0", "vision.1", "vision.2")


def made(name: str) -> tuple[Host, dict[str, Any]]:
    family = FAMILIES[name]
    return Host.of(family.make()), family.inputs()


def passed(host: Host, inputs: dict[str, Any], *names: str) -> list[Tensor]:
    with torch.no_grad(), record(host, *names) as recording:
        host(**inputs)
    return [capture.hidden for capture in recording.captures]


def entering(host: Host, inputs: dict[str, Any], name: str) -> Tensor:
    """What a layer is called with, as torch says."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = host.site(name).taps[0].module.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        host(**inputs)
    handle.remove()
    return seen[0]


def ours_on(host: Host) -> list[Any]:
    tables = [(m._forward_hooks, m._forward_pre_hooks, vars(m)) for m in host.root.modules()]
    return [v for three in tables for one in three for v in one.values() if isinstance(v, OnHost)]


@pytest.mark.parametrize("name", ["clip", "llava", "qwen2_5_vl", "idefics3", "mllama"])
def test_what_enters_the_first_layer_leaves_the_last(name: str) -> None:
    host, inputs = made(name)
    expected = entering(host, inputs, "vision.0")
    with bypassed(host, *LAYERS):
        for _ in range(2):  # the second time no layer runs
            states = passed(host, inputs, *LAYERS)
            assert all(torch.equal(s.reshape(expected.shape), expected) for s in states)


def test_a_layer_runs_once_to_show_the_form_of_its_output(monkeypatch: Any) -> None:
    host, inputs = made("llava")
    layer = host.site("language.1").taps[0].module
    calls: list[int] = []
    forward = type(layer).forward

    def counted(this: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(this is layer)
        return forward(this, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", counted)
    with bypassed(host, "language.1"):
        for _ in range(3):
            passed(host, inputs, "language.1")
    assert sum(calls) == 1


def test_forwards_still_end_behind_what_is_read() -> None:
    host, inputs = made("llava")
    early = EarlyStop(host, "vision.2")
    with torch.no_grad(), bypassed(host, *LAYERS):
        early.run(inputs, rows=2)
        early.run(inputs, rows=2)
    assert early.reason is None


def test_other_threads_run_the_layers_themselves() -> None:
    host, inputs = made("llava")
    plain = passed(host, inputs, "language.2")[0]
    elsewhere: list[Tensor] = []
    with bypassed(host, *LAYERS, "language.1"):
        thread = threading.Thread(
            target=lambda: elsewhere.append(passed(host, inputs, "language.2")[0])
        )
        thread.start()
        thread.join()
        here = passed(host, inputs, "language.2")[0]
    assert torch.equal(elsewhere[0], plain)
    assert not torch.equal(here, plain)


def test_nothing_is_left_also_behind_an_exception() -> None:
    host, inputs = made("llava")
    plain = passed(host, inputs, "language.2")[0]
    with pytest.raises(ZeroDivisionError), bypassed(host, *LAYERS):
        assert len(ours_on(host)) == len(LAYERS)
        raise ZeroDivisionError
    assert not ours_on(host)
    assert torch.equal(passed(host, inputs, "language.2")[0], plain)


def test_a_copy_made_meanwhile_runs_its_layers() -> None:
    host, inputs = made("llava")
    plain = passed(host, inputs, "language.2")[0]
    with bypassed(host, *LAYERS):
        other = Host.of(copy.deepcopy(host.root))
    assert not ours_on(other)
    assert torch.equal(passed(other, inputs, "language.2")[0], plain)


class Widening(nn.Module):
    """A layer that gives out another shape than it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.norm(hidden_states)[:, 1:]


def test_a_layer_whose_output_has_another_shape_runs_on() -> None:
    host, inputs = made("siglip")
    layers = host.root.vision_model.encoder.layers
    layers[1] = Widening()
    first = entering(host, inputs, "vision.0")
    with bypassed(host, *LAYERS):
        passed(host, inputs, "vision.1")
        state = passed(host, inputs, "vision.1")[0]
    assert torch.equal(state, layers[1](first))


def test_what_is_no_layer_or_would_not_be_seen_is_refused() -> None:
    host, _ = made("clip")
    with pytest.raises(UnknownName, match="has no site 'vision.9'"), bypassed(host, "vision.9"):
        pass
    with (
        pytest.raises(BadArgument, match="is no output of a module"),
        bypassed(host, "vision.0.head.1"),
    ):
        pass
    compiled = Host.of(torch.compile(host.model, backend="eager"))
    with pytest.raises(CannotKnow, match="is compiled"), bypassed(compiled, "vision.0"):
        pass
    host.site("vision.1").taps[0].module.compile(backend="eager")
    with pytest.raises(CannotKnow, match="is compiled"), bypassed(host, "vision.0"):
        pass
