"""Sparse encoding against the dense one, and the exact top k against torch.topk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Dictionary, VlmEditError
from vlm_edit.dictionaries import Encoder, encoder
from vlm_edit.dictionaries.topk import top_k
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.modality import Mixed

D, M = 6, 160
ACTIVATIONS = ("relu", "jumprelu", "topk", "identity")


def make(activation, centers=("image", "text"), seed=0):
    g = torch.Generator().manual_seed(seed)
    part = Encoder(
        torch.randn(D, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        threshold=torch.randn(M, generator=g) if activation == "jumprelu" else None,
        k=8 if activation == "topk" else None,
        subtract=torch.randn(D, generator=g),
        norm="layer_norm",
        centers={stream: torch.randn(D, generator=g) for stream in centers},
    )
    return Dictionary(part, torch.randn(M, D, generator=g), torch.randn(D, generator=g))


def same(a: SparseCodes, b: SparseCodes) -> bool:
    return a.shape == b.shape and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("rows", "features", "values")
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stream", ["image", "mixed"])
@pytest.mark.parametrize("n", [0, 1, 7, 33])
def test_sparse_codes_are_the_dense_codes_to_the_bit(activation, stream, n, monkeypatch):
    monkeypatch.setattr(encoder, "_SCRATCH", 5 * M)
    monkeypatch.setattr(encoder, "_ROWS", 5)  # several cuts, the last one shorter
    dictionary = make(activation)
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(n)).half()
    if stream == "mixed":
        stream = Mixed.of(image=torch.arange(n) % 2 == 0)
    found = dictionary.encode_sparse(x, stream)
    assert same(found, SparseCodes.of(dictionary.encode(x, stream)))


def test_of_the_k_largest_those_below_zero_are_dropped():
    part = Encoder(torch.eye(4), torch.zeros(4), "topk", k=3)
    codes = part.sparse(torch.tensor([[-1.0, 2.0, -3.0, 0.0]]))
    assert (codes.features.tolist(), codes.values.tolist()) == ([1], [2.0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_kept_so_that_it_can_be_refused_later(activation):
    x = torch.full((2, D), torch.nan)
    dense = make(activation).encode(x, "text")
    assert dense.isnan().any()
    assert make(activation).encode_sparse(x, "text").values.isnan().sum() == dense.isnan().sum()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_flow_through_dense_codes_as_before(activation):
    dictionary = make(activation)
    x = torch.randn(4, 3, D, generator=torch.Generator().manual_seed(0))
    plain = dictionary.encode(x, "text")
    x.requires_grad_()
    followed = dictionary.encode(x, "text")
    torch.testing.assert_close(followed.detach(), plain)
    followed.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@settings(max_examples=80, deadline=None)
@given(
    m=st.integers(1, 40).map(lambda count: 8 * count) | st.integers(1, 300),
    share=st.floats(0.001, 1),
    seed=st.integers(0, 999),
    whole=st.booleans(),
)
def test_the_largest_are_those_of_torch_also_among_ties(m, share, seed, whole):
    k = max(1, int(m * share))
    hidden = torch.randn(5, m, generator=torch.Generator().manual_seed(seed))
    hidden = hidden.round() if whole else hidden  # whole numbers: nearly all are ties
    values, columns = top_k(hidden, k)
    assert torch.equal(values.sort().values, hidden.topk(k).values.sort().values)
    assert torch.equal(hidden.gather(-1, columns), values)
    assert all(len(set(row.tolist())) == k for row in columns)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_codes_decode_as_dense_ones_do(activation):
    dictionary = make(activation)
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    codes = dictionary.encode_sparse(x, "text")
    torch.testing.assert_close(
        dictionary.decode(codes), dictionary.decode(codes.dense()), rtol=1e-5, atol=1e-5
    )


def test_examples_without_an_active_feature_decode_to_the_bias():
    dictionary = make("relu")
    codes = SparseCodes.of(torch.zeros(3, M).index_fill(0, torch.tensor([1]), 1.0))
    decoded = dictionary.decode(codes)
    assert torch.equal(decoded[0], dictionary.decoder_bias)
    assert torch.equal(decoded[2], dictionary.decoder_bias)
    torch.testing.assert_close(decoded[1], dictionary.decoder.sum(0) + dictionary.decoder_bias)
    assert dictionary.decode(SparseCodes.of(torch.zeros(0, M))).shape == (0, D)


def test_what_does_not_fit_is_refused():
    with pytest.raises(VlmEditError, match=r"sparsely are \[n, d\], got \(2, 3, 6\)"):
        make("relu").encode_sparse(torch.zeros(2, 3, D), "text")
    with pytest.raises(VlmEditError, match="width 7 meet a dictionary of width 6"):
        make("relu").encode_sparse(torch.zeros(2, 7), "text")
    for codes in (torch.ones(2, 3), SparseCodes.of(torch.ones(2, 3))):
        with pytest.raises(VlmEditError, match=r"codes of 3 features .* dictionary of 160"):
            make("relu").decode(codes)
