"""A wanted number of active features is reached, or it is said that it is not."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.target import Codes, Target, raised, rescaled, shifted
from vlm_edit.ground.errors import VlmEditWarning


def planted(n: int, seed: int) -> Tensor:
    """Sums of about 6 of 128 directions of 32 dimensions, rarer and rarer ones, off the origin."""
    known = torch.Generator().manual_seed(77)
    directions = F.normalize(torch.randn(128, 32, generator=known), dim=1)
    often = 1 / torch.arange(1, 129).sqrt()
    often = (often * 6 / often.sum()).clamp(max=0.4)
    g = torch.Generator().manual_seed(seed)
    there = torch.rand(n, 128, generator=g) < often
    return (there * (0.5 + torch.rand(n, 128, generator=g))) @ directions + 0.3


def active(x: Tensor, config: TrainConfig, fresh: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmEditWarning)
        found = train_dictionary({"image": x}, config, progress=False)
    return float((found.encode(fresh, "image") != 0).double().sum(1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
@pytest.mark.parametrize(("target", "lr"), [(3.0, 3e-3), (6.0, 1e-3), (20.0, 3e-3)])
@pytest.mark.parametrize("seed", range(3))
def test_a_target_is_reached_within_a_twentieth(
    kind: Any, target: float, lr: float, seed: int
) -> None:
    config = TrainConfig(
        n_features=128, k=6, steps=1000, batch_size=256, kind=kind, target_l0=target, lr=lr,
        seed=seed,
    )  # fmt: skip
    # Of so many the mean has a standard error of about 1 %.
    assert active(planted(20_000, 1), config, planted(40_000, 2)) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("wanted", [0.5, 2.0, 4.0])
def test_one_number_for_all_features_gives_the_wanted_number(wanted: float) -> None:
    config = TrainConfig(n_features=12, k=2)
    image, text = planted(300, 1), 2 * planted(100, 2)
    data = Data.of({"image": image, "text": text}, config)
    g = torch.Generator().manual_seed(5)
    codes = Codes(torch.randn(32, 12, generator=g), torch.randn(12, generator=g), torch.ones(32))
    threshold = torch.rand(12, generator=g) + 0.5

    def l0(bias: Tensor, threshold: Tensor) -> float:
        pre = [(x - x.mean(0) - 1) @ codes.weight + bias for x in (image, text)]
        return float(sum((each > threshold).double().sum(1).mean() for each in pre) / 2)

    scaled, told = rescaled(data, codes, threshold, wanted)
    torch.testing.assert_close(scaled / threshold, (scaled / threshold)[:1].expand(12))
    # One code more or fewer is a 200th of a text, and a bin may hold some.
    assert told == pytest.approx(wanted, abs=0.02)
    assert l0(codes.bias, scaled) == pytest.approx(told, abs=0.02)
    bias, told = shifted(data, codes, wanted)
    torch.testing.assert_close(bias - codes.bias, (bias - codes.bias)[:1].expand(12))
    assert told == pytest.approx(wanted, abs=0.02)
    assert l0(bias, torch.zeros(12)) == pytest.approx(told, abs=0.02)


@pytest.mark.parametrize("wanted", [1.0, 3.0, 5.5, 11.0])
def test_thresholds_that_end_at_0_count_only_codes_that_are_there(wanted: float) -> None:
    data = Data.of({"image": planted(300, 1)}, TrainConfig(n_features=12, k=2))
    g = torch.Generator().manual_seed(5)
    codes = Codes(torch.randn(32, 12, generator=g), torch.zeros(12), torch.zeros(32))
    before = torch.linspace(0, 1.5, 12)
    threshold, told = raised(data, codes, before, wanted)
    x = planted(300, 1)
    pre = (x - x.mean(0)) @ codes.weight
    active = float(((pre > threshold) & (pre > 0)).double().sum(1).mean())
    most = float((pre > 0).double().sum(1).mean())
    assert bool((threshold >= 0).all())
    assert told == pytest.approx(active, abs=0.02)
    assert told == pytest.approx(min(wanted, most), abs=0.02)
    moved = (threshold - before)[threshold > 0]
    torch.testing.assert_close(moved, moved[:1].expand(len(moved)))
    assert 5.5 < most < 6.5
    assert bool((threshold == 0).any()) == (wanted > 3)


def test_a_bias_is_found_with_which_nearly_all_features_are_active() -> None:
    config = TrainConfig(n_features=12, k=2)
    data = Data.of({"image": planted(300, 1)}, config)
    weight = torch.randn(32, 12, generator=torch.Generator().manual_seed(5))
    codes = Codes(weight, torch.full((12,), -9.0), torch.zeros(32))
    bias, told = shifted(data, codes, 11.9)
    assert told == pytest.approx(11.9, abs=0.05)
    x = planted(300, 1)
    active = ((x - x.mean(0)) @ weight + bias > 0).double().sum(1).mean()
    assert float(active) == pytest.approx(11.9, abs=0.05)


def test_thresholds_are_set_on_rows_of_all_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_edit.dictionaries.training.target._ROWS", 100)
    config = TrainConfig(n_features=12, k=2, center=False)
    x = planted(1000, 1)
    x = x[x.norm(dim=1).argsort()]  # the first are short
    weight = torch.randn(32, 12, generator=torch.Generator().manual_seed(5))
    codes = Codes(weight, torch.zeros(12), torch.zeros(32))
    bias, _ = shifted(Data.of({"image": x}, config), codes, 3.0)
    active = (x @ weight + bias > 0).double().sum(1).mean()
    assert float(active) == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize(
    ("wanted", "reached", "told"),
    [(20.0, 20.9, False), (20.0, 21.1, True), (0.5, 0.54, True), (0.5, 0.46, True), (None, 9.0, 0)],
)
def test_a_target_is_missed_by_its_twentieth(
    wanted: float | None, reached: float, told: bool
) -> None:
    target = Target(TrainConfig(kind="jumprelu", target_l0=wanted))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target.warn(reached)
    assert bool(caught) == told


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_a_target_that_cannot_be_reached_is_told(kind: Any) -> None:
    x = {"image": planted(500, 1)}
    # Thresholds do not open features whose pre-activations are negative.
    config = TrainConfig(16, 2, 5, 64, kind=kind, target_l0=16.0)
    told = r"features are active, and target_l0 is 16: train in"
    with pytest.warns(VlmEditWarning, match=told) as caught:
        found = train_dictionary(x, config, progress=False)
    l0 = float((found.encode(x["image"], "image") > 0).double().sum(1).mean())
    assert float(str(caught[0].message).split()[0]) == pytest.approx(l0, abs=0.02)
