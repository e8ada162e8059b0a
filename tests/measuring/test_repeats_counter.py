"""Counting what comes again in memory that does not grow: exact at first, then close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_edit.measuring.repeats import RepeatsCounter


def keys(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)


def shuffled(values: Tensor) -> Tensor:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))]


KINDS = {
    "all distinct": keys(5000),
    "five of each": keys(1000).repeat(5),
    "one text for a tenth": torch.cat([keys(4500), keys(1, 9).repeat(500)]),
}


def counted(values: Tensor, size: int) -> RepeatsCounter:
    counter = RepeatsCounter()
    for some in values.split(size):
        counter.update(some)
    return counter


def expect_equal(a: RepeatsCounter, b: RepeatsCounter) -> None:
    for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("most", [1 << 18, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exact_while_all_keys_are_kept_and_close_after(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepeatsCounter, "MOST", most)
    values = shuffled(KINDS[kind])
    counts = values.unique(return_counts=True)[1].double()
    others = float(counts.square().sum() / counts.sum()) - 1
    found = counted(values, 64).compute()
    if most > len(values):
        assert (found.distinct, found.most) == (len(counts), int(counts.max()))
        assert found.others == pytest.approx(others, abs=1e-12)
    else:
        assert found.distinct == pytest.approx(len(counts), rel=0.2)
        assert found.others == pytest.approx(others, rel=0.1, abs=0.05)


@pytest.mark.parametrize("most", [1 << 18, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_holds_depends_on_no_order_and_no_cut(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepeatsCounter, "MOST", most)
    values = KINDS[kind]
    whole = counted(values, 64)
    expect_equal(whole, counted(shuffled(values), 1000))
    parts = [counted(part, 77) for part in shuffled(values).split(1700)]
    for part in parts[1:]:
        parts[0].merge(part)
    expect_equal(whole, parts[0])
    again = RepeatsCounter()
    again.load_state_dict(whole.state_dict())
    expect_equal(whole, again)
    assert sum(t.numel() for t in whole.state_dict().values()) <= 2 * most + (1 << 14) + 2
