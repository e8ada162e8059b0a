"""Gates, where a run begins, and how precisely it computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import PairedDictionary, TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.objective import Objective
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError

CONFIG = TrainConfig(n_features=24, k=2, steps=60, batch_size=64, kind="gated", sparsity=0.1)
CPU = torch.device("cpu")


def rows(n: int = 400, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0)) + 0.5


def trained(config: TrainConfig) -> Trainer:
    trainer = Trainer(Data.of({"image": rows()}, config), config, CPU)
    for _ in range(config.steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize(
    ("steps", "given", "patience"),
    [(1000, None, 25), (4000, None, 100), (80_000, None, 200), (30, None, 1), (1000, 7, 7)],
)
def test_a_feature_counts_as_dead_by_the_length_of_a_run(
    steps: int, given: int | None, patience: int
) -> None:
    assert TrainConfig(steps=steps, dead_after=given).patience == patience


def test_the_default_is_the_number_that_it_stands_for() -> None:
    config = replace(CONFIG, kind="topk", sparsity=TrainConfig.sparsity, n_features=64)
    default = trained(replace(config, steps=120)).result({})
    said = trained(replace(config, steps=120, dead_after=3)).result({})
    other = trained(replace(config, steps=120, dead_after=100)).result({})
    assert torch.equal(default.decoder, said.decoder)
    assert not torch.equal(default.decoder, other.decoder)


def test_the_losses_of_gates_are_those_of_their_formulas() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    directions = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
    gated = Objective(
        F.normalize(directions, dim=1), torch.zeros(6), replace(CONFIG, n_features=12)
    )
    with torch.no_grad():
        gated.gate_bias.copy_(torch.linspace(-0.5, 0.5, 12))
        gated.log_gain.copy_(torch.linspace(0.3, -0.3, 12))
        gated.bias.copy_(torch.linspace(0.1, -0.2, 12))
        gated.decoder_bias.copy_(torch.linspace(-1, 1, 6))
    loss, figures = gated(x, None, None, 0.3, 0.0)
    W, D, b = gated.weight.detach(), gated.decoder.detach(), gated.decoder_bias.detach()
    total, count = torch.zeros(()), 0
    for row in x:
        z = (row - b) @ W
        gate = z + gated.gate_bias.detach()
        size = (z * gated.log_gain.detach().exp() + gated.bias.detach()).clamp_min(0)
        codes = torch.where(gate > 0, size, 0.0)
        open_ = gate.clamp_min(0)
        variance = (x - x.mean(0)).square().sum(1).mean()
        ours = (row - codes @ D - b).square().sum() + (row - open_ @ D - b).square().sum()
        total, count = total + ours / variance + 0.3 * open_.sum(), count + int((codes > 0).sum())
    assert torch.allclose(loss, total / 20, rtol=1e-5)
    assert float(figures.l0) == pytest.approx(count / 20)
    loss.backward()
    alone = torch.autograd.grad(
        ((x - (F.relu((x - gated.decoder_bias) @ gated.weight * gated.log_gain.exp() + gated.bias)
        * ((x - b) @ W + gated.gate_bias > 0)) @ gated.decoder - gated.decoder_bias)
        .square().sum(1).mean() / (x - x.mean(0)).square().sum(1).mean()), gated.decoder,
    )[0]  # fmt: skip
    assert gated.decoder.grad is not None  # the gates' own loss does not move the decoder
    torch.testing.assert_close(gated.decoder.grad, alone, rtol=1e-4, atol=1e-6)


def test_in_use_gates_are_thresholds_with_the_codes_of_training() -> None:
    trainer = trained(CONFIG)
    dictionary, gated = trainer.result({}), trainer.objective
    assert isinstance(gated, Objective)
    x = rows()
    with torch.no_grad():
        z = ((x - x.mean(0)) / trainer.data.scale - gated.decoder_bias) @ gated.weight
        size = F.relu(z * gated.log_gain.exp() + gated.bias)
        expected = torch.where(z + gated.gate_bias > 0, size, 0.0) * trainer.data.scale
    assert dictionary.encoder.activation == "jumprelu"
    torch.testing.assert_close(dictionary.encode(x, "image"), expected, rtol=1e-4, atol=1e-5)
    assert 0 < float((expected > 0).float().mean()) < 1


def test_the_median_is_where_the_sum_of_distances_is_least() -> None:
    x = torch.cat([rows(300, 3), 50 + rows(20, 3)])
    data = Data.of({"image": x}, replace(CONFIG, center=False))
    middle = data.median()

    def distance(point: Tensor) -> float:
        return float((x.double() - point.double()).norm(dim=1).sum())

    least = distance(middle)
    for step in torch.eye(3):
        assert least < distance(middle + 0.02 * step) and least < distance(middle - 0.02 * step)
    assert least < distance(x.mean(0)) - 100
    config = replace(CONFIG, center=False, middle="median")
    begun = Trainer(Data.of({"image": x}, config), config, CPU).objective
    assert isinstance(begun, Objective)
    torch.testing.assert_close(begun.decoder_bias.detach(), middle / data.scale)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "matryoshka", "gated", "relu"])
def test_in_bfloat16_the_dictionary_is_nearly_as_good_and_float32(kind: str) -> None:
    config = replace(CONFIG, kind=kind, steps=150, sparsity=0.01)
    explained = []
    for precision in ("float32", "bfloat16"):
        told = replace(config, precision=precision)
        found = train_dictionary({"image": rows()}, told, progress=False)
        assert found.decoder.dtype == found.encoder.weight.dtype == torch.float32
        explained.append(found.explained_variance(rows(), "image"))
    assert explained[0] != explained[1]
    assert explained[1] == pytest.approx(explained[0], abs=0.02)


def test_other_words_are_refused() -> None:
    for options, told in (
        ({"middle": "mode"}, "middle is 'mode': use 'mean' or 'median'"),
        ({"precision": "int8"}, "precision is 'int8': use 'float32' or 'bfloat16'"),
        ({"kind": "ncl", "precision": "bfloat16"}, "kind 'ncl' has no precision"),
    ):
        with pytest.raises(VlmEditError, match=told):
            TrainConfig(**options).expect()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_a_run_that_begins_with_a_dictionary_is_that_dictionary(kind: str) -> None:
    config = replace(CONFIG, kind=kind)
    first = train_dictionary({"image": rows()}, config, progress=False)
    # The same in other units: longer rows, and a shift that the bias takes back.
    sizes = torch.linspace(0.5, 2, 24)
    moved = torch.linspace(-1, 1, 8)
    encoder = first.encoder
    threshold = None if encoder.threshold is None else encoder.threshold / sizes
    assert encoder.subtract is not None
    other = replace(
        encoder, weight=encoder.weight / sizes, threshold=threshold,
        subtract=encoder.subtract + moved, bias=(encoder.bias + moved @ encoder.weight) / sizes,
    )  # fmt: skip
    start = replace(first, encoder=other, decoder=first.decoder * sizes[:, None])
    # TopK picks the largest codes, which have other sizes there.
    if kind != "topk":
        torch.testing.assert_close(
            start.reconstruct(rows(), "image"), first.reconstruct(rows(), "image"),
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip
    told = replace(config, steps=1, lr=0.0)
    same = train_dictionary({"image": rows()}, told, start=start, progress=False)
    torch.testing.assert_close(same.decoder, first.decoder, rtol=1e-4, atol=1e-5)
    if kind in ("batchtopk", "matryoshka"):
        begun = Trainer(Data.of({"image": rows()}, config), config, CPU, start)
        assert start.encoder.threshold is not None
        mean = (start.encoder.threshold * sizes).mean() / begun.data.scale
        torch.testing.assert_close(begun.threshold, mean)  # where the first cut is looked for
        # In use it is that of the batch, after a step.
        same = replace(same, encoder=replace(same.encoder, threshold=encoder.threshold))
    torch.testing.assert_close(
        same.encode(rows(), "image"), first.encode(rows(), "image"), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("without", [[], [3], [0, 5, 23], list(range(24))])
def test_features_without_a_threshold_begin_with_that_of_a_new_run(without: list[int]) -> None:
    config = replace(CONFIG, kind="jumprelu")
    data = Data.of({"image": rows()}, config)
    first = train_dictionary({"image": rows()}, config, progress=False)
    given = torch.linspace(0.01, 0.9, 24) * data.scale
    given[without] = 0
    given[without[1:2]] = -0.5  # which is none either, as codes are above 0
    start = replace(first, encoder=replace(first.encoder, threshold=given))
    begun = Trainer(data, config, CPU, start).objective
    new = Trainer(data, config, CPU).objective
    assert isinstance(begun, Objective) and isinstance(new, Objective)
    expected = given / data.scale
    expected[without] = new.thresholds[without]
    torch.testing.assert_close(begun.thresholds, expected)


def test_a_target_is_reached_from_a_start_that_lacks_some_thresholds() -> None:
    config = replace(CONFIG, kind="jumprelu", steps=300, lr=1e-2, target_l0=4.0)
    first = train_dictionary({"image": rows()}, config, progress=False)
    assert first.encoder.threshold is not None
    some = first.encoder.threshold * (torch.arange(24) % 4 > 0)
    start = replace(first, encoder=replace(first.encoder, threshold=some))
    found = train_dictionary({"image": rows()}, config, start=start, progress=False)
    l0 = (found.encode(rows(), "image") > 0).float().sum(1).mean()
    assert float(l0) == pytest.approx(4.0, rel=0.05)
    assert found.explained_variance(rows(), "image") > 0.9


def test_a_run_goes_on_only_with_the_dictionary_it_began_with(tmp_path: Path) -> None:
    one, two = (
        train_dictionary({"image": rows()}, replace(CONFIG, seed=seed), progress=False)
        for seed in (0, 1)
    )
    config = replace(CONFIG, kind="batchtopk", lr=1e-3)
    whole = train_dictionary({"image": rows()}, config, start=one, progress=False)
    trainer = Trainer(Data.of({"image": rows()}, config), config, CPU, one)
    for _ in range(20):
        trainer.step()
    Checkpoint(tmp_path / "c", 0.0, trainer).keep(last=True)
    kept: dict[str, Any] = {"checkpoint": tmp_path / "c", "progress": False}
    with pytest.raises(VlmEditError, match="with another start"):
        train_dictionary({"image": rows()}, config, start=two, **kept)
    with pytest.raises(VlmEditError, match="with another start"):
        train_dictionary({"image": rows()}, config, **kept)
    again = train_dictionary({"image": rows()}, config, start=one, **kept)
    assert again.digest() == whole.digest()


def test_a_dictionary_that_does_not_fit_the_run_is_no_start() -> None:
    start = train_dictionary({"image": rows()}, CONFIG, progress=False)
    for options, told in (
        ({"n_features": 12}, "start has n_features 24, and this run 12"),
        ({"norm": "layer_norm"}, "start has norm 'none', and this run 'layer_norm'"),
        ({"center": False}, "start has center True, and this run False"),
    ):
        with pytest.raises(VlmEditError, match=told):
            train_dictionary({"image": rows()}, replace(CONFIG, **options), start=start)
    squared = replace(start, encoder=replace(start.encoder, activation="identity", threshold=None))
    with pytest.raises(VlmEditError, match="start has activation .identity., or a soft cap"):
        train_dictionary({"image": rows()}, CONFIG, start=squared)
    capped = replace(start, encoder=replace(start.encoder, soft_cap=5.0))
    with pytest.raises(VlmEditError, match="or a soft cap, and runs train none like it"):
        train_dictionary({"image": rows()}, CONFIG, start=capped)
    silent = replace(start, decoder=start.decoder * (torch.arange(24) > 0)[:, None])
    with pytest.raises(VlmEditError, match="start has decoder rows of zeros"):
        train_dictionary({"image": rows()}, CONFIG, start=silent)
    with pytest.raises(VlmEditError, match="start has width 8, and this run 3"):
        train_dictionary({"image": rows(50, 3)}, CONFIG, start=start)
    with pytest.raises(VlmEditError, match="start is a PairedDictionary: give a Dictionary"):
        train_dictionary({"image": rows()}, CONFIG, start=PairedDictionary(start, start))  # type: ignore[arg-type]
