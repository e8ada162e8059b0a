"""Studies: what is read off embeddings, by brute force and in the host itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlm_edit import Ablate, Adapter, Host, Pairs, Patch, Project, VlmEditError, zoo
from vlm_edit.tasks.bias import Bench, Outcome, Questions, Study, split
from vlm_edit.tasks.bias.outcome import PERMUTED, cost_table, effect_table


def test_the_read_out_is_the_nearest_mean_prompt_of_every_image(bench: Bench) -> None:
    study = bench.plain
    right = study.named_right()
    for j, i in enumerate(study.told_apart):
        best, nearest = "", -2.0
        for value, prompts in study.questions.classes.items():
            mean = torch.stack([F.normalize(study.embedded([p])[0], dim=0) for p in prompts]).mean(
                0
            )
            near = float(F.cosine_similarity(mean, study.image[i], dim=0))
            best, nearest = (value, near) if near > nearest else (best, nearest)
        assert bool(right[j]) == (best == study.groups[i])


def people(bench: Bench, count: int) -> Bench:
    """So many images that are told apart, of both groups."""
    return bench.part(bench.plain.told_apart[:count])


def test_a_patch_of_the_joint_embedding_does_in_a_study_what_it_does_in_the_host(
    bench: Bench,
) -> None:
    patch = Patch("joint", zoo.load_dictionary("joint"), Project([3, 7]), tokens="image")
    patch += Patch("joint", zoo.load_dictionary("joint"), Ablate([5, 9]))
    some = people(bench, 20)
    study = some.edited(patch, strength=0.5)
    with patch.attach(bench.host, strength=0.5):
        host = Bench.read(bench.host, some.plain.pairs, some.plain.questions)
    for own, there in (
        (study.image, host.plain.image),
        (study.caption, host.plain.caption),
        (study.text, host.plain.text),
    ):
        torch.testing.assert_close(own, there, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(study.image, some.plain.image)


def test_a_patch_of_another_site_runs_the_host(bench: Bench) -> None:
    patch = Patch("vision.2", zoo.load_dictionary("vision.2"), Ablate(range(40)))
    some = people(bench, 12)
    study = some.edited(patch)
    assert not torch.allclose(study.image, some.plain.image, atol=1e-3)
    torch.testing.assert_close(study.text, some.plain.text, rtol=1e-4, atol=1e-4)


def test_an_image_that_cannot_be_read_is_left_out_and_told(tmp_path, bench: Bench) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    whole = bench.plain.pairs.select(range(40))
    pairs = Pairs(
        [*whole.images[:3], broken, *whole.images[3:]],
        (*whole.texts[:3], "broken", *whole.texts[3:]),
        {k: (*v[:3], "none", *v[3:]) for k, v in whole.columns.items()},
    )
    found = Bench.read(bench.host, pairs, bench.plain.questions)
    assert [number for number, _ in found.skipped] == [3]
    torch.testing.assert_close(found.plain.image, bench.plain.image[:40], rtol=1e-4, atol=1e-4)
    assert found.plain.pairs.texts == whole.texts


def test_a_host_of_one_stream_is_refused() -> None:
    host = torch.nn.Sequential(torch.nn.Identity()).eval()
    adapter = Adapter.of({"joint": ("0", "image", 4)})
    pairs = Pairs([Image.new("RGB", (4, 4))] * 2, ("a", "b"), {"sex": ("f", "m")})
    asked = Questions("sex", {"f": ["f"], "m": ["m"]})
    with pytest.raises(VlmEditError, match="is of image only"):
        Bench.read(Host.of(host, adapter=adapter), pairs, asked)


def test_a_value_of_the_split_column_is_never_on_both_sides(bench: Bench) -> None:
    pairs = bench.plain.pairs
    tune, test = split(pairs, "concept", share=0.3, seed=4)
    assert sorted(tune + test) == list(range(len(pairs)))
    sides = [{pairs.columns["concept"][i] for i in side} for side in (tune, test)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) == round(0.3 * len(sides[0] | sides[1]))
    assert split(pairs, seed=1)[0] != split(pairs, seed=2)[0]


def test_outcomes_of_two_splits_are_those_of_all_their_cases(planted: Study) -> None:
    sides = split(planted.pairs, seed=0)
    one, two = (Outcome.of(planted.part(side), k=5, folds=0) for side in sides)
    whole = Outcome.of(planted, k=5, folds=0)
    both = one + two
    for name in ("read", "recognised"):
        assert both.estimate(name).value == whole.estimate(name).value
        assert both.estimate(name).n == 40
    assert len(both.cases["MaxSkew"]) == 4
    halves = [half.by_chance("MaxSkew") for half in (one, two)]
    assert both.by_chance("MaxSkew").value == pytest.approx(sum(h.value for h in halves) / 2)
    with pytest.raises(VlmEditError, match="of 'read' no chance was drawn"):
        both.by_chance("read")
    assert both.ahead(both, "read").value == 0
    with pytest.raises(VlmEditError, match="cannot be joined"):
        _ = one + Outcome.of(planted.part(sides[1]), k=3, folds=0)
    with pytest.raises(VlmEditError, match="not the same ones"):
        one.ahead(whole, "read")
    with pytest.raises(VlmEditError, match="'probe' was not asked for"):
        one.estimate("probe")


def test_tables_have_a_row_for_each_edit_and_no_column_for_what_was_not_asked(
    planted: Study,
) -> None:
    found = {"nothing": Outcome.of(planted, k=5), "again": Outcome.of(planted, k=5)}
    effect = effect_table(found, "Effect")
    assert effect.columns == ("edit", "read", "man", "woman", "probe", *(
        f"{name}@5" for name in ("MaxSkew", "KL", "NDKL")))  # fmt: skip
    assert [row[0] for row in effect.rows] == [PERMUTED, "nothing", "again"]
    assert effect.rows[0][1:5] == ("", "", "", "")
    nothing = found["nothing"]
    assert effect.rows[0][5] == str(nothing.by_chance("MaxSkew"))
    told, p = effect.rows[1][5].split(", p ")
    assert told == str(nothing.estimate("MaxSkew"))
    assert float(p) == pytest.approx(nothing.p("MaxSkew"), abs=5e-4)
    cost = cost_table(found, "Cost")
    assert cost is not None and cost.columns[:2] == ("edit", "recognised")
    bare = replace(
        planted,
        questions=Questions("gender", planted.questions.classes),
        text=planted.embedded(["a man", "a woman"]),
        pairs=replace(planted.pairs, texts=("a photo of a person",) * 40),
    )
    told = {"nothing": Outcome.of(bare, folds=0)}
    assert cost_table(told, "Cost") is None
    assert effect_table(told, "Effect").columns == ("edit", "read", "man", "woman")


def test_a_table_says_what_is_read_less_often_than_a_guess_would_be() -> None:
    groups = ("man", "woman") * 50
    share = {"reversed": 10, "a guess": 45, "seen": 90}
    found = {
        name: Outcome(groups, {"read": torch.tensor([True] * n + [False] * (100 - n))})
        for name, n in share.items()
    }
    assert {name: one.below_chance("read") for name, one in found.items()} == {
        "reversed": True, "a guess": False, "seen": False,
    }  # fmt: skip
    told = {row[0]: row[1].endswith(", below chance") for row in effect_table(found, "").rows}
    assert told == {"reversed": True, "a guess": False, "seen": False}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _: Questions("sex", {"m": ["m"]}), "two values"),
        (lambda _: Questions("sex", {"m": ["m"], "f": []}), "two values"),
        (lambda _: Questions("sex", {"m": ["m"], "f": ["f"]}, label="job"), "or neither"),
        (lambda s: replace(s, image=s.image[:3]), r"rows for \(40, 40, 7\)"),
        (lambda s: replace(s, pairs=replace(s.pairs, columns={})), "no column 'gender'"),
        (lambda s: s.part([0, 2]), "no image .* has gender 'man'"),
        (lambda s: split(s.pairs, "age"), "no column 'age'"),
        (lambda s: split(s.pairs, share=0.0), "one side empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    planted: Study, call: Callable[[Study], object], words: str
) -> None:
    with pytest.raises(VlmEditError, match=words):
        call(planted)
