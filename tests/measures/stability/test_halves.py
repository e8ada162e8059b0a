"""Halves of the pairs, by images, against halves cut by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.dominance import RULE, modality_dominance
from vlm_edit.measures.stability import agreement, class_numbers, stability_of_halves
from vlm_edit.report import stability_table

M = 30


def codes(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features that fire more and more in images, less and less in texts; the last never fires."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.linspace(0.02, 0.3, M)
    image = (torch.rand(n, M, generator=generator) < rate) * torch.rand(n, M, generator=generator)
    text = (torch.rand(n, M, generator=generator) < rate.flip(0)).float()
    image[:, -1] = text[:, -1] = 0
    return image, text


@pytest.mark.parametrize("rule", ["interval", "fixed", "significant", "sd"])
def test_a_draw_is_that_of_two_halves_measured_apart(rule: Any) -> None:
    image, text = codes()
    found = stability_of_halves(image, SparseCodes.of(text), rule=rule, draws=1, seed=4)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(4))
    halves = [order[:100], order[100:]]
    two = [modality_dominance(image[half], text[half]) for half in halves]
    numbers = [class_numbers(one, rule) for one in two]
    assert repr(found.draws[0]) == repr(agreement(*numbers))
    gap = (two[0].scores - two[1].scores).abs()
    assert torch.allclose(found.differences, gap, equal_nan=True)
    assert torch.equal(found.same, (numbers[0] == numbers[1]).double())
    expected = ((numbers[0] == numbers[1]) & (numbers[0] < 3)).nonzero().flatten().tolist()
    assert found.recurring == expected
    assert M - 1 not in found.recurring
    known = ~gap.isnan()
    pair = torch.stack([one.scores[known] for one in two])
    assert found.correlations[0] == pytest.approx(float(torch.corrcoef(pair)[0, 1]))


def test_pairs_of_one_image_never_stand_in_both_halves() -> None:
    """Each image fires a feature of its own, so that its two halves' scores would tell."""
    own = torch.eye(20).repeat_interleave(3, 0)
    found = stability_of_halves(own, own, [f"image {i // 3}" for i in range(60)], draws=5)
    assert bool(found.differences.isnan().all())
    assert all(draw.share == 0 for draw in found.draws)
    loose = stability_of_halves(own, own, draws=5)
    assert not bool(loose.differences.isnan().all())
    numbers = torch.arange(60) // 3
    again = stability_of_halves(own, own, numbers, draws=5)
    assert bool(again.differences.isnan().all())


def test_what_recurs_recurs_in_every_draw() -> None:
    image, text = codes(600)
    few, many = (stability_of_halves(image, text, rule="fixed", draws=d) for d in (1, 12))
    assert set(many.recurring) < set(few.recurring)
    assert 0 in many.recurring
    assert all(float(many.same[k]) == 1 for k in many.recurring)
    assert stability_of_halves(image, text, draws=1).rule == RULE


def test_a_table_has_the_means() -> None:
    found = stability_of_halves(*codes(), draws=3, rule="fixed")
    table = stability_table(found)
    share = sum(draw.share for draw in found.draws) / 3
    assert table.rows[0][:2] == ("fixed", f"{share:.2f}")
    assert len(table.rows[0]) == len(table.columns)
    assert "of 30 features are vision, language or cross, and the same, in all halves" in table.note


def test_pairs_that_cannot_be_halved_are_refused() -> None:
    image, text = codes(10)
    with pytest.raises(VlmEditError, match="of two images at least"):
        stability_of_halves(image, text, ["one"] * 10)
    with pytest.raises(VlmEditError, match="3 names of 3 images for 10 pairs"):
        stability_of_halves(image, text, range(3))
    with pytest.raises(VlmEditError, match="both sides of the same pairs"):
        stability_of_halves(image, text[:5])
    with pytest.raises(VlmEditError, match="0 draws"):
        stability_of_halves(image, text, draws=0)
