import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_edit import VlmEditError
from vlm_edit.interpretability import TopExamples

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


def filled(codes: torch.Tensor, numbers: list[int], keep: int = 3) -> TopExamples:
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
