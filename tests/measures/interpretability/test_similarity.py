import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vlm_edit import VlmEditError
from vlm_edit.ground.statistics import mean_estimate
from vlm_edit.measures.interpretability import ExampleSimilarity, TopExamples, example_similarity
from vlm_edit.measures.interpretability import similarity as room

N, FEATURES, WIDTH = 60, 5, 4


def drawn(seed: int = 0) -> tuple[TopExamples, Tensor]:
    """Top examples, of fewer and fewer examples by feature, and clumped embeddings."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(N, FEATURES, generator=generator)
    for feature, active in enumerate((60, 12, 7, 3, 0)):
        codes[torch.randperm(N, generator=generator)[active:], feature] = 0
    top = TopExamples(FEATURES, 8)
    top.update(codes, range(N))
    vectors = torch.randn(4, WIDTH, generator=generator)[torch.arange(N) % 4]
    return top, vectors + 0.3 * torch.randn(N, WIDTH, generator=generator)


def measured(seed: int = 0, **options: object) -> tuple[ExampleSimilarity, TopExamples, Tensor]:
    top, vectors = drawn(seed)
    options = {"m": (3, 5, 8), "draws": 30, **options}
    return example_similarity(top, lambda n: vectors[n], N, **options), top, vectors


def cosines(vectors: Tensor, numbers: Sequence[int]) -> list[float]:
    """Rounded, because the same pair may be among the top and among the random ones: a tie."""
    return [
        round(float(torch.cosine_similarity(vectors[i].double(), vectors[j].double(), dim=0)), 11)
        for i, j in itertools.combinations(sorted(numbers), 2)
    ]


def random_cosines(vectors: Tensor, m: int, draws: int, seed: int = 0) -> list[list[float]]:
    drawn = room._draw(N, [3, 5, 8], draws, seed)
    return [cosines(vectors, numbers[:m]) for numbers in drawn.tolist()]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("m", [3, 5, 8])
def test_the_scores_are_those_of_loops_over_pairs(m: int) -> None:
    found, top, vectors = measured()
    random = random_cosines(vectors, m, 30)
    pooled = [c for draw in random for c in draw]
    for feature in range(FEATURES):
        numbers = [number for number, _ in top.of(feature)][:m]
        score = [float(t[feature]) for t in (found[m].similarity, found[m].p, found[m].win_rate)]
        if len(numbers) < m:
            assert all(map(math.isnan, score))
            continue
        pairs = cosines(vectors, numbers)
        at_least = sum(mean(draw) >= mean(pairs) for draw in random)
        wins = [(a > b) + (a == b) / 2 for a in pairs for b in pooled]
        wanted = [mean(pairs), (1 + at_least) / 31, mean(wins)]
        assert score == pytest.approx(wanted, abs=1e-9)
    assert found[m].random.value == pytest.approx(mean([mean(draw) for draw in random]))
    assert found[m].random.n == 30
    of_draws = torch.tensor([mean(draw) for draw in random], dtype=torch.float64)
    assert found[m].random_sd == pytest.approx(float(of_draws.std()))
    assert found[m].random.low < found[m].random.value < found[m].random.high
    assert torch.equal(found[m].lift.isnan(), found[m].similarity.isnan())
    assert float(found[m].lift[0]) == pytest.approx(
        float(found[m].similarity[0]) - found[m].random.value
    )


def test_only_features_with_enough_examples_have_scores() -> None:
    found, _, _ = measured()
    assert [found[m].enough for m in (3, 5, 8)] == [4, 3, 2]


def test_copies_of_an_example_tie_and_count_half() -> None:
    top, _ = drawn()
    vectors = torch.randn(1, WIDTH).repeat(N, 1) * (1 + torch.arange(N))[:, None]
    found = example_similarity(top, lambda n: vectors[n], N, m=[5], draws=10)
    assert found[5].win_rate[:3].tolist() == [0.5] * 3
    assert found[5].p[:3].tolist() == [1.0] * 3
    assert found[5].lift[:3].tolist() == [0.0] * 3


def test_a_feature_of_one_meaning_wins_against_random_examples() -> None:
    top = TopExamples(1, 10)
    vectors = torch.eye(20).repeat(10, 1)
    top.update(vectors[:, :1].clone(), range(200))
    found = example_similarity(top, lambda n: vectors[n], 200, m=[10], draws=99)[10]
    assert float(found.similarity) == 1.0
    assert float(found.p) == 1 / 100
    assert float(found.win_rate) > 0.95


def test_features_without_meaning_win_half_and_p_is_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    top = TopExamples(400, 5)
    top.update(torch.rand(500, 400, generator=generator), range(500))
    vectors = torch.randn(500, 8, generator=generator)
    found = example_similarity(top, lambda n: vectors[n], 500, m=[5], draws=400)[5]
    assert abs(float(found.win_rate.mean()) - 0.5) < 0.02
    assert abs(float((found.p <= 0.1).double().mean()) - 0.1) < 0.05
    assert abs(float(found.lift.mean())) < 0.03


def test_each_number_that_is_needed_is_embedded_once_and_no_other() -> None:
    top, vectors = drawn()
    asked: list[list[int]] = []

    def embed(numbers: Sequence[int]) -> Tensor:
        asked.append(list(numbers))
        return vectors[list(numbers)]

    example_similarity(top, embed, N, m=[3, 5], draws=2, batch_size=7)
    flat = [number for batch in asked for number in batch]
    needed = {n for feature in range(FEATURES) for n, _ in top.of(feature)[:5]}
    needed |= set(room._draw(N, [3, 5], 2, 0).flatten().tolist())
    assert sorted(flat) == sorted(needed)
    assert len(needed) < N
    assert max(map(len, asked)) == 7


def test_numbers_far_beyond_memory_can_be_drawn_from() -> None:
    top, _ = drawn()
    counted = 0

    def embed(numbers: Sequence[int]) -> Tensor:
        nonlocal counted
        counted += len(numbers)
        assert len(set(numbers)) == len(numbers)
        return torch.tensor([[1.0, n % 7, n % 11] for n in numbers])

    example_similarity(top, embed, 10**12, m=[3, 5], draws=6)
    assert counted <= 6 * 5 + 5 * FEATURES


def test_how_it_is_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = measured()
    monkeypatch.setattr(room, "_SCRATCH", 1)
    cut, _, _ = measured(batch_size=3)
    for m in (3, 5, 8):
        for name in ("similarity", "p", "win_rate"):
            a, b = getattr(whole[m], name), getattr(cut[m], name)
            assert torch.allclose(a, b, rtol=0, atol=1e-11, equal_nan=True)
        assert whole[m].random.value == pytest.approx(cut[m].random.value, abs=1e-11)


def test_the_seed_decides_the_draws_and_nothing_else_does() -> None:
    once, _, _ = measured(seed=0)
    again, _, _ = measured(seed=0)
    assert once[5].random == again[5].random
    top, vectors = drawn()
    other = example_similarity(top, lambda n: vectors[n], N, m=[5], draws=30, seed=1)
    same = example_similarity(top, lambda n: vectors[n], N, m=[5], draws=30, seed=0)
    assert other[5].random != same[5].random
    assert other[5].random != once[5].random
    assert other.seed == 1 and other.draws == 30


def test_where_there_are_too_few_examples_to_draw_nothing_is_scored() -> None:
    top = TopExamples(2, 4)
    top.update(torch.rand(3, 2) + 0.1, range(3))
    found = example_similarity(top, lambda n: torch.eye(3)[n], 3, m=[2, 4], draws=5)
    assert found[2].enough == 2
    assert found[4].enough == 0 and math.isnan(found[4].random.value)


def test_all_examples_there_are_can_be_drawn_and_are_as_similar_as_themselves() -> None:
    top = TopExamples(1, 3)
    top.update(torch.ones(3, 1), range(3))
    vectors = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    found = example_similarity(top, lambda n: vectors[n], 3, m=[3], draws=5)[3]
    assert float(found.similarity) == pytest.approx((0.6 + 0.8) / 3)
    assert found.lift.tolist() == pytest.approx([0.0], abs=1e-11)
    assert found.p.tolist() == [1.0] and found.random_sd == pytest.approx(0)


def test_a_top_example_one_beyond_the_last_is_refused() -> None:
    top, vectors = drawn()
    last = int(top.numbers.max())
    with pytest.raises(VlmEditError, match=f"but example {last} is"):
        example_similarity(top, lambda n: vectors[n], last, m=[3])


def test_without_any_example_nothing_is_scored() -> None:
    found = example_similarity(TopExamples(2, 4), lambda n: torch.eye(3)[n], 0, m=[2])
    assert found[2].enough == 0
    assert found.summary()[2].win_rate.n == 0


def test_the_summary_is_the_mean_over_features_that_have_enough() -> None:
    found, _, _ = measured()
    summary = found.summary()
    for m in (3, 5, 8):
        scores = found[m].win_rate[~found[m].win_rate.isnan()]
        assert summary[m].win_rate == mean_estimate(scores)
        assert summary[m].similarity.n == found[m].enough
    mask = torch.tensor([False, True, False, True, True])
    for features in (mask, [1, 3, 4], torch.tensor([1, 3, 4])):
        part = found[3].summary(features)
        assert part.lift.n == 2
        assert part.lift.value == pytest.approx(float(found[3].lift[[1, 3]].mean()))
    assert found[3].summary([]).similarity.n == 0
    assert math.isnan(found[8].summary([3]).lift.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": (10,)}, "8 are kept"),
        ({"m": (1, 3)}, "at least two"),
        ({"m": ()}, "at least two"),
        ({"draws": 1}, "draws is 1"),
        ({"n_examples": 10}, "n_examples is 10, but example"),
        ({"embed": lambda n: torch.ones(len(n))}, "embed must give"),
        ({"embed": lambda n: torch.ones(len(n) + 1, 2)}, "embed must give"),
        ({"embed": lambda n: torch.ones(len(n), 1 + n[0]), "batch_size": 2}, "embed must give"),
        ({"embed": lambda n: torch.zeros(len(n), 2)}, "embedding of example 2 is zero"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], message: str) -> None:
    top, vectors = drawn()
    embed: Callable[[Sequence[int]], Tensor] = lambda n: vectors[n]  # noqa: E731
    arguments = {"embed": embed, "n_examples": N, "m": (3, 5), "draws": 5, **options}
    with pytest.raises(VlmEditError, match=message):
        example_similarity(top, **arguments)


def test_a_number_of_examples_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(VlmEditError, match=r"m=4, but for \[3, 5, 8\]"):
        measured()[0][4]
