import inspect
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vlm_edit import Ablate, Adapter, Dictionary, Host, Patch, VlmEditError, zoo
from vlm_edit.ground.statistics import Estimate, proportion
from vlm_edit.tuning import Point, Tuning, tune

WIDTH = 8
ADAPTER = Adapter.of({"x": ("0", "image", WIDTH)})


@pytest.fixture
def host() -> nn.Sequential:
    return nn.Sequential(nn.Identity()).eval()


def ablating(count: int = WIDTH) -> Patch:
    return Patch("x", Dictionary.identity(WIDTH), Ablate(range(count)))


class Meter:
    """Figures of the edited host, and a list of what was asked."""

    def __init__(self, host: nn.Module, target, utility) -> None:
        self.host, self.calls = host, []
        self.target = lambda: self._tell(target)
        self.utility = lambda: utility(*self._seen())

    def _seen(self) -> tuple[float, int]:
        with torch.no_grad():
            left = self.host(torch.ones(1, WIDTH))[0]
        return float(1 - left[0]), int((left != 1).sum())

    def _tell(self, figure):
        self.calls.append(self._seen())
        return figure(*self._seen())


def search(host, target, utility, patch=None, **options):
    meter = Meter(host, target, utility)
    found = tune(
        Host.of(host, adapter=ADAPTER), patch or ablating(), meter.target, meter.utility, **options
    )
    return found, meter


def dominated(point: Point, points: list[Point], sign: float) -> bool:
    return any(
        sign * p.target >= sign * point.target
        and p.utility >= point.utility
        and (p.target, p.utility) != (point.target, point.utility)
        for p in points
    )


figures = st.integers(0, 5).map(float)
clouds = st.lists(st.tuples(figures, figures), min_size=1, max_size=12)


# The result


@given(clouds, st.sampled_from(["raise", "lower"]))
def test_the_front_is_what_no_other_point_beats(cloud, goal) -> None:
    points = tuple(Point(float(i), None, *figures) for i, figures in enumerate(cloud))
    sign = 1.0 if goal == "raise" else -1.0
    front = Tuning(points, goal).front
    best = {(p.target, p.utility) for p in points if not dominated(p, list(points), sign)}
    assert {(p.target, p.utility) for p in front} == best and len(front) == len(best)
    for point in front:  # of those alike the weakest
        alike = [p for p in points if (p.target, p.utility) == (point.target, point.utility)]
        assert point == alike[0]
    assert all(a.utility > b.utility for a, b in pairwise(front))


@given(clouds, figures, st.sampled_from(["raise", "lower"]))
def test_the_best_is_the_best_target_that_keeps_the_utility(cloud, floor, goal) -> None:
    tuning = Tuning(tuple(Point(float(i), None, *f) for i, f in enumerate(cloud)), goal)
    enough = [p for p in tuning.points if p.utility >= floor]
    if not enough:
        with pytest.raises(VlmEditError, match=f"no point keeps a utility of {floor}"):
            tuning.best(utility_at_least=floor)
        return
    best = tuning.best(utility_at_least=floor)
    assert best.target == (max if goal == "raise" else min)(p.target for p in enough)
    alike = [p for p in enough if p.target == best.target]
    assert best.utility == max(p.utility for p in alike)
    assert best.strength == min(p.strength for p in alike if p.utility == best.utility)


def test_a_small_number_comes_before_a_large_one_and_strength_counts_by_its_size() -> None:
    points = (Point(-1.0, 4, 1.0, 1.0), Point(-0.5, 9, 1.0, 1.0), Point(0.5, 8, 1.0, 1.0))
    assert Tuning(points).best(1.0) == points[2] and Tuning(points).front == (points[2],)


def test_the_low_end_of_an_interval_is_what_is_sure() -> None:
    points = (
        Point(0.0, None, 0.1, Estimate(0.9, 0.8, 1.0, 50)),
        Point(0.5, None, proportion(20, 50), 0.85),
        Point(1.0, None, proportion(40, 50), Estimate(0.9, 0.7, 1.0, 50)),
    )
    tuning = Tuning(points)
    assert tuning.best(0.8) == points[2]
    assert tuning.best(0.8, sure=True) == points[1]
    with pytest.raises(VlmEditError, match=r"nearest is \.850 at strength 0\.5; ask for less"):
        tuning.best(0.86, sure=True)
    with pytest.raises(VlmEditError, match=r"nearest is \.900 \[\.800, 1\.000\] at strength 0;"):
        tuning.best(0.95)


