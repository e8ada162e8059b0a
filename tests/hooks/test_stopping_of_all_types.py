"""Forwards that end behind a site, in every type of host: what is read is as in a whole forward.

Of each type its first, middle and last sites and the parts of one layer are read; all sites with
``VLM_EDIT_ALL_SITES=1``.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from any_hosts import TYPES, AnyHost, NotBuilt, build
from any_hosts.checks import ROWS
from any_hosts.hosts import taken
from torch import Tensor

from vlm_edit import Host, VlmEditError, record
from vlm_edit.hooks import Capture, EarlyStop

ALL = os.environ.get("VLM_EDIT_ALL_SITES") == "1"


def flat(output: Any) -> list[Tensor]:
    """All tensors that a host says, caches and what else is no tensor aside."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for part in output for t in flat(part)] if isinstance(output, (list, tuple)) else []


def said(host: AnyHost, inputs: dict[str, Any]) -> list[Tensor]:
    more = {"use_cache": False} if "use_cache" in taken(host.model) else {}
    return flat(host.model(**inputs, **more))


def selected(capture: Capture) -> list[Any]:
    """Which tokens are whose at a capture, or why nobody knows."""
    answers: list[Any] = []
    for choice in ("image", "text+special", "all"):
        try:
            answers.append(capture.tokens.select(choice))
        except VlmEditError as error:
            answers.append(str(error))
    return answers


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def captured(
    host: Host, inputs: dict[str, Any], names: tuple[str, ...], early: EarlyStop | None = None
) -> list[list[Any]]:
    """What passes in a forward, by site and stream, and whose tokens it is."""
    with record(host, *names) as recording:
        if early is None:
            host.run(inputs)
        else:
            early.run(inputs, len(ROWS))
        return [[c.site, c.tokens.stream, c.hidden, *selected(c)] for c in recording.captures]


def pass_once(host: Host, names: tuple[str, ...], whole: list[list[Any]]) -> bool:
    """Whether each tap passes once in a whole forward."""
    counts = Counter((site, stream) for site, stream, *_ in whole)
    taps = [(name, tap.stream) for name in names for tap in host.site(name).taps]
    return all(counts[tap] == 1 for tap in taps)


def groups(host: Host) -> list[tuple[str, ...]]:
    """Sites to read, alone and several at once."""
    names = [name for name, site in host.sites.items() if site.dead is None]
    chosen = names if ALL else sorted({names[0], names[len(names) // 2], names[-1]})
    layer = next((name for name in reversed(names) if host.inside(name)), None)
    parts = [*host.inside(layer)] if layer else []
    chosen += parts if ALL else parts[:: max(1, len(parts) - 1)]
    return [*((name,) for name in chosen), (names[0], names[-1])]


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_forward_that_is_ended_shows_the_bits_of_a_whole_one(model_type: str) -> None:
    warnings.simplefilter("ignore")
    try:
        host = build(model_type)
    except NotBuilt as reason:
        pytest.skip(str(reason))
    ours, inputs = Host.of(host.model), host.inputs(ROWS)
    before = said(host, inputs)
    ended = 0
    for names in groups(ours):
        whole = captured(ours, inputs, names)
        early = EarlyStop(ours, *names)
        for turn in ("the first", "the second"):
            read = captured(ours, inputs, names, early)
            assert same(read, whole), (turn, names)
        assert (early.reason is None) == pass_once(ours, names, whole), (names, early.reason)
        ended += early.reason is None
    assert ended
    assert same(said(host, inputs), before)
