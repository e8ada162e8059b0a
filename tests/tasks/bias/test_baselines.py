"""Baselines, each beside its own definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Patch, VlmEditError
from vlm_edit.tasks.bias import Bench, Outcome, Questions, Study
from vlm_edit.tasks.bias.baselines import (
    bend,
    calibrated_projection,
    difference_components,
    difference_in_means,
    directions,
    group_means,
    least_squares_erasure,
    modality_centring,
    nullspace,
    project_out,
    prompt_difference,
)


def applied(patch: Patch, x: Tensor, stream: str = "image") -> Tensor:
    for binding in patch.bindings:
        if binding.selection.tokens in ("all", stream):
            x = binding.splice(x, stream=stream)
    return x


def test_the_difference_of_the_means_is_gone_from_the_images(planted: Study) -> None:
    edited = applied(difference_in_means(planted), planted.image)
    gap = group_means(planted, "image")[1] - group_means(planted, "image")[0]
    assert float((edited @ F.normalize(gap, dim=0)).abs().max()) < 1e-5
    assert float((edited - planted.image).norm(dim=1).min()) > 0.1
    with pytest.raises(VlmEditError, match="stream is 'sound'"):
        difference_in_means(planted, ("sound",))


def test_prompts_that_differ_by_the_group_alone_become_one(planted: Study) -> None:
    patch = prompt_difference(planted)
    man, woman = applied(patch, planted.embedded(["a man", "a woman"]), "text")
    torch.testing.assert_close(man, woman)
    only = prompt_difference(planted, tokens="text+special")
    assert applied(only, planted.image) is planted.image


def test_the_calibrated_projection_minimises_what_the_paper_says(planted: Study) -> None:
    weight = 50.0
    patch = calibrated_projection(planted, weight)
    basis = torch.eye(12)
    found = applied(patch, basis, "text").mT.double()  # columns are images of the axes
    prompts = F.normalize(planted.embedded(["a man", "a woman"]), dim=1).double()
    q = torch.linalg.qr(prompts.mT)[0]
    start = torch.eye(12, dtype=torch.float64) - q @ q.mT
    pair = F.normalize(planted.embedded(["a male cook", "a female cook"]), dim=1).double()

    def loss(p: Tensor) -> Tensor:
        gap = p @ (pair[0] - pair[1])
        found: Tensor = (p - start).square().sum() + weight * gap.square().sum()
        return found

    p = found.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(p), p)
    assert float(gradient.abs().max()) < 1e-4
    assert float(loss(found)) < float(loss(start + 0.01))


def test_modality_centring_leaves_both_means_at_zero(planted: Study) -> None:
    moved = replace(planted, caption=planted.caption + 1.0)
    patch = modality_centring(moved)
    image = applied(patch, moved.image, "image")
    text = applied(patch, moved.caption, "text")
    assert float(image.mean(0).abs().max()) < 1e-5
    assert float(text.mean(0).abs().max()) < 1e-5


def test_leace_leaves_no_difference_of_means_and_is_its_formula(planted: Study) -> None:
    unit = replace(planted, image=F.normalize(planted.image, dim=1))
    edited = applied(least_squares_erasure(unit, shrinkage=0.0), unit.image).double()
    groups = torch.tensor([g == "man" for g in unit.groups])
    assert float((edited[groups].mean(0) - edited[~groups].mean(0)).abs().max()) < 1e-4
    x = unit.image.double()
    mean = x.mean(0)
    gram = (x - mean).mT @ (x - mean) / len(x)
    sizes, basis = torch.linalg.eigh(gram)
    root = basis * sizes.sqrt() @ basis.mT
    whiten = torch.linalg.inv(root)
    u = F.normalize(whiten @ (x[groups].mean(0) - x[~groups].mean(0)), dim=0)
    by_hand = x - (x - mean) @ whiten.mT @ torch.outer(u, u) @ root.mT
    torch.testing.assert_close(edited, by_hand, rtol=1e-3, atol=1e-4)
    with pytest.raises(VlmEditError, match="shrinkage is 2"):
        least_squares_erasure(unit, 2.0)


def test_probes_one_after_the_other_are_orthogonal_and_the_first_is_ridge_regression(
    planted: Study,
) -> None:
    (binding,) = nullspace(planted, 3).bindings
    rows = binding.splice.slice.decoder
    torch.testing.assert_close(rows @ rows.mT, torch.eye(3), rtol=1e-4, atol=1e-4)
    x = F.normalize(planted.image, dim=1).double()
    x = x - x.mean(0)
    y = torch.tensor([1.0 if g == "man" else -1.0 for g in planted.groups]).double()
    ridge = 1e-2 * (x.mT @ x).diagonal().mean()
    stacked = torch.cat([x, ridge.sqrt() * torch.eye(12, dtype=torch.float64)])
    target = torch.cat([y - y.mean(), torch.zeros(12, dtype=torch.float64)])
    by_hand = torch.linalg.lstsq(stacked, target[:, None]).solution[:, 0]
    assert float(F.cosine_similarity(rows[0].double(), by_hand, dim=0)) == pytest.approx(
        1, abs=1e-5
    )
    three = replace(
        planted,
        questions=Questions("job", {"cook": ["a cook"], "pilot": ["a pilot"]}),
        text=planted.embedded(["a cook", "a pilot"]),
    )
    assert Outcome.of(three, folds=0).estimate("read").value == 1.0


def test_components_are_of_differences_within_a_value_of_the_column(planted: Study) -> None:
    (binding,) = difference_components(planted, "job", 1).bindings
    x = F.normalize(planted.image, dim=1)
    gaps = []
    for job in ("cook", "pilot"):
        of = [
            [
                i
                for i in range(40)
                if planted.groups[i] == g and planted.pairs.columns["job"][i] == job
            ]
            for g in ("man", "woman")
        ]
        gaps.append(x[of[1]].mean(0) - x[of[0]].mean(0))
    first = torch.linalg.svd(torch.stack(gaps))[2][0]
    found = binding.splice.slice.decoder[0]
    assert abs(float(F.cosine_similarity(found, first, dim=0))) == pytest.approx(1, abs=1e-5)
    with pytest.raises(VlmEditError, match="no column 'age'"):
        difference_components(planted, "age", 1)
    with pytest.raises(VlmEditError, match="2 differences by 'job' have no 3 directions"):
        difference_components(planted, "job", 3)


def test_bend_makes_a_query_as_near_to_the_nearest_of_every_group(planted: Study) -> None:
    found = bend(planted, planted, nearest=20)
    query = found.embedded(["a cook"])[0]
    x = F.normalize(planted.image, dim=1)
    near = {
        group: float((x[[i for i, g in enumerate(planted.groups) if g == group]] @ query).mean())
        for group in ("man", "woman")
    }
    assert near["man"] == pytest.approx(near["woman"], abs=1e-5)
    assert float(query.norm()) == pytest.approx(1, abs=1e-5)
    untouched = planted.questions.texts().index("anybody")
    assert bool((found.text[untouched] == planted.text[untouched]).all())
    assert found.image is planted.image


def test_bend_moves_no_further_than_any_other_point_that_is_as_near_to_both(
    planted: Study,
) -> None:
    query = bend(planted, planted, nearest=20).embedded(["a cook"])[0]
    start = planted.embedded(["a cook"])[0]
    own = F.normalize(planted.embedded(["a male cook", "a female cook"]), dim=1)
    way = F.normalize(own[1] - own[0], dim=0)
    start = F.normalize(start / start.norm() - (start / start.norm() @ way) * way, dim=0)
    x = F.normalize(planted.image, dim=1)
    means = [
        x[[i for i, g in enumerate(planted.groups) if g == group]].mean(0)
        for group in ("man", "woman")
    ]
    gap = F.normalize(means[1] - means[0], dim=0)
    generator = torch.Generator().manual_seed(0)
    others = query + 0.05 * torch.randn(500, 12, generator=generator)
    others = F.normalize(others - (others @ gap)[:, None] * gap, dim=1)
    assert float(query @ start) >= float((others @ start).max()) - 1e-6


def test_directions_without_a_length_and_missing_variants_are_refused(planted: Study) -> None:
    with pytest.raises(VlmEditError, match="directions are rows"):
        directions(torch.zeros(1, 4))
    with pytest.raises(VlmEditError, match="directions are rows"):
        project_out(torch.ones(4))
    bare = replace(
        planted, questions=replace(planted.questions, variants={}), text=planted.text[:5]
    )
    with pytest.raises(VlmEditError, match="give Questions variants"):
        bend(bare, bare)
    with pytest.raises(VlmEditError, match="give Questions variants"):
        calibrated_projection(bare)


def test_baselines_are_patches_that_save_and_act_after_loading(tmp_path, bench: Bench) -> None:  # type: ignore[no-untyped-def]
    from vlm_edit import load_patch

    patches = {
        "means": difference_in_means(bench.plain),
        "leace": least_squares_erasure(bench.plain),
        "calibrated": calibrated_projection(bench.plain),
        "centred": modality_centring(bench.plain),
    }
    for name, patch in patches.items():
        patch.save(tmp_path / f"{name}.safetensors", bench.host)
        again = bench.edited(load_patch(tmp_path / f"{name}.safetensors"))
        study = bench.edited(patch)
        assert bool((again.image == study.image).all()) and bool((again.text == study.text).all())