def test_the_table_shows_every_point_by_number_and_strength_with_intervals() -> None:
    points = (
        Point(0.0, None, 0.5, proportion(45, 50)),
        Point(1.0, 2, 0.25, -0.5),
        Point(0.5, 2, 0.75, 3.0),
        Point(0.5, 1, 1234.5, 0.1),
    )
    table = Tuning(points, "lower").table()
    assert table.columns == ("strength", "number", "target (lower)", "utility", "front")
    assert table.rows == [
        ("0", "", ".500", str(proportion(45, 50)), "yes"),
        ("0.5", "1", "1234", ".100", ""),
        ("0.5", "2", ".750", "3.000", "yes"),
        ("1", "2", ".250", "-.500", "yes"),
    ]
    assert str(Tuning(points, "lower")) == str(table)
    assert "number" not in Tuning(points[:1]).table().columns


# The search


@pytest.mark.parametrize("budget", [3, 4, 5, 9, 16])
def test_no_more_is_evaluated_than_the_budget_and_nothing_twice(host, budget) -> None:
    found, meter = search(host, lambda s, _: s, lambda s, _: 1 - s * s, budget=budget)
    places = [(p.strength, p.number) for p in found.points]
    assert len(meter.calls) == len(places) == len(set(places)) == budget
    assert places[0] == (0.0, None) and (1.0, None) in places
    numbered, meter = search(
        host,
        lambda s, n: s * n,
        lambda s, n: -s * s * n,
        ablating,
        numbers=range(1, 9),
        budget=budget,
    )
    places = [(p.strength, p.number) for p in numbered.points]
    assert len(meter.calls) == len(places) == len(set(places)) == budget
    assert {p.number for p in numbered.points} >= {1, 8}  # the ends, whatever the budget


def test_each_point_was_measured_at_its_strength_and_number(host) -> None:
    found, _ = search(
        host,
        lambda s, n: 10 * n + s,
        lambda s, n: s - n,
        ablating,
        numbers=[1, 3, 8],
        strengths=(0.0, 2.0),
        budget=14,
    )
    for point in found.points:
        number = point.number or 0
        assert point.target == pytest.approx(10 * number + point.strength, abs=1e-5)
        assert point.utility == pytest.approx(point.strength - number, abs=1e-5)
    assert found.points[0] == Point(0.0, None, 0.0, 0.0)
    assert {p.number for p in found.points[1:]} == {1, 3, 8}


def test_the_first_grid_is_even_and_spans_the_strengths(host) -> None:
    flat = {"target": lambda s, _: s, "utility": lambda s, _: -s}
    found, _ = search(host, **flat, budget=5)
    assert [p.strength for p in found.points] == [0, 0.25, 0.5, 0.75, 1]
    found, _ = search(host, **flat, budget=5, strengths=(1.0, 4.0))
    assert [p.strength for p in found.points] == [0, 1, 2, 3, 4]
    found, _ = search(host, **flat, budget=4, strengths=(-1.0, 1.0))
    assert [p.strength for p in found.points][:3] == [0, -1, 1]
    found, _ = search(host, **flat, budget=10, patch=ablating, numbers=range(1, 8))
    assert [p.number for p in found.points] == [None, *[1] * 3, *[4] * 3, *[7] * 3]
    assert [p.strength for p in found.points[1:4]] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_middle_of_the_widest_gap_comes_next(host) -> None:
    # From .5 to .75 the target makes its largest step.
    steep = lambda s, _: 1 / (1 + 2.718 ** (-30 * (s - 0.6)))  # noqa: E731
    found, _ = search(host, steep, lambda s, _: -s / 100, budget=8)
    assert found.points[5].strength == 0.625
    assert all(0.5 < p.strength < 0.75 for p in found.points[5:])


