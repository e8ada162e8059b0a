import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.interpretability import (
    SimilarityAccumulator,
    monosemanticity_score,
    multimodal_monosemanticity,
    multimodal_monosemanticity_score,
)

Example = tuple[Tensor, Tensor]


def drawn(n: int = 40, m: int = 6, width: int = 5, seed: int = 0) -> Example:
    """Signed codes, two thirds of them zero, and embeddings of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, m, generator=generator, dtype=torch.float64)
    codes[torch.rand(n, m, generator=generator) < 0.66] = 0
    embeddings = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return codes, embeddings * 10 ** torch.randn(n, 1, generator=generator, dtype=torch.float64)


def by_double_loop(a: list[float], b: list[float], ea: Tensor, eb: Tensor, same: bool) -> float:
    above = below = 0.0
    for i in range(len(a)):
        for j in range(len(b)):
            if not (same and i == j):
                weight = a[i] * b[j]
                above += weight * float(torch.cosine_similarity(ea[i], eb[j], dim=0))
                below += weight
    return above / below if below else math.nan


def ms_by_double_loop(codes: Tensor, embeddings: Tensor) -> list[float]:
    found = []
    for column in codes.abs().T:
        low, high = column.min(), column.max()
        scaled = ((column - low) / (high - low)).tolist() if high > low else [0.0] * len(column)
        found.append(by_double_loop(scaled, scaled, embeddings, embeddings, True))
    return found


def filled(codes: Tensor, embeddings: Tensor) -> SimilarityAccumulator:
    found = SimilarityAccumulator(codes.shape[1], embeddings.shape[1])
    found.update(codes, embeddings)
    return found


def close(found: Tensor, wanted: Tensor | list[float], within: float = 1e-12) -> bool:
    expected = torch.as_tensor(wanted, dtype=torch.float64)
    return torch.allclose(found, expected, rtol=within, atol=within, equal_nan=True)


@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_the_weighted_mean_cosine_of_all_pairs(seed: int, shift: float) -> None:
    codes, embeddings = drawn(seed=seed)
    codes = codes + shift
    found = monosemanticity_score(codes, embeddings)
    assert close(found, ms_by_double_loop(codes, embeddings), 1e-10)
    assert not found.isnan().any()


def test_the_multimodal_score_within_a_stream_leaves_out_each_example_with_itself() -> None:
    codes, embeddings = drawn()
    wanted = [by_double_loop(a, a, embeddings, embeddings, True) for a in codes.abs().T.tolist()]
    assert close(multimodal_monosemanticity_score(codes, embeddings), wanted)


def test_the_multimodal_score_across_streams_takes_all_pairs() -> None:
    (a, ea), (b, eb) = drawn(), drawn(n=25, seed=1)
    columns = zip(a.abs().T.tolist(), b.abs().T.tolist(), strict=True)
    wanted = [by_double_loop(x, y, ea, eb, False) for x, y in columns]
    assert close(multimodal_monosemanticity_score(a, ea, b, eb), wanted)


def test_the_multimodal_score_does_not_shift_activations_by_their_minimum() -> None:
    codes, embeddings = drawn()
    codes = codes.abs() + 1
    shifted = monosemanticity_score(codes, embeddings)
    as_they_are = multimodal_monosemanticity_score(codes, embeddings)
    assert bool(((shifted - as_they_are).abs() > 1e-3).all())


@pytest.mark.parametrize("small", [1e-5, 1e-8])
def test_one_example_that_outweighs_the_others_does_not_cancel_them(small: float) -> None:
    codes = torch.full((20, 1), small, dtype=torch.float64)
    codes[3], codes[4] = 1.0, 0.0
    _, embeddings = drawn(20)
    assert close(
        monosemanticity_score(codes, embeddings), ms_by_double_loop(codes, embeddings), 1e-6
    )


def test_what_float64_does_not_resolve_is_not_a_number() -> None:
    codes = torch.tensor([[1.0], [1e-15], [0.0]], dtype=torch.float64)
    _, embeddings = drawn(3)
    assert monosemanticity_score(codes, embeddings).isnan().all()
    assert multimodal_monosemanticity_score(codes, embeddings).isnan().all()


def test_constant_dead_and_lone_features_have_no_score() -> None:
    codes = torch.tensor([[0.1, 0, 2, 0.3], [0.1, 0, 0, 0.3], [0.1, 0, 0, 0.7]])
    _, embeddings = drawn(3)
    assert monosemanticity_score(codes, embeddings).isnan().all()
    within = multimodal_monosemanticity_score(codes, embeddings)
    assert within.isnan().tolist() == [False, True, True, False]
    across = multimodal_monosemanticity_score(codes, embeddings, codes, embeddings)
    assert across.isnan().tolist() == [False, True, False, False]


def test_two_examples_above_the_minimum_are_enough() -> None:
    codes = torch.tensor([[1.0], [2.0], [3.0]])
    embeddings = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 4.0]])
    assert close(monosemanticity_score(codes, embeddings), [0.6])


def test_without_examples_nothing_has_a_score() -> None:
    empty = SimilarityAccumulator(2, 3)
    empty.update(torch.zeros(0, 2), torch.zeros(0, 3))
    assert empty.compute().isnan().all()
    assert multimodal_monosemanticity(empty).isnan().all()
    assert multimodal_monosemanticity(empty, empty).isnan().all()


def scores(found: SimilarityAccumulator) -> Tensor:
    return torch.stack([found.compute(), multimodal_monosemanticity(found)])


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from([0.0, 2.0]),
    st.randoms(use_true_random=False),
)
def test_any_cut_and_any_merge_order_gives_the_same_scores(seed, cuts, shift, random) -> None:
    codes, embeddings = drawn(seed=seed)
    codes = codes.abs() + shift
    whole = filled(codes, embeddings)
    ends = [0, *sorted(cuts), len(codes)]
    slices = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    streamed = SimilarityAccumulator(6, 5)
    for part in slices:
        streamed.update(codes[part], embeddings[part])
    random.shuffle(slices)
    merged = SimilarityAccumulator(6, 5)
    for part in slices:
        merged.merge(filled(codes[part], embeddings[part]))
    assert close(scores(streamed), scores(whole))
    assert close(scores(merged), scores(whole))


def test_what_is_known_of_each_feature_merges_exactly() -> None:
    codes, embeddings = drawn()
    codes[:, 0] = codes[:, 0].abs() + 2  # never silent
    codes[5:8, 0] = 2  # at its minimum in one part only
    whole, merged = filled(codes, embeddings), SimilarityAccumulator(6, 5)
    for part in (slice(20, 40), slice(0, 20)):
        merged.merge(filled(codes[part], embeddings[part]))
    state = whole.state_dict()
    assert 3 <= int(state["at_low"][0]) < 40
    for name in ("low", "high", "at_low", "active", "n"):
        assert torch.equal(merged.state_dict()[name], state[name]), name


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("falling", [False, True])
def test_features_that_no_example_leaves_silent_have_a_score_in_batches_of_one(
    merged, falling
) -> None:
    _, embeddings = drawn(12, 3)
    codes = torch.rand(12, 3, generator=torch.Generator().manual_seed(1)).double() + 0.5
    codes = codes.sort(0, descending=falling).values  # each example a new minimum, or none
    assert all(len(column.unique()) == 12 for column in codes.T)
    found = SimilarityAccumulator(3, 5)
    for code, embedding in zip(codes.split(1), embeddings.split(1), strict=True):
        if merged:
            found.merge(filled(code, embedding))
        else:
            found.update(code, embedding)
    expected = ms_by_double_loop(codes, embeddings)
    assert not any(math.isnan(score) for score in expected)
    assert close(found.compute(), expected)


def test_small_differences_on_a_large_offset_are_right_or_not_a_number() -> None:
    codes, embeddings = drawn()
    for offset in (1e3, 1e5, 1e7, 1e9):
        found = filled(codes.abs() + offset, embeddings).compute()
        wanted = torch.tensor(ms_by_double_loop(codes, embeddings), dtype=torch.float64)
        assert bool((found.isnan() | ((found - wanted).abs() < 0.05)).all()), offset
        assert found.isnan().all() == (offset >= 1e7), offset


def test_codes_that_stayed_sparse_give_the_same_scores() -> None:
    codes, embeddings = drawn()
    sparse = SparseCodes.of(codes)
    shuffled = torch.cat([torch.randperm(int(n)) for n in sparse.rows.bincount()])
    starts = sparse.rows.bincount().cumsum(0) - sparse.rows.bincount()
    order = shuffled + starts[sparse.rows]
    mixed = SparseCodes(
        sparse.rows, sparse.features[order], sparse.values[order], sparse.shape
    )  # features in any order within a row
    found = SimilarityAccumulator(6, 5)
    found.update(mixed, embeddings)
    assert close(scores(found), scores(filled(codes, embeddings)))


def test_a_run_that_was_stopped_goes_on_to_the_same_bit() -> None:
    codes, embeddings = drawn()
    whole, first, second = (SimilarityAccumulator(6, 5) for _ in range(3))
    for part in (slice(0, 11), slice(11, 40)):
        whole.update(codes[part], embeddings[part])
    first.update(codes[:11], embeddings[:11])
    state = first.state_dict()
    first.update(codes[:11], embeddings[:11])  # the state is no view
    second.load_state_dict(state)
    second.update(codes[11:], embeddings[11:])
    third = SimilarityAccumulator(6, 5)
    third.load_state_dict(state)  # which going on from did not move
    third.update(codes[11:], embeddings[11:])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.equal(tensor, third.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_is_summed_in_float64(dtype: torch.dtype) -> None:
    codes, embeddings = (t.clamp(-100, 100).to(dtype) for t in drawn())
    found = monosemanticity_score(codes.requires_grad_(), embeddings.requires_grad_())
    assert found.dtype == torch.float64 and not found.requires_grad
    assert close(found, ms_by_double_loop(codes.detach().double(), embeddings.detach().double()))


@pytest.mark.parametrize("length", [1e-200, 1e-30, 1e200])
def test_embeddings_of_any_length_count_by_their_direction(length: float) -> None:
    codes, embeddings = drawn()
    scaled = monosemanticity_score(codes, embeddings * length)
    assert close(scaled, monosemanticity_score(codes, embeddings))


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_an_embedding_without_direction_is_refused(wrong: float) -> None:
    codes, embeddings = drawn()
    embeddings[7] = wrong
    with pytest.raises(VlmEditError, match="embedding of example 7 is zero or not finite.*1 of 40"):
        monosemanticity_score(codes, embeddings)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_activations_that_are_no_numbers_are_refused(wrong: float) -> None:
    codes, embeddings = drawn()
    codes[3, 2] = wrong
    with pytest.raises(VlmEditError, match="NaN or infinity"):
        monosemanticity_score(codes, embeddings)


@pytest.mark.parametrize(
    "call",
    [
        lambda: SimilarityAccumulator(3, 0),
        lambda: filled(torch.ones(2, 3), torch.ones(3, 3)),
        lambda: SimilarityAccumulator(3, 2).update(torch.ones(2, 2), torch.ones(2, 2)),
        lambda: SimilarityAccumulator(3, 2).update(torch.ones(2, 3), torch.ones(2, 3)),
        lambda: SimilarityAccumulator(3, 2).merge(SimilarityAccumulator(3, 1)),
        lambda: SimilarityAccumulator(3, 2).load_state_dict({}),
        lambda: SimilarityAccumulator(3, 2).load_state_dict(
            SimilarityAccumulator(2, 2).state_dict()
        ),
        lambda: multimodal_monosemanticity(
            SimilarityAccumulator(3, 2), SimilarityAccumulator(3, 1)
        ),
        lambda: multimodal_monosemanticity_score(
            torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 3)
        ),
        lambda: monosemanticity_score(torch.ones(2, 3), torch.ones(2)),
        lambda: monosemanticity_score(torch.ones(2), torch.ones(2, 2)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(VlmEditError):
        call()
