from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.interpretability import BridgeAccumulator, bridge_score


def drawn(n: int = 30, m: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Signed codes of images and texts, half of them zero, and a decoder."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(2, n, m, generator=generator, dtype=torch.float64)
    codes[torch.rand(2, n, m, generator=generator) < 0.5] = 0
    return codes[0], codes[1], torch.randn(m, 4, generator=generator, dtype=torch.float64)


def by_loops(image: Tensor, text: Tensor, decoder: Tensor) -> Tensor:
    m = image.shape[1]
    found = torch.zeros(m, m, dtype=torch.float64)
    for i in range(m):
        for j in range(m):
            together = sum(float(a * b) for a, b in zip(image[:, i], text[:, j], strict=True))
            found[i, j] = together / len(image) * float(decoder[i] @ decoder[j])
    return found


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_each_entry_is_how_much_two_features_fire_together_times_how_they_align() -> None:
    image, text, decoder = drawn()
    assert close(bridge_score(image, text, decoder), by_loops(image, text, decoder))


def test_the_diagonal_alone_is_the_diagonal_of_the_whole() -> None:
    image, text, decoder = drawn()
    diagonal = bridge_score(image, text, decoder, full=False)
    assert diagonal.shape == (6,)
    assert close(diagonal, by_loops(image, text, decoder).diagonal())


def test_the_entries_sum_to_the_mean_inner_product_of_the_reconstructions() -> None:
    image, text, decoder = drawn()
    inner = ((image @ decoder) * (text @ decoder)).sum(1).mean()
    assert close(bridge_score(image, text, decoder).sum(), inner)


def test_features_in_any_order_within_a_row_give_the_same_score() -> None:
    image, text, decoder = drawn()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1)).expand(30, -1)
    mixed = [SparseCodes.of_top(c.gather(1, order), order, 6) for c in (image, text)]
    assert not bool((mixed[0].features[1:] > mixed[0].features[:-1])[:2].all())
    for full in (True, False):
        wanted = bridge_score(image, text, decoder, full=full)
        assert close(bridge_score(mixed[0], mixed[1], decoder, full=full), wanted)


def test_many_features_are_summed_in_pieces_of_rows() -> None:
    image, text, decoder = drawn(n=700, m=2000)
    pieces = 700 * 2000 / (1 << 20)
    assert pieces > 1
    found = bridge_score(image, text, decoder)
    assert torch.allclose(found, image.T @ text / 700 * (decoder @ decoder.T), atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 30), max_size=4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_cut_and_any_merge_order_gives_the_same_score(seed, cuts, full, random) -> None:
    image, text, decoder = drawn(seed=seed)
    ends = [0, *sorted(cuts), 30]
    parts = []
    for a, b in zip(ends, ends[1:], strict=False):
        parts.append(BridgeAccumulator(6, full=full))
        parts[-1].update(image[a:b], text[a:b])
    random.shuffle(parts)
    merged = BridgeAccumulator(6, full=full)
    for part in parts:
        merged.merge(part)
    assert close(merged.compute(decoder), bridge_score(image, text, decoder, full=full))


@pytest.mark.parametrize("full", [True, False])
def test_a_run_that_was_stopped_goes_on_to_the_same_bit(full: bool) -> None:
    image, text, decoder = drawn()
    whole, first, second = (BridgeAccumulator(6, full=full) for _ in range(3))
    whole.update(image[:7], text[:7])
    first.update(image[:7], text[:7])
    state = first.state_dict()
    first.update(image, text)  # the state is no view
    second.load_state_dict(state)
    for one in (whole, second):
        one.update(image[7:], text[7:])
    assert torch.equal(whole.compute(decoder), second.compute(decoder))
    third = BridgeAccumulator(6, full=full)
    third.load_state_dict(state)  # which going on from did not move
    third.update(image[7:], text[7:])
    assert torch.equal(whole.compute(decoder), third.compute(decoder))


@pytest.mark.parametrize("full", [True, False])
def test_codes_with_a_graph_are_taken_and_leave_none(full: bool) -> None:
    image, text, decoder = drawn()
    graphs = [t.clone().requires_grad_() for t in (image, text, decoder)]
    found = bridge_score(*graphs, full=full)
    assert not found.requires_grad
    assert torch.equal(found, bridge_score(image, text, decoder, full=full))


@pytest.mark.parametrize("full", [True, False])
def test_without_pairs_there_is_no_score(full: bool) -> None:
    assert BridgeAccumulator(3, full=full).compute(torch.eye(3)).isnan().all()


def test_texts_without_any_activation_give_zero() -> None:
    image, _, decoder = drawn()
    assert not bridge_score(image, torch.zeros(30, 6), decoder, full=False).any()


def test_too_many_features_for_all_pairs_are_refused_with_the_mend() -> None:
    BridgeAccumulator(4096, full=True)
    with pytest.raises(VlmEditError, match="4097 features.*full=False"):
        BridgeAccumulator(4097, full=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: BridgeAccumulator(2).update(torch.ones(2, 2), torch.ones(3, 2)),
        lambda: BridgeAccumulator(2).update(torch.ones(2, 3), torch.ones(2, 3)),
        lambda: BridgeAccumulator(2).merge(BridgeAccumulator(2, full=True)),
        lambda: BridgeAccumulator(2).compute(torch.ones(3, 2)),
        lambda: BridgeAccumulator(2).compute(torch.ones(2)),
        lambda: BridgeAccumulator(2).load_state_dict({}),
        lambda: BridgeAccumulator(2).load_state_dict(BridgeAccumulator(3).state_dict()),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(VlmEditError):
        call()
