import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_edit import VlmEditError
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.measures.dominance import (
    Dominance,
    DominanceAccumulator,
    GapAccumulator,
    modality_dominance,
)
from vlm_edit.measures.dominance import accumulator as room

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
EXACT = ("counts", "ratios", "levels")


def codes(n: int, m: int, seed: int, density: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, m, generator=generator)
    return values * (torch.rand(n, m, generator=generator) < density)


def equal_bits(a: Dominance, b: Dominance) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in (*EXACT, "masses"))


def test_sparse_codes_give_the_bits_of_dense_ones_also_with_features_out_of_order() -> None:
    image, text = codes(50, 9, 1).abs(), codes(50, 9, 2).abs()
    tops = [SparseCodes.of_top(*batch.topk(9), 9) for batch in (image, text)]
    assert tops[0].features.tolist() != SparseCodes.of(image).features.tolist()
    sparse, dense = modality_dominance(*tops), modality_dominance(image, text)
    assert all(torch.equal(getattr(sparse, name), getattr(dense, name)) for name in EXACT)
    assert torch.allclose(sparse.masses, dense.masses, rtol=1e-12, atol=0)


def test_sums_and_levels_are_those_of_the_definition() -> None:
    image, text = codes(70, 5, 3), codes(70, 5, 4)
    found = modality_dominance(image, text)
    a, b = image.double().abs().numpy(), text.double().abs().numpy()
    expected = [a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)]
    np.testing.assert_allclose(found.masses, expected, rtol=1e-12)
    for k in range(5):
        seen = (a[:, k] + b[:, k]) > 0
        ratio = a[seen, k] / (a[seen, k] + b[seen, k])
        levels = np.rint((2 * ratio - 1) * 16).astype(int)
        assert found.levels[k].tolist() == [int((levels == q).sum()) for q in range(-16, 17)]
        squares = float(found.ratios[1, k]) / 2**41
        assert squares == pytest.approx((ratio**2).sum(), abs=70 * 2**-42 + 1e-13)


@pytest.mark.parametrize("zeros", ["skip", "epsilon"])
def test_blocks_and_tables_of_any_size_give_the_same_bits(monkeypatch, zeros) -> None:
    image, text = codes(60, 7, 5), codes(60, 7, 6)
    whole = modality_dominance(image, text, zeros)
    for scratch, block in ((7, 1), (14, 40), (35, 97), (1, 10_000)):
        monkeypatch.setattr(room, "_SCRATCH", scratch)
        monkeypatch.setattr(room, "_BLOCK", block)
        cut = modality_dominance(image, text, zeros)
        assert all(torch.equal(getattr(cut, name), getattr(whole, name)) for name in EXACT)
        assert torch.allclose(cut.masses, whole.masses, rtol=1e-12, atol=0)


@settings(UNHURRIED, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from(["skip", "half", "epsilon"]))
def test_streamed_is_all_at_once_and_resumed_is_never_stopped(seed, at, zeros) -> None:
    image, text = codes(40, 6, seed), codes(40, 6, seed ^ 1)
    straight, first, after = (DominanceAccumulator(6, zeros) for _ in range(3))
    for part in (straight, first):
        part.update(image[:at], text[:at])
    state = first.state_dict()
    first.update(image[:1], text[:1])
    after.update(image[:3], text[:3])
    after.load_state_dict(state)
    for part in (straight, after):
        part.update(image[at:], text[at:])
    assert equal_bits(straight.compute(), after.compute())
    whole = modality_dominance(image, text, zeros)
    assert torch.equal(whole.scores.nan_to_num(-1), after.compute().scores.nan_to_num(-1))
    assert torch.allclose(whole.masses, after.compute().masses, rtol=1e-12, atol=0)


def test_the_state_of_others_is_refused() -> None:
    state = DominanceAccumulator(3).state_dict()
    for other in (DominanceAccumulator(4), DominanceAccumulator(3, "epsilon")):
        with pytest.raises(VlmEditError, match="not the state of dominance"):
            other.load_state_dict(state)
    del state["levels"]
    with pytest.raises(VlmEditError, match="levels"):
        DominanceAccumulator(3).load_state_dict(state)


def test_one_pass_gives_every_convention_it_has_seen() -> None:
    image, text = codes(40, 6, 7), codes(40, 6, 8)
    seen = modality_dominance(image, text, "epsilon")
    for zeros in ("skip", "half", "epsilon"):
        asked = modality_dominance(image, text, zeros)
        assert seen.under(zeros).scores.tolist() == asked.scores.tolist()
    with pytest.raises(VlmEditError, match="measure with zeros='epsilon'"):
        modality_dominance(image, text).under("epsilon")
    with pytest.raises(VlmEditError, match="'drop'"):
        seen.under("drop")


def test_centres_are_the_means_and_a_gap_goes_on_where_it_stopped() -> None:
    image, text = codes(30, 4, 9, 1.0) + 2, codes(30, 4, 10, 1.0)
    straight, first, after = GapAccumulator(), GapAccumulator(), GapAccumulator()
    after.load_state_dict(first.state_dict())
    for part in (straight, first):
        part.update(image[:11], text[:11])
    after.load_state_dict(first.state_dict())
    for part in (straight, after):
        part.update(image[11:], text[11:])
    assert straight.compute() == after.compute()
    for name, batch in (("image", image), ("text", text)):
        assert torch.equal(straight.means()[name], after.means()[name])
        assert torch.allclose(after.means()[name], batch.double().mean(0), rtol=1e-12)
    with pytest.raises(VlmEditError, match="not the state of a modality gap"):
        after.load_state_dict({"image": torch.ones(2, 4)})
    with pytest.raises(VlmEditError, match="not the state of a modality gap"):
        sums = torch.ones(3, 4)
        after.load_state_dict({"count": torch.tensor(1), "image": sums, "text": sums})
    with pytest.raises(VlmEditError, match="width 3 after others of 4"):
        after.update(torch.ones(1, 3), torch.ones(1, 3))
