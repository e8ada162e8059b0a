"""Deletion of classes by group, and where each group's features stand."""

from __future__ import annotations

import pytest
import torch

from vlm_edit import Ablate, Dictionary, Patch, VlmEditError, zoo
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.statistics import share_difference
from vlm_edit.measures.dominance import modality_dominance
from vlm_edit.selection import Seen
from vlm_edit.tasks.bias import Bench, Evidence
from vlm_edit.tasks.bias.probing import (
    deletion_table,
    deletions,
    leaning_difference,
    leanings,
)


def test_a_class_costs_each_group_what_ablating_it_costs(bench: Bench) -> None:
    dictionary = zoo.load_dictionary("joint")
    evidence = Evidence.gather(bench, dictionary)
    live = evidence.codes().abs().amax(0).nonzero().flatten().tolist()
    classes = {"mine": live[:60], "empty": []}
    found = deletions(
        bench, dictionary, classes, live, evidence.codes(), draws=2, metrics=("read",)
    )
    assert [(one.kind, one.group) for one in found] == [
        ("mine", "man"),
        ("mine", "woman"),
        ("mine", "all"),
    ]
    study = bench.edited(Patch("joint", dictionary, Ablate(live[:60])))
    right = study.named_right()
    for one in found[:2]:
        cases = torch.tensor([g == one.group for g in study.asked_groups])
        assert one.after.value == pytest.approx(float(right[cases].double().mean()))
        assert one.after.n == int(cases.sum())
        before = bench.plain.named_right()[cases]
        assert one.loss == share_difference(before, right[cases])
        # Beyond: mean of the control's draws less the class.
        for control in ("size", "norm"):
            gap = one.controls[control].value - one.after.value
            assert one.beyond[control].value == pytest.approx(gap)
            assert one.beyond[control].low <= gap <= one.beyond[control].high
    assert found[0].control_features["size"] == 60
    assert len(deletion_table(found, "Deleted").rows) == 3
    with pytest.raises(VlmEditError, match="no metric 'guess'"):
        deletions(bench, dictionary, classes, live, evidence.codes(), metrics=("guess",))


def planted(mine: list[int], hers: list[int], n: int = 60) -> Evidence:
    """Codes of 30 features: some fire more for men, some for women."""
    generator = torch.Generator().manual_seed(0)
    seen = {}
    for value, more in (("man", mine), ("woman", hers)):
        codes = torch.rand(n, 30, generator=generator)
        codes[:, more] += 1
        seen[value] = Seen(SparseCodes.of(codes), codes)
    return Evidence(Dictionary.identity(30), "joint", "image", seen)


def test_features_planted_in_one_stream_lean_to_it() -> None:
    mine, hers = [1, 4, 9], [2, 6, 11, 20]
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.rand(200, 30, generator=generator) for _ in range(2))
    text[:, mine] = 0
    image[:, hers] = 0
    found = modality_dominance(image, text)
    man, woman = leanings(planted(mine, hers), found)
    assert sorted(man.features) == mine and sorted(woman.features) == hers
    assert man.score is not None and man.score.value == 1 and man.classes["vision"] == 3
    assert woman.score is not None and woman.score.value == 0 and woman.classes["language"] == 4
    apart = leaning_difference(man, woman, found)
    assert apart is not None and (apart.value, apart.high) == (1, 1) and 0 < apart.low < 0.5
    # Random ones are of the others, of which all lie in the middle but the other group's.
    assert man.random is not None and 0.3 < man.random.value < 0.6


def test_a_group_without_features_leans_nowhere(bench: Bench) -> None:
    evidence = Evidence.gather(bench, zoo.load_dictionary("joint"))
    same = {value: evidence.seen["man"] for value in evidence.seen}
    alike = Evidence(evidence.dictionary, "joint", "image", same)
    codes = evidence.codes()
    found = modality_dominance(codes, codes)
    one, two = leanings(alike, found)
    assert one.features == () and one.score is None and one.random is None
    assert leaning_difference(one, two, found) is None