def test_a_jump_is_closed_in_on_from_both_sides(host) -> None:
    jump = lambda s, _: float(s > 0.59)  # noqa: E731
    found, _ = search(host, jump, lambda s, _: -s, budget=18)
    reached = min(p.strength for p in found.points if p.target)
    assert 0.59 < reached < 0.62
    assert found.best(utility_at_least=-1).strength == reached
    # The side of the jump first, then the wider of both sides.
    assert [p.strength for p in found.points[5:8]] == [0.625, 0.125, 0.5625]


def test_where_the_front_lies_close_the_widest_gap_beside_it_comes_next(host) -> None:
    def falls(s: float, _: int) -> float:
        return s / 100 if s <= 0.5 else -1.0

    found, _ = search(host, falls, lambda s, _: -s / 100 if s <= 0.5 else -1.0, budget=6)
    assert [p.strength for p in found.front] == [0, 0.25, 0.5]
    assert found.points[5].strength == 0.625


def test_beside_the_front_is_looked_closer_than_elsewhere(host) -> None:
    found, _ = search(host, lambda s, _: -abs(s - 0.25), lambda *_: 1.0, budget=9)
    assert sorted(p.strength for p in found.points[5:]) == [0.125, 0.1875, 0.3125, 0.375]


def test_a_front_of_two_sizes_is_closed_in_on(host) -> None:
    # More features reach more; the strength of the best size is found between the grid's.
    target = lambda s, n: n - 4 * (s - 0.8) ** 2  # noqa: E731
    found, _ = search(host, target, lambda s, n: -n * s, ablating, numbers=range(1, 9), budget=30)
    grid = [(s / 64, n) for n in range(1, 9) for s in range(1, 65)]
    best = max(target(s, n) for s, n in grid if n * s <= 4)
    assert found.best(utility_at_least=-4).target >= best - 0.6
    assert len({p.number for p in found.front if p.strength}) >= 3


def test_a_peak_far_from_the_grid_is_climbed(host) -> None:
    peak = lambda s, _: -((s - 0.4) ** 2)  # noqa: E731
    found, _ = search(host, peak, lambda *_: 1.0, budget=12)
    assert abs(found.best(1.0).strength - 0.4) < 0.05


def test_the_search_ends_where_nothing_can_be_told_apart(host) -> None:
    found, _ = search(host, lambda *_: 1.0, lambda *_: 1.0, budget=2000)
    assert 100 < len(found.points) < 260
    strengths = sorted(p.strength for p in found.points)
    assert min(b - a for a, b in pairwise(strengths)) >= 1 / 128
    assert found.front == (found.points[0],)


def test_it_gives_the_same_every_time(host) -> None:
    once, again = (
        search(host, lambda s, n: s * n, lambda s, n: -n * s**2, ablating, numbers=[1, 2, 8],
               budget=20)[0]
        for _ in range(2)
    )  # fmt: skip
    assert once == again


def test_a_factory_makes_each_patch_once_and_none_for_the_host_as_it_is(host) -> None:
    asked = []

    def factory(number: int) -> Patch:
        asked.append(number)
        return ablating(number)

    search(host, lambda s, n: s * n, lambda s, _: -s, factory, numbers=[2, 5], budget=12)
    assert sorted(asked) == [2, 5]


def test_figures_may_want_the_host_and_be_estimates_tensors_or_shares(host) -> None:
    seen = []

    def target(model: nn.Module) -> Estimate:
        seen.append(model)
        return proportion(3, 10)

    def utility(scale: float = 2.0) -> torch.Tensor:
        return torch.tensor(scale)

    found = tune(Host.of(host, adapter=ADAPTER), ablating(), target, utility, budget=3)
    assert seen == [host] * 3
    assert all(p.target == proportion(3, 10) and p.utility == 2.0 for p in found.points)
    assert all(isinstance(p.utility, float) for p in found.points)
    found = tune(Host.of(host, adapter=ADAPTER), ablating(), lambda: True, lambda: 1, budget=3)
    assert found.points[0].target == 1.0


def test_the_host_is_left_as_it_was_and_nothing_is_warned_of(host) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(host, lambda s, _: s, lambda s, _: -s, budget=9)
    assert not host[0]._forward_hooks

    def fails() -> float:
        with torch.no_grad():
            host(torch.ones(1, WIDTH))
        if host[0]._forward_hooks:
            raise ZeroDivisionError
        return 1.0

    with pytest.raises(ZeroDivisionError):
        tune(Host.of(host, adapter=ADAPTER), ablating(), fails, lambda: 1.0, budget=9)
    assert not host[0]._forward_hooks


