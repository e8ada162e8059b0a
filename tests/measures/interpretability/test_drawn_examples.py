"""Examples drawn among all that activate a feature."""

import torch

from vlm_edit.measures.interpretability import DrawnExamples
from vlm_edit.measures.interpretability.drawn import _drawn

MASK = (1 << 64) - 1


def splitmix(number: int) -> float:
    """The generator as it was published, in whole numbers of Python."""
    z = (number + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (((z ^ z >> 31) >> 40) + 1) / (1 << 24)


def test_what_is_drawn_is_splitmix64() -> None:
    numbers = [0, 1, 2, 12345, 2**32, 2**62 + 7]
    assert _drawn(torch.tensor(numbers)).tolist() == [splitmix(n) for n in numbers]


def test_those_with_the_highest_draw_are_kept_with_their_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(300, 5, generator=generator).clamp(min=0)
    numbers = (torch.randperm(10_000, generator=generator)[:300]).tolist()
    drawn = DrawnExamples(5, 4)
    drawn.update(codes, numbers)
    for feature in range(5):
        active = [(splitmix(n), n, float(codes[i, feature])) for i, n in enumerate(numbers)
                  if codes[i, feature] > 0]  # fmt: skip
        wanted = [(n, value) for _, n, value in sorted(active, reverse=True)[:4]]
        assert drawn.of(feature) == wanted


def test_cuts_and_merges_in_any_order_keep_the_same() -> None:
    codes = torch.rand(64, 6, generator=torch.Generator().manual_seed(1)) - 0.5
    whole = DrawnExamples(6, 3)
    whole.update(codes, range(64))
    parts = []
    for start in range(0, 64, 16):
        part = DrawnExamples(6, 3)
        part.update(codes[start : start + 16], range(start, start + 16))
        parts.append(part)
    for part in parts[:-1][::-1]:
        parts[-1].merge(part)
    assert torch.equal(parts[-1].numbers, whole.numbers)
    assert torch.equal(parts[-1].values, whole.values)
    again = DrawnExamples(6, 3)
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.numbers, whole.numbers)


def test_every_example_is_as_likely() -> None:
    """Over many numberings each of 20 examples, strong or weak, is kept in 3 of 20 draws."""
    codes = torch.arange(1.0, 21.0)[:, None]
    kept = torch.zeros(20)
    trials = 2000
    for trial in range(trials):
        drawn = DrawnExamples(1, 3)
        drawn.update(codes, range(20 * trial, 20 * trial + 20))
        kept[drawn.numbers[0] - 20 * trial] += 1
    share = kept / trials
    assert float((share - 0.15).abs().max()) < 4.5 * (0.15 * 0.85 / trials) ** 0.5


def test_fewer_than_are_kept_are_all_there() -> None:
    drawn = DrawnExamples(2, 4)
    drawn.update(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), [5, 9])
    assert sorted(drawn.of(0)) == [(5, 1.0), (9, 2.0)] and drawn.of(1) == []
