import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes, active_places


def codes_of(n, m, seed, density=0.3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=g) * (torch.rand(n, m, generator=g) < density)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    m=st.integers(1, 9),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    turned=st.booleans(),
)
def test_sparse_codes_hold_what_is_not_zero_and_give_the_dense_codes_back(
    n, m, seed, dtype, turned
):
    dense = codes_of(m, n, seed).to(dtype).mT if turned else codes_of(n, m, seed).to(dtype)
    codes = SparseCodes.of(dense)
    listed = [(r, f) for r in range(n) for f in range(m) if float(dense[r, f]) != 0]
    assert list(zip(codes.rows.tolist(), codes.features.tolist(), strict=True)) == listed
    assert torch.equal(codes.dense(), dense)
    assert (codes.values.dtype, len(codes), codes.n_features) == (dtype, n, m)
    assert SparseCodes.of(codes) is codes


def test_nan_and_infinity_stay():
    codes = SparseCodes.of(torch.tensor([[0.0, torch.nan, -torch.inf]]))
    assert codes.features.tolist() == [1, 2]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_top_of_codes_is_their_sparse_form_without_its_zeros(n, k, seed):
    dense = codes_of(n, 6, seed).relu()
    values, indices = dense.topk(k)
    codes = SparseCodes.of_top(values, indices, 6)
    assert torch.equal(codes.dense(), torch.zeros_like(dense).scatter(1, indices, values))
    assert (codes.values != 0).all()
    assert (codes.rows.diff() >= 0).all()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(1, 9), seed=st.integers(0, 99))
def test_entries_by_feature_are_in_one_piece_each_and_rise(n, m, seed):
    codes = SparseCodes.of(codes_of(n, m, seed))
    order, starts = codes.by_feature
    assert len(starts) == m + 1
    for feature in range(m):
        here = order[starts[feature] : starts[feature + 1]]
        assert torch.equal(here, (codes.features == feature).nonzero().flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_lie_above_their_floor_and_nan_is_never_left_out(dtype):
    hidden = torch.tensor([[0.5, 0.75, -3.0], [torch.nan, 0.0, 9.0]], dtype=dtype)
    assert active_places(hidden).tolist() == [0, 1, 2, 3, 5]
    assert active_places(hidden, 0.0).tolist() == [0, 1, 3, 5]
    floor = torch.tensor([0.5, 0.5, 9.0], dtype=dtype)
    assert active_places(hidden, floor).tolist() == [1, 3]


def test_codes_of_other_shapes_are_refused():
    with pytest.raises(VlmEditError, match=r"codes must be \[n, m\], got \(3,\)"):
        SparseCodes.of(torch.zeros(3))
    with pytest.raises(VlmEditError, match=r"must both be \[n, k\], got \(2, 3\) and \(3, 2\)"):
        SparseCodes.of_top(torch.zeros(2, 3), torch.zeros(3, 2).long(), 9)
    with pytest.raises(VlmEditError, match=r"must all be \[nnz\], got \(2,\), \(1,\)"):
        SparseCodes(torch.zeros(2), torch.zeros(1), torch.zeros(2), (1, 1))


def test_codes_move():
    codes = SparseCodes.of(codes_of(4, 5, 0))
    assert torch.equal(codes.to("cpu").dense(), codes.dense())