def test_options_reach_the_patch(host) -> None:
    mask = torch.tensor([False])
    meter = Meter(host, lambda s, _: s, lambda s, _: 1 - s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a patch that edits nothing says so
        found = tune(
            Host.of(host, adapter=ADAPTER), ablating(), meter.target, meter.utility, mask=mask
        )
    assert all(p.target == 0 for p in found.points)


def test_what_makes_no_sense_is_refused_before_anything_is_asked(host) -> None:
    def never() -> float:
        raise AssertionError("asked")

    def ask(patch=None, **options) -> None:
        tune(Host.of(host, adapter=ADAPTER), patch or ablating(), never, never, **options)

    for options, told in (
        ({"budget": 2}, "budget is 2: it takes 3 evaluations"),
        ({"strengths": (1.0, 1.0)}, r"strengths are \(1.0, 1.0\): give a weaker and a stronger"),
        ({"strengths": (0.0, float("inf"))}, "strengths are"),
        ({"numbers": [1, 2]}, "a patch needs no numbers"),
        ({"patch": ablating}, "a function that makes one needs them"),
        ({"patch": ablating, "numbers": []}, r"numbers are \[\]: give at least one"),
        ({"patch": ablating, "numbers": [1, 2, 1]}, r"numbers are \[1, 2, 1\]: .*each once"),
        ({"goal": "up"}, "goal is 'up': use one of"),
    ):
        with pytest.raises(VlmEditError, match=told):
            ask(**options)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), None, "3 of 4", torch.ones(2)])
def test_a_figure_that_is_no_number_is_named_with_its_place(host, figure) -> None:
    with pytest.raises(VlmEditError, match="objective gives .* at strength 0: it must give"):
        search(host, lambda *_: figure, lambda *_: 1.0)
    with pytest.raises(VlmEditError, match=r"utility gives .* at strength 0\.25"):
        search(host, lambda *_: 1.0, lambda s, _: figure if s else 1.0)
    with pytest.raises(VlmEditError, match="at strength 0.333 and number 2"):
        search(host, lambda s, _: figure if s else 1.0, lambda *_: 1.0, ablating, numbers=[2, 3])
    half = Estimate(0.5, float("nan"), 1.0, 3)
    with pytest.raises(VlmEditError, match="Estimate of finite ends"):
        search(host, lambda *_: half, lambda *_: 1.0)


def test_one_number_alone_is_searched_by_strength(host) -> None:
    found, _ = search(host, lambda s, _: s, lambda s, _: -s, ablating, numbers=[3], budget=5)
    assert [(p.strength, p.number) for p in found.points[1:]] == [
        *((0.25, 3), (0.5, 3), (0.75, 3), (1, 3))
    ]


def test_the_signature_says_what_may_be_left_out() -> None:
    needed = [
        name
        for name, p in inspect.signature(tune).parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    assert needed == ["host", "patch", "objective", "utility"]


def test_what_a_clip_still_reads_is_traded_against_what_it_forgets() -> None:
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs().select(range(32))
    inputs = processor(
        text=list(pairs.texts), images=pairs.images, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        embeds = host(**inputs).text_embeds

    @torch.no_grad()
    def forgotten() -> float:  # how far the texts have moved
        return float((host(**inputs).text_embeds - embeds).norm(dim=1).mean())

    @torch.no_grad()
    def kept() -> Estimate:
        right = host(**inputs).logits_per_image.argmax(1) == torch.arange(32)
        return proportion(int(right.sum()), 32)

    sae = zoo.load_dictionary("joint")
    live = sae.encode(embeds, "text").mean(0).argsort(descending=True).tolist()
    found = tune(
        host,
        lambda number: Patch("joint", sae, Ablate(live[:number]), tokens="text+special"),
        forgotten,
        kept,
        numbers=[1, 4, 16, 64],
        budget=12,
    )
    assert found.points[0].target == 0 and len(found.points) == 12
    assert found.best(0.0).number == 64
    assert torch.equal(host(**inputs).text_embeds, embeds)
