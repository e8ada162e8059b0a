"""Features of an attribute, and edits of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vlm_edit import Dictionary, Host, VlmEditError, zoo
from vlm_edit.selection import by_concept
from vlm_edit.tasks.bias import Bench, Evidence, Questions, Study, edit, mitigate, select
from vlm_edit.tasks.bias.baselines import difference_in_means
from vlm_edit.tasks.bias.mitigation import code_differences, off_chance, off_probe, recognition


@pytest.fixture(scope="module")
def evidence(bench: Bench) -> Evidence:
    return Evidence.gather(bench, zoo.load_dictionary("joint"))


def test_features_of_two_groups_are_those_of_the_librarys_own_selector(
    bench: Bench, evidence: Evidence
) -> None:
    pairs = bench.plain.pairs
    men, women = (
        pairs.select([i for i, g in enumerate(bench.plain.groups) if g == value])
        for value in ("man", "woman")
    )
    found = by_concept(
        bench.host,
        zoo.load_dictionary("joint"),
        men,
        women,
        stream="image",
        score="direction",
        alpha=None,
        most=12,
    )
    assert select(evidence, 12) == found


def test_codes_at_another_site_are_read_from_the_host(bench: Bench) -> None:
    some = bench.part(range(60))
    evidence = Evidence.gather(some, zoo.load_dictionary("vision.2"), "vision.2")
    assert evidence.seen["man"].codes.shape[0] == some.plain.groups.count("man")
    patch = edit(evidence, select(evidence, 4), "difference", tokens="image")
    assert not torch.allclose(some.edited(patch).image, some.plain.image, atol=1e-4)


def test_within_a_class_only_its_features_are_selected(evidence: Evidence) -> None:
    ranked = select(evidence)
    allowed = ranked[1:9:2]
    assert select(evidence, within=allowed) == allowed
    assert set(select(evidence, 6, score="difference")) <= set(range(512))
    with pytest.raises(VlmEditError, match="within the class"):
        select(evidence, within=[k for k in range(512) if k not in ranked])
    with pytest.raises(VlmEditError, match="score is 'size'"):
        select(evidence, score="size")  # type: ignore[arg-type]


def test_three_groups_take_turns(bench: Bench) -> None:
    asked = Questions("gender", {v: [v] for v in ("man", "woman", "person")})
    rows = torch.zeros(3, bench.plain.text.shape[1])
    study = Study(asked, bench.plain.pairs, bench.plain.image, bench.plain.caption, rows)
    evidence = Evidence.gather(replace(bench, plain=study), zoo.load_dictionary("joint"))
    first = []
    for value, own in evidence.seen.items():
        rest = torch.cat([s.codes.dense() for v, s in evidence.seen.items() if v != value])
        gained = own.codes.dense().double().mean(0) - rest.double().mean(0)
        normed = torch.cat([s.normed for v, s in evidence.seen.items() if v != value])
        way = own.normed.mean(0) - normed.mean(0)
        rows = evidence.dictionary.decoder
        cosine = F.cosine_similarity(rows.double(), way.double()[None])
        first.append(int((gained * cosine).argmax()))
    assert select(evidence)[: len(set(first))] == list(dict.fromkeys(first))
    assert code_differences(evidence, [1, 2, 3]).shape == (2, 192)


def test_the_difference_of_all_raw_dimensions_is_the_difference_in_means(planted: Study) -> None:
    unit = replace(planted, image=F.normalize(planted.image, dim=1))
    bench = Bench(Host.of(torch.nn.Identity()), unit)
    neurons = Dictionary.identity(12)
    seen = Evidence.gather(bench, neurons)
    (ours,) = edit(seen, range(12), "difference").bindings
    (theirs,) = difference_in_means(unit).bindings
    torch.testing.assert_close(
        ours.splice(unit.image), theirs.splice(unit.image), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(VlmEditError, match="way is 'forget'"):
        edit(seen, [0], "forget")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["ablate", "project", "difference"])
def test_half_the_strength_is_half_the_change(evidence: Evidence, bench: Bench, way: str) -> None:
    features = select(evidence, 4)
    full = bench.edited(edit(evidence, features, way)).image - bench.plain.image  # type: ignore[arg-type]
    half = bench.edited(edit(evidence, features, way, strength=0.5)).image - bench.plain.image  # type: ignore[arg-type]
    torch.testing.assert_close(2 * half, full, rtol=1e-3, atol=1e-3)


def test_the_tuned_patch_is_what_the_tuning_measured(bench: Bench) -> None:
    found = mitigate(bench, zoo.load_dictionary("joint"), numbers=(2, 8), tolerance=0.05, budget=10)
    study = bench.edited(found.patch)
    assert off_chance(study) == pytest.approx(found.point.target, abs=0.02)
    assert recognition(study) == pytest.approx(found.point.utility, abs=0.02)
    assert recognition(study) >= recognition(bench.plain) - 0.05 - 0.02
    assert off_chance(study) < off_chance(bench.plain) - 0.1
    assert len(found.features) == found.point.number
    assert found.patch.info["way"] == "difference"


def test_a_goal_of_ones_own_is_tuned_for(bench: Bench) -> None:
    found = mitigate(
        bench,
        zoo.load_dictionary("joint"),
        way="ablate",
        aim=off_probe,
        numbers=(8,),
        tolerance=0.2,
        budget=6,
    )
    assert off_probe(bench.edited(found.patch)) < off_probe(bench.plain)


def test_what_cannot_be_tuned_is_refused(bench: Bench) -> None:
    with pytest.raises(VlmEditError, match="numbers of features are"):
        mitigate(bench, zoo.load_dictionary("joint"), numbers=())
    given = bench.host, zoo.load_dictionary("joint"), bench.plain.pairs
    with pytest.raises(VlmEditError, match="no column 'age'"):
        Evidence.of(*given, "age", ("old", "young"), "joint")
    with pytest.raises(VlmEditError, match="no pair of .* has gender 'robot'"):
        Evidence.of(*given, "gender", ("man", "robot"), "joint")
