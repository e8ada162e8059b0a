"""How large activations are, against the codes themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures import sizes as module
from vlm_edit.measures.sizes import CELLS, ActivationSizes

ERROR = 1 / 64


def codes(n: int = 3000, m: int = 12, seed: int = 0) -> torch.Tensor:
    """Codes of every kind: about half of them zero, of scales from 1e-6 to 1e6."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, m, generator=generator).relu()
    return values * torch.logspace(-6, 6, m)


def counted(*parts: torch.Tensor) -> ActivationSizes:
    sizes = ActivationSizes(parts[0].shape[1])
    for part in parts:
        sizes.update(part)
    return sizes


def brute(values: torch.Tensor, level: float) -> list[float]:
    """numpy's own quantile by nearest rank, of the active tokens."""
    return [
        float(np.quantile(column[column > 0], level, method="inverted_cdf"))
        for column in values.abs().double().T.numpy()
    ]


def same(one: ActivationSizes, other: ActivationSizes) -> None:
    for name in ("counts", "largest"):
        assert torch.equal(one.state_dict()[name].long(), other.state_dict()[name].long())
    assert torch.allclose(one.sums, other.sums, rtol=1e-12)


@pytest.mark.parametrize("level", [0.25, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_quantile_is_that_of_the_codes_to_a_64th(level: float) -> None:
    values = codes()
    found, truth = counted(values).quantile(level).tolist(), brute(values, level)
    assert found == pytest.approx(truth, rel=ERROR)
    if level == 1.0:
        assert found == truth


def test_the_error_is_as_large_as_said_and_no_larger() -> None:
    """At the low end of a power of two cells are widest."""
    values = torch.cat([1 + torch.arange(2000.0) / 2000, torch.tensor([1.99])])[:, None]
    worst = 0.0
    for level in torch.linspace(0.0005, 0.9995, 500).tolist():
        truth = brute(values, level)[0]
        worst = max(worst, abs(float(counted(values).quantile(level)) / truth - 1))
    assert ERROR / 2 < worst <= ERROR


def test_mean_and_largest_are_those_of_active_tokens() -> None:
    values = codes()
    sizes = counted(values)
    active = values > 0
    assert sizes.active.tolist() == active.sum(0).tolist()
    assert torch.equal(sizes.largest, values.amax(0))
    expected = values.double().sum(0) / active.sum(0)
    assert torch.allclose(sizes.mean, expected, rtol=1e-9)


@pytest.mark.parametrize("cut", [[3000], [1] * 40 + [2960], [1000, 0, 2000], [2999, 1]])
def test_it_does_not_matter_how_tokens_are_cut_or_in_which_order(cut: list[int]) -> None:
    values = codes()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(5))
    same(counted(*values[order].split(cut)), counted(values))


def test_merging_is_counting_all_in_any_order() -> None:
    # Rising, so that what one has counted falls below the window of the other.
    values = codes(900) * torch.logspace(-8, 8, 900)[:, None]
    parts = [counted(part) for part in values.split(300)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        merged = ActivationSizes(12)
        for i in order:
            merged.merge(parts[i])
        same(merged, counted(values))
    same(parts[0].together(parts[2]), counted(values[:300], values[600:]))
    same(parts[0], counted(values[:300]))  # together leaves both alone


def test_going_on_from_a_state_is_as_if_nothing_had_happened() -> None:
    values = codes()
    first = counted(values[:700])
    again = ActivationSizes(12)
    again.load_state_dict(first.state_dict())
    again.update(values[700:])
    same(again, counted(values))
    same(first, counted(values[:700]))
    with pytest.raises(VlmEditError, match="sizes of activations must be"):
        ActivationSizes(11).load_state_dict(first.state_dict())


def test_sparse_codes_signs_and_halves_count_alike() -> None:
    values = codes(200)
    flipped = values * torch.where(torch.rand(200, 12) < 0.5, -1.0, 1.0)
    same(counted(flipped), counted(values))
    sparse = ActivationSizes(12)
    sparse.update(SparseCodes.of(values))
    same(sparse, counted(values))
    half = values[:, 5:6].bfloat16()
    same(counted(half), counted(half.float()))


def test_what_lies_far_below_the_largest_is_counted_but_has_no_quantile() -> None:
    sizes = counted(torch.cat([torch.full((90, 1), 1e-3), torch.full((10, 1), 1.0)]))
    assert sizes.active.tolist() == [100]
    assert math.isnan(sizes.quantile(0.9))
    assert float(sizes.quantile(0.91)) == 1.0
    near = counted(torch.cat([torch.full((90, 1), 1 / 15), torch.full((10, 1), 1.0)]))
    assert float(near.quantile(0.9)) == pytest.approx(1 / 15, rel=ERROR)


def test_a_dead_feature_has_neither_mean_nor_quantile() -> None:
    sizes = counted(torch.tensor([[0.0, 2.0]]))
    assert math.isnan(sizes.quantile(0.5)[0]) and math.isnan(sizes.mean[0])
    assert float(sizes.quantile(0.5)[1]) == 2.0


@pytest.mark.parametrize("level", [0.0, -0.1, 1.01, float("nan")])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    with pytest.raises(VlmEditError, match="a quantile lies above 0 and up to 1"):
        counted(codes(10)).quantile(level)


def test_codes_of_another_dictionary_are_refused() -> None:
    sizes = counted(codes(10))
    with pytest.raises(VlmEditError, match="codes of 5 features, and 12 counted"):
        sizes.update(torch.ones(2, 5))
    with pytest.raises(VlmEditError, match="5 features do not merge with 12"):
        sizes.merge(ActivationSizes(5))


def test_more_than_an_int32_holds_are_counted_in_int64(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = counted(codes())
    assert narrow.state_dict()["counts"].dtype == torch.int32
    assert narrow.state_dict()["counts"].shape == (12, CELLS)
    monkeypatch.setattr(module, "_MOST", 100)
    wide = counted(*codes().split(500))
    assert wide.state_dict()["counts"].dtype == torch.int64
    same(wide, narrow)
    again = ActivationSizes(12)
    again.load_state_dict(wide.state_dict())
    wide.merge(narrow)
    again.merge(narrow)
    same(wide, again)


@pytest.mark.parametrize("bins", [1, 16, 128])
def test_counts_by_size_are_those_of_the_codes_between_the_same_edges(bins: int) -> None:
    values = codes()
    counts = counted(values).by_size(bins)
    # A float32 with 18 bits cut off is the lower edge of its cell.
    bits = values.numpy().view(np.int32) >> 18
    for k in range(values.shape[1]):
        active = bits[:, k][values.numpy()[:, k] > 0]
        below = np.minimum((active.max() - active) // (CELLS // bins), bins - 1)
        assert counts[k].tolist() == np.bincount(below, minlength=bins).tolist()


def test_bins_that_do_not_divide_the_cells_are_refused() -> None:
    for bins in (0, 3, 256):
        with pytest.raises(VlmEditError, match=f"{bins} bins: use a power of 2"):
            counted(codes(10)).by_size(bins)
