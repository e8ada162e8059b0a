"""Shares over strengths, and whether they rise."""

import pytest
import torch
from scipy.stats import spearmanr

from vlm_edit import VlmEditError
from vlm_edit.tasks.generation import Trend, spearman


def test_rank_correlation_is_scipys():
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 5, 9):
        for values in (torch.rand(size, generator=generator), torch.randint(3, (size,)).float()):
            if values.unique().numel() > 1:
                expected = spearmanr(range(size), values.numpy()).statistic
                assert spearman(values) == pytest.approx(expected)


def test_what_never_changes_has_no_trend():
    assert Trend([0.0, 1.0], torch.ones(2, 9)).monotony().value == 0


def test_a_mean_stands_between_its_bounds_and_counts_drawings():
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(3, 400, generator=generator) < torch.tensor([[0.1], [0.4], [0.9]])
    trend = Trend([0.0, 0.5, 1.0], values)
    for row, found in zip(values, trend.estimates(), strict=True):
        mean = float(row.double().mean())
        half = 1.96 * (mean * (1 - mean) / 400) ** 0.5
        assert found.value == pytest.approx(mean)
        assert found.low == pytest.approx(mean - half, abs=0.01)
        assert found.high == pytest.approx(mean + half, abs=0.01)
        assert found.n == 400
    monotony = trend.monotony()
    assert (monotony.value, monotony.low) == (1.0, 1.0)


def test_where_nothing_hits_the_interval_still_has_a_width():
    nothing, everything = Trend([0.0, 1.0], torch.tensor([[False] * 30, [True] * 30])).estimates()
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert 0.1 < nothing.high < 0.13  # about 3 / n and a bit
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low < 0.9


def test_changes_are_of_the_same_drawings_and_drawings_of_one_reference_are_one():
    generator = torch.Generator().manual_seed(3)
    hits = torch.rand(3, 30, generator=generator) < torch.tensor([[0.2], [0.3], [0.9]])
    small, large = Trend([0.0, 0.5, 1.0], hits).changes()
    assert small.value == pytest.approx(float(hits[1].double().mean() - hits[0].double().mean()))
    assert small.low < 0 < small.high and large.low > 0
    shifted = torch.rand(1, 30, generator=generator) + torch.tensor([[0.0], [0.1]])
    (change,) = Trend([0.0, 1.0], shifted + 1e-4 * torch.rand(2, 30, generator=generator)).changes()
    assert change.low > 0.09 and change.high < 0.11  # drawings differ by far more
    rows = torch.arange(30).repeat_interleave(5)
    again = Trend([0.0, 0.5, 1.0], hits[:, rows], rows)
    grouped, blind = again.changes()[1], Trend(again.strengths, again.values).changes()[1]
    assert blind.high - blind.low < 0.6 * (large.high - large.low)
    assert 0.95 < (grouped.high - grouped.low) / (large.high - large.low) < 1.1
    wide = again.estimates()[1]
    assert wide.high - wide.low >= 0.95 * (lambda e: e.high - e.low)(
        Trend([0.0, 0.5, 1.0], hits).estimates()[1]
    )


def test_a_weak_trend_has_a_wide_interval():
    values = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    found = Trend([0.0, 1.0, 2.0, 3.0], values).monotony()
    assert found.high - found.low > 0.5


@pytest.mark.parametrize(
    ("strengths", "values", "match"),
    [
        ([0.0], torch.ones(1, 3), "two or more"),
        ([1.0, 0.0], torch.ones(2, 3), "rising"),
        ([0.0, 1.0], torch.ones(3, 3), "for 2 strengths"),
        ([0.0, 1.0], torch.ones(2, 0), "drawings"),
    ],
)
def test_what_is_no_trend_is_refused(strengths, values, match):
    with pytest.raises(VlmEditError, match=match):
        Trend(strengths, values)
