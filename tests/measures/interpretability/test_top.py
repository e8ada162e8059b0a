import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.interpretability import TopExamples

# Tests run beside other work: how long an example takes says nothing.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tied(n: int, m: int, seed: int) -> torch.Tensor:
    """Signed codes with many zeros and many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (n, m), generator=generator).float()


def by_full_sort(codes: torch.Tensor, numbers: list[int], keep: int) -> list[list[tuple]]:
    """The strongest first, equals by number, none that is zero."""
    found = []
    for column in codes.abs().T.tolist():
        ranked = sorted(zip(numbers, column, strict=True), key=lambda pair: (-pair[1], pair[0]))
        found.append([pair for pair in ranked if pair[1] > 0][:keep])
    return found


def listed(top: TopExamples) -> list[list[tuple[int, float]]]:
    return [top.of(feature) for feature in range(len(top.values))]


def filled(codes: torch.Tensor | SparseCodes, numbers: list[int], keep: int = 3) -> TopExamples:
    top = TopExamples(codes.shape[1], keep)
    top.update(codes, numbers)
    return top


@pytest.mark.parametrize("keep", [1, 3, 50])
def test_the_top_examples_are_those_of_a_full_sort_with_ties_by_number(keep: int) -> None:
    codes = tied(20, 6, 0)
    codes[:, 2] = 0
    numbers = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20].tolist()
    top = filled(codes, numbers, keep)
    assert listed(top) == by_full_sort(codes, numbers, keep)
    assert top.of(2) == []


@settings(UNHURRIED, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 30), max_size=5),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_any_cut_and_any_merge_order_gives_the_same_examples(seed, cuts, keep, random) -> None:
    codes, numbers = tied(30, 4, seed), list(range(30))
    ends = [0, *sorted(cuts), 30]
    parts = [filled(codes[a:b], numbers[a:b], keep) for a, b in zip(ends, ends[1:], strict=False)]
    random.shuffle(parts)
    merged = TopExamples(4, keep)
    for part in parts:
        merged.merge(part)
    whole = filled(codes, numbers, keep)
    assert torch.equal(merged.values, whole.values)
    assert torch.equal(merged.numbers, whole.numbers)


def test_an_example_that_does_not_activate_a_feature_is_never_among_its_top() -> None:
    top = filled(torch.tensor([[0.0], [2.0], [0.0]]), [0, 1, 2])
    assert top.of(0) == [(1, 2.0)]
    assert top.numbers.tolist() == [[1, -1, -1]]
    assert top.values.tolist() == [[2.0, 0.0, 0.0]]


def test_codes_are_compared_by_absolute_value() -> None:
    assert filled(torch.tensor([[-3.0], [2.0]]), [0, 1]).of(0) == [(0, 3.0), (1, 2.0)]


def test_codes_of_any_dtype_with_a_graph_are_taken() -> None:
    codes = torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16, requires_grad=True)
    top = filled(codes, [0, 1])
    assert top.values.dtype == torch.float32
    assert not top.values.requires_grad
    assert top.of(0) == [(1, 2.0), (0, 1.0)]


def test_a_batch_of_no_examples_changes_nothing() -> None:
    top = filled(torch.tensor([[1.0]]), [4])
    top.update(torch.zeros(0, 1), [])
    assert top.of(0) == [(4, 1.0)]
    assert top.numbers.dtype == torch.int64


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2,), (2, 2, 1)])
def test_codes_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VlmEditError, match=r"codes of 2 examples must be \[2, 2\]"):
        TopExamples(2).update(torch.ones(shape), [0, 1])


@pytest.mark.parametrize("other", [TopExamples(3, 4), TopExamples(2, 5), TopExamples(2, 3)])
def test_accumulators_of_other_sizes_do_not_merge(other: TopExamples) -> None:
    with pytest.raises(VlmEditError, match="2 features.*keep 4"):
        TopExamples(2, 4).merge(other)


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_example_must_be_kept(keep: int) -> None:
    with pytest.raises(VlmEditError, match=f"keep is {keep}"):
        TopExamples(2, keep)


def by_streamed_topk(codes: torch.Tensor, keep: int, batch: int) -> torch.Tensor:
    """What a user writes by hand: the top of each batch and of what was kept."""
    best = torch.zeros(codes.shape[1], keep)
    for part in codes.abs().split(batch):
        best = torch.cat([best, part.mT], 1).topk(keep, dim=1).values
    return best


def sparse_codes(n: int, m: int, k: int, seed: int = 0) -> SparseCodes:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(m, generator=generator)[:k] for _ in range(n)])
    return SparseCodes.of_top(torch.rand(n, k, generator=generator) + 0.01, indices, m)


@pytest.mark.parametrize("step", [1, 97, 3000])
def test_what_waits_to_be_sorted_is_sorted_in_when_it_is_much(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr("vlm_edit.measures.interpretability.top._WAITING", 500)
    codes = sparse_codes(3000, 40, 8)
    dense, top = codes.dense(), TopExamples(40, 10)
    for start in range(0, 3000, step):
        end = min(start + step, 3000)
        top.update(dense[start:end], range(start, end))
        assert top._n_waiting < 500
    assert torch.equal(top.values, by_streamed_topk(dense, 10, 256))
    assert torch.equal(dense.abs()[top.numbers, torch.arange(40)[:, None]], top.values)


def test_memory_does_not_grow_with_the_examples() -> None:
    top = TopExamples(64, 5)
    for seed in range(40):
        top.update(sparse_codes(300, 64, 16, seed), range(seed * 300, seed * 300 + 300))
        held = sum(t.numel() for part in top._waiting for t in part)
        assert held <= 3 * (1 << 16) + 3 * 300 * 16


def test_sparse_codes_give_what_dense_codes_give() -> None:
    codes = sparse_codes(200, 30, 7)
    assert listed(filled(codes, list(range(200)))) == listed(
        filled(codes.dense(), list(range(200)))
    )


def test_a_run_that_was_stopped_goes_on_to_the_same_bit() -> None:
    codes = tied(60, 4, 3)
    whole, first, second = TopExamples(4, 5), TopExamples(4, 5), TopExamples(4, 5)
    whole.update(codes, range(60))
    first.update(codes[:25], range(25))
    state = first.state_dict()
    first.update(codes[25:40] * 9, range(25, 40))  # the state is no view
    assert first.of(0) != whole.of(0)  # once it is sorted in
    second.update(codes[:3] * 9, range(3))  # and loading forgets what was there
    second.load_state_dict(state)
    second.update(codes[25:], range(25, 60))
    assert torch.equal(second.values, whole.values)
    assert torch.equal(second.numbers, whole.numbers)
    third = TopExamples(4, 5)
    third.load_state_dict(state)  # which going on from did not move
    third.update(codes[25:], range(25, 60))
    assert listed(third) == listed(whole)
    assert {name: t.dtype for name, t in state.items()} == {
        "values": torch.float32,
        "numbers": torch.int64,
    }


def test_merging_leaves_the_other_as_it_was_and_shares_nothing_with_it() -> None:
    one, other = filled(tied(20, 3, 0), list(range(20))), TopExamples(3, 3)
    before = listed(one)
    other.merge(one)
    other.update(tied(20, 3, 1) * 9, range(20, 40))
    assert listed(one) == before != listed(other)


def test_activations_that_are_not_numbers_are_never_top() -> None:
    top = filled(torch.tensor([[float("nan")], [1.0], [float("inf")]]), [0, 1, 2])
    assert top.of(0) == [(2, float("inf")), (1, 1.0)]


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(VlmEditError, match="number -2"):
        TopExamples(1).update(torch.ones(2, 1), [3, -2])
    with pytest.raises(VlmEditError, match="number -1"):
        TopExamples(1).update(torch.ones(2, 1), [3, -1])


@pytest.mark.parametrize("state", [{}, TopExamples(3, 4).state_dict(), {"values": torch.ones(2)}])
def test_a_state_of_another_size_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(VlmEditError, match=r"must be \(2, 4\)"):
        TopExamples(2, 4).load_state_dict(state)
