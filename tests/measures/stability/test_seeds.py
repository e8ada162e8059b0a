"""Dictionaries that are known to share some features, and to lack the others."""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, Encoder, match_features
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.dominance import CLASSES, modality_dominance
from vlm_edit.measures.stability import agreement, class_numbers, stability_of_seeds
from vlm_edit.report import stability_table

pytest.importorskip("scipy")
D, M = 16, 6


def tied(rows: Tensor) -> Dictionary:
    rows = F.normalize(rows, dim=1)
    return Dictionary(Encoder(rows.T.contiguous(), torch.zeros(len(rows))), rows, torch.zeros(D))


def rows(seed: int) -> Tensor:
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed))


def streams() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    image, text = (torch.randn(400, D, generator=generator) for _ in range(2))
    text *= torch.linspace(0.01, 2.5, D).roll(5)
    return {"image": image, "text": text}


def test_of_all_orders_the_one_with_the_largest_sum_is_found() -> None:
    one, other = tied(rows(0)), tied(rows(1))
    for by in ("decoder", "correlation"):
        order, alike = match_features(one, other, streams(), by)
        if by == "decoder":
            table = one.decoder @ other.decoder.T
        else:
            codes = [
                torch.cat([d.encode(x) for x in streams().values()]).double() for d in (one, other)
            ]
            table = torch.corrcoef(torch.cat(codes, 1).T)[:M, M:].float()
        best = max(permutations(range(M)), key=lambda p: float(table[range(M), p].sum()))
        assert order.tolist() == list(best)
        assert torch.allclose(alike, table[range(M), order], atol=1e-5)


def test_what_recurs_is_as_similar_and_of_the_same_class_in_every_dictionary() -> None:
    shared = rows(0)
    second = torch.cat([shared[:3], rows(1)[3:]]).flip(0)
    third = torch.cat([shared[:2], -shared[2:3], rows(2)[3:]])
    found = stability_of_seeds([tied(shared), tied(second), tied(third)], streams(), rule="fixed")
    assert set(found.recurring) <= {0, 1}
    known = [modality_dominance(*(tied(w).encode(streams()[s]) for s in ("image", "text")))
             for w in (shared, second, third)]  # fmt: skip
    numbers = [class_numbers(dominance, "fixed") for dominance in known]
    assert found.recurring == [
        k for k in (0, 1) if numbers[0][k] == numbers[1][M - 1 - k] == numbers[2][k] != 4
    ]
    assert len(found.pairs) == 3
    assert [pair.numbers for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.pairs[0].matched == pytest.approx(0.5)
    strict = stability_of_seeds([tied(shared), tied(second)], streams(), least=1.1)
    assert strict.recurring == [] and strict.pairs[0].close is None


def test_figures_of_two_dictionaries_are_those_of_the_matched_features() -> None:
    first, second = tied(rows(0)), tied(rows(0) + 0.7 * rows(1))
    found = stability_of_seeds([first, second], streams(), rule="sd").pairs[0]
    order, alike = match_features(first, second)
    known = [modality_dominance(*(d.encode(streams()[s]) for s in ("image", "text")))
             for d in (first, second)]  # fmt: skip
    one, other = (class_numbers(dominance, "sd") for dominance in known)
    other = other[order]
    assert repr(found.agreement) == repr(agreement(one, other))
    close = alike >= 0.7
    assert int(close.sum()) > 0
    assert repr(found.close) == repr(agreement(one[close], other[close]))
    assert found.similarity == pytest.approx(float(alike.mean()))
    pair = torch.stack([known[0].scores, known[1].scores[order]])
    assert found.correlation == pytest.approx(float(torch.corrcoef(pair)[0, 1]))
    there = [place for place in range(5) if bool((one == place).any())]
    assert len(there) > 1
    for place in there:
        again = other[one == place] == place
        assert found.recovered[CLASSES[place]] == pytest.approx(float(again.double().mean()))


def test_a_dead_feature_does_not_recur() -> None:
    dead = tied(rows(0))
    bias = torch.zeros(M)
    bias[2] = -1e3
    encoder = Encoder(dead.encoder.weight, bias)
    dead = Dictionary(encoder, dead.decoder, dead.decoder_bias)
    found = stability_of_seeds([dead, dead], streams(), rule="fixed")
    assert found.recurring == [0, 1, 3, 4, 5]


def test_a_table_has_a_row_for_each_two_and_their_mean() -> None:
    found = stability_of_seeds([tied(rows(seed)) for seed in range(3)], streams(), rule="fixed")
    table = stability_table(found)
    assert [row[0] for row in table.rows] == ["0 and 1", "0 and 2", "1 and 2", "mean"]
    similarity = sum(pair.similarity for pair in found.pairs) / 3
    assert table.rows[-1][1] == f"{similarity:.2f}"
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_cannot_be_compared_is_refused() -> None:
    one = tied(rows(0))
    with pytest.raises(VlmEditError, match="give two or more"):
        stability_of_seeds([one], streams())
    with pytest.raises(VlmEditError, match="as many rows"):
        stability_of_seeds([one, one], {"image": streams()["image"]})
    with pytest.raises(VlmEditError, match="need as many features"):
        match_features(one, tied(rows(0)[:3]))
    with pytest.raises(VlmEditError, match="takes activations"):
        match_features(one, one, by="correlation")
    with pytest.raises(VlmEditError, match="by is 'name'"):
        match_features(one, one, by="name")  # type: ignore[arg-type]
