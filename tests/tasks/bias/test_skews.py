"""How far skews vary, and how often chance makes them, beside brute force and truths."""

from __future__ import annotations

import pytest
import torch

from vlm_edit import Pairs, VlmEditError
from vlm_edit.tasks.bias import Outcome, Study
from vlm_edit.tasks.bias.skews import resampled_skew, retrieval_skew

GROUPS = ["a"] * 12 + ["b"] * 15 + ["c"] * 3


def skew(values: dict[str, torch.Tensor], name: str = "MaxSkew", **more: object) -> Outcome:
    return Outcome(("a", "b"), {name: values["cases"]}, 5, **more)  # type: ignore[arg-type]


def test_a_resample_is_the_skew_of_the_images_and_queries_drawn() -> None:
    generator = torch.Generator().manual_seed(3)
    similarity = torch.rand(5, 30, generator=generator)
    found = resampled_skew(similarity, GROUPS, k=8, draws=6, seed=7)
    asked, drawn = (torch.Generator().manual_seed(7 + i) for i in range(2))
    starts = [(0, 12), (12, 15), (27, 3)]
    for draw in range(6):
        rows = torch.randint(5, (5,), generator=asked)
        chosen = torch.cat([s + torch.randint(n, (n,), generator=drawn) for s, n in starts])
        again = retrieval_skew(similarity[rows][:, chosen], [GROUPS[i] for i in chosen], k=8)
        for name, values in again.items():
            assert found[name][draw].tolist() == pytest.approx(values.tolist(), abs=1e-12)
    with pytest.raises(VlmEditError, match="draws is 0"):
        resampled_skew(similarity, GROUPS, k=8, draws=0)


class World:
    """6,000 people of two groups, of whom one lies elsewhere, and 400 roles that ask for them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.people = torch.randn(6000, 6, generator=generator)
        self.roles = torch.randn(400, 6, generator=generator)
        self.people[::2] += 0.35

    def sample(self, seed: int) -> tuple[torch.Tensor, list[str]]:
        """Fifty people of each group, and twenty roles."""
        order = torch.Generator().manual_seed(seed)
        some = [2 * torch.randperm(3000, generator=order)[:50] + i for i in range(2)]
        asked = torch.randperm(400, generator=order)[:20]
        return self.roles[asked] @ self.people[torch.cat(some)].T, ["b"] * 50 + ["a"] * 50


def test_the_interval_holds_the_skew_of_such_samples_about_as_often_as_it_says() -> None:
    world, held = World(), 0
    others = [retrieval_skew(*world.sample(s), 20)["MaxSkew"].mean() for s in range(1000, 1500)]
    truth = float(torch.stack(others).mean())
    for seed in range(60):
        similarity, groups = world.sample(seed)
        cases = retrieval_skew(similarity, groups, 20)["MaxSkew"]
        drawn = resampled_skew(similarity, groups, 20, draws=100)["MaxSkew"]
        found = skew({"cases": cases}, resampled={"MaxSkew": drawn}).estimate("MaxSkew")
        held += found.low <= truth <= found.high
    assert 54 <= held <= 60


def test_a_skew_is_as_rare_as_the_dealings_that_make_it() -> None:
    chance = {"MaxSkew": torch.arange(99.0, dtype=torch.float64)[:, None] / 100}
    for value, p in ((0.5, 50 / 100), (0.98, 2 / 100), (2.0, 1 / 100), (-1.0, 1.0)):
        one = skew({"cases": torch.tensor([value], dtype=torch.float64)}, chance=chance)
        assert one.p("MaxSkew") == pytest.approx(p)
    with pytest.raises(VlmEditError, match="no chance was drawn"):
        skew({"cases": torch.zeros(1)}).p("MaxSkew")


def test_two_edits_are_compared_draw_by_draw() -> None:
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(300, 4, generator=generator, dtype=torch.float64)
    cases = drawn.mean(0)
    one = skew({"cases": cases + 0.1}, resampled={"MaxSkew": drawn + 0.1})
    two = skew({"cases": cases}, resampled={"MaxSkew": drawn})
    apart = one.ahead(two, "MaxSkew")
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))
    half = 1.96 * float(drawn.mean(1).std())
    alone = two.estimate("MaxSkew")
    assert alone.high - alone.value == pytest.approx(half) and alone.low >= 0


def captioned(planted: Study, times: int) -> Study:
    """The same images, each so many times, with as many captions."""
    rows = [i for i in range(len(planted.pairs)) for _ in range(times)]
    some = planted.part(rows)
    texts = tuple(f"caption {i}" for i in range(len(rows)))
    pairs = Pairs(some.pairs.images, texts, some.pairs.columns)
    return Study(planted.questions, pairs, some.image, some.caption, planted.text)


def test_captions_of_an_image_make_no_figure_surer(planted: Study) -> None:
    once = Outcome.of(planted, k=5, folds=0)
    many = Outcome.of(captioned(planted, 4), k=5, folds=0)
    for name in ("MaxSkew", "NDKL"):
        assert torch.equal(once.cases[name], many.cases[name])
        assert torch.equal(once.chance[name], many.chance[name])
    for name in ("read", "recognised", "kept"):
        one, four = once.estimate(name), many.estimate(name)
        assert four.value == pytest.approx(one.value) and four.n == 4 * one.n
        assert four.high - four.low >= 0.999 * (one.high - one.low)
    assert once.images == {} and set(many.images) == {"read", "recognised", "kept", "R@1", "R@5"}
    both = many + once
    assert len(both.images["read"].unique()) == 80 and len(both.images["read"]) == 200


def test_a_difference_of_images_asked_four_times_is_as_wide_as_of_those_asked_once() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.rand(60, generator=generator) < share for share in (0.8, 0.5))
    groups = ("a", "b") * 30
    for name in ("read", "recognised"):
        alone = Outcome(groups, {name: first}).ahead(Outcome(groups, {name: second}), name)
        rows = torch.arange(60).repeat_interleave(4)
        again = tuple(groups[i] for i in rows)
        one, two = (Outcome(again, {name: x[rows]}, images={name: rows}) for x in (first, second))
        grouped, blind = one.ahead(two, name), Outcome(again, one.cases).ahead(two, name)
        width = alone.high - alone.low
        assert grouped.value == pytest.approx(alone.value)
        assert 0.98 * width <= grouped.high - grouped.low <= 1.1 * width
        assert blind.high - blind.low < 0.6 * width
