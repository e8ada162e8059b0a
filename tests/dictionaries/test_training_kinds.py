from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.objective import Objective
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError

CONFIG = TrainConfig(n_features=64, k=3, steps=800, batch_size=256, lr=3e-3)
OPTIONS: dict[str, dict[str, Any]] = {
    "relu": {"target_l0": 3.0, "steps": 1000},
    "topk": {},
    "batchtopk": {},
    "jumprelu": {"target_l0": 3.0, "steps": 1000},
    "gated": {"target_l0": 3.0, "steps": 1000},
    "matryoshka": {},
}


def atoms(n: int = 32) -> Tensor:
    return F.normalize(torch.randn(n, 24, generator=torch.Generator().manual_seed(99)), dim=1)


def planted(n: int, seed: int) -> Tensor:
    """Sparse non-negative mixtures of 32 directions in 24 dimensions, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, 32, generator=generator) < 3 / 32
    return (active * (0.5 + torch.rand(n, 32, generator=generator))) @ atoms() + 2.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_each_kind_finds_the_planted_directions_at_the_l0_asked_for(kind: str) -> None:
    config = replace(CONFIG, kind=kind, **OPTIONS[kind])
    found = train_dictionary({"image": planted(4000, 0)}, config, progress=False)
    least = 0.85 if kind == "matryoshka" else 0.9
    assert float((found.decoder @ atoms().T).amax(0).mean()) > least
    codes = found.encode(planted(1000, 1), "image")
    assert 2.4 < float((codes > 0).sum(1).double().mean()) < 3.6
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(64), atol=1e-5)
    expected = {"relu": "relu", "topk": "topk"}.get(kind, "jumprelu")
    assert found.encoder.activation == expected


@pytest.mark.slow
def test_a_larger_penalty_leaves_fewer_features() -> None:
    for kind, small, large in (("relu", 0.01, 0.5), ("jumprelu", 0.005, 0.05)):
        config = replace(CONFIG, kind=kind, steps=300)
        l0 = [
            float((found.encode(planted(500, 1), "image") > 0).double().sum(1).mean())
            for found in (
                train_dictionary(
                    {"image": planted(2000, 0)}, replace(config, sparsity=s), progress=False
                )
                for s in (small, large)
            )
        ]
        assert l0[1] < 0.6 * l0[0]


def test_the_first_features_of_matryoshka_reconstruct_alone() -> None:
    explained = {}
    for kind in ("matryoshka", "batchtopk"):
        found = train_dictionary(
            {"image": planted(4000, 0)}, replace(CONFIG, kind=kind, k=6, steps=300), progress=False
        )
        x = planted(1000, 1)
        codes = found.encode(x, "image")
        codes[:, 16:] = 0
        target = x - found.encoder.center("image")
        left = (target - found.decode(codes)).square().sum()
        explained[kind] = float(1 - left / (target - target.mean(0)).square().sum())
    assert explained["matryoshka"] > explained["batchtopk"] + 0.1


def sides(n: int, seed: int) -> dict[str, Tensor]:
    """Pairs with the same codes, each side in its own half of the space beside a shared part."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, 16, generator=generator) < 2 / 16
    codes = active * (0.5 + torch.rand(n, 16, generator=generator))
    shared = atoms(16)
    apart = F.normalize(torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(5)), dim=2)
    return {
        name: codes @ (shared + 1.2 * own)
        for name, own in zip(("image", "text"), apart, strict=True)
    }


def shared_features(found: Dictionary) -> float:
    """Share of the living features whose codes of both sides of pairs go together."""
    pairs = sides(1000, 1)
    image, text = (found.encode(x, name) for name, x in pairs.items())
    alive = (image > 0).any(0) | (text > 0).any(0)
    both = ((image > 0) & (text > 0)).sum(0) / ((image > 0) | (text > 0)).sum(0).clamp_min(1)
    return float((both[alive] > 0.3).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{"group": 0.2}, {"group": 0.2, "mask": 0.2}])
def test_the_group_penalty_makes_features_shared(extra: dict[str, float]) -> None:
    config = replace(CONFIG, kind="topk")
    plain = train_dictionary(sides(4000, 0), config, progress=False)
    grouped = train_dictionary(sides(4000, 0), replace(config, **extra), progress=False)
    assert shared_features(grouped) > shared_features(plain) + 0.1


@pytest.mark.slow
def test_alignment_makes_codes_of_the_two_sides_alike_and_leaves_what_is_explained() -> None:
    pairs, alike, explained = sides(1000, 1), [], []
    for align in (0.0, 0.1):
        config = replace(CONFIG, kind="topk", align=align, mask=1e-9)  # of the same pairs
        found = train_dictionary(sides(4000, 0), config, progress=False)
        image, text = (found.encode(x, name) for name, x in pairs.items())
        alike.append(float(F.cosine_similarity(image, text).mean()))
        explained.append(found.explained_variance(pairs["image"], "image"))
    assert alike[1] > alike[0] + 0.2
    assert explained[1] > explained[0] - 0.05


def test_sides_with_next_to_no_codes_have_no_gradient_without_bound() -> None:
    config = TrainConfig(n_features=6, k=2, kind="relu", align=1.0)
    objective = Objective(torch.eye(6)[:, :4], torch.zeros(4), config)
    x = torch.tensor([[1.0, -1, -1, -1], [1e-6, 1e-6, -1, -1]])
    loss, _ = objective(x, None, None, 0.0, 0.0)
    loss.backward()
    assert objective.weight.grad is not None and bool(objective.weight.grad.isfinite().all())
    assert float(objective.weight.grad.abs().max()) < 200


def test_batches_are_balanced_and_pairs_stay_together() -> None:
    image = torch.arange(1.0, 101.0)[:, None].repeat(1, 2)
    cpu = torch.device("cpu")
    config = TrainConfig(4, 1, 5, 20, center=False)
    uneven = {"image": image, "text": -image[:7]}
    x = Trainer(Data.of(uneven, config), config, cpu)._batch()[0]
    assert bool((x[:10] > 0).all()) and bool((x[10:] < 0).all()) and len(x) == 20
    for extra, together in (
        ({"group": 0.1}, True),
        ({"mask": 0.5}, True),
        ({"align": 0.1}, True),
        ({}, False),
    ):
        config = TrainConfig(4, 1, 5, 20, center=False, **extra)
        trainer = Trainer(Data.of({"image": image, "text": -image}, config), config, cpu)
        x, mask, _ = trainer._batch()
        assert torch.equal(x[:10], -x[10:]) == together
        if mask is not None:
            assert torch.equal(mask[:10], mask[10:])
            assert not torch.equal(mask[0], mask[1]) or not torch.equal(mask[0], mask[2])
            assert set(mask.unique().tolist()) == {0.0, 1.0}


def loss_of(config: TrainConfig, x: Tensor, coefficient: float = 0.0) -> tuple[Tensor, Objective]:
    rows = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), dim=1)
    objective = Objective(rows, torch.zeros(4), config)
    return objective(x, None, None, coefficient, 0.0)[0], objective


def test_losses_are_those_of_their_formulas() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(4))
    variance = (x - x.mean(0)).square().sum(1).mean()
    base = TrainConfig(n_features=6, k=2, kind="relu")
    loss, objective = loss_of(base, x, 0.3)
    codes = torch.relu(x @ objective.weight)
    error = (x - codes @ objective.decoder).square().sum(1).mean() / variance
    assert torch.allclose(loss, error + 0.3 * codes.sum(1).mean())
    grouped, _ = loss_of(replace(base, group=0.7), x)
    pairs = (codes[:4].square() + codes[4:].square()).sqrt()
    assert torch.allclose(grouped, error + 0.7 * pairs.sum(1).mean())
    aligned, _ = loss_of(replace(base, align=0.7), x)
    one, two = codes.double().split(4)
    cosines = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    assert torch.allclose(aligned, error - 0.7 * cosines.mean().float())
    loss, objective = loss_of(replace(base, kind="jumprelu"), x, 0.3)
    pre = x @ objective.weight
    codes = pre * (pre > 0.05)
    error = (x - codes @ objective.decoder).square().sum(1).mean() / variance
    assert torch.allclose(loss, error + 0.3 * (codes > 0).sum(1).float().mean())
    nested = replace(base, kind="matryoshka", prefixes=(0.5, 1.0))
    loss, objective = loss_of(nested, x)
    pre = torch.relu(x @ objective.weight)
    codes = pre * (pre >= pre.flatten().topk(16).values[-1])
    parts = [
        (x - codes[:, :n] @ objective.decoder[:n]).square().sum(1).mean() / variance for n in (3, 6)
    ]
    assert torch.allclose(loss, sum(parts) / 2)


def test_gradients_of_thresholds_are_those_of_the_rectangle() -> None:
    config = TrainConfig(n_features=6, k=2, kind="jumprelu", bandwidth=0.4)
    x = 0.3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    loss, objective = loss_of(config, x, 0.3)
    loss.backward()
    variance = (x - x.mean(0)).square().sum(1).mean()
    pre = (x @ objective.weight).detach()
    inside = ((pre - 0.05).abs() < 0.2) / 0.4
    codes = pre * (pre > 0.05)
    toward = 2 * (codes @ objective.decoder - x) @ objective.decoder.T / variance / 50
    expected = (-0.05 * inside * toward - 0.3 * inside / 50).sum(0) * 0.05
    assert objective.log_threshold.grad is not None
    assert torch.allclose(objective.log_threshold.grad, expected.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gates"}, "unknown kind 'gates'"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"mask": 1.0}, "mask is 1.0"),
        ({"group": -1.0}, "group is -1.0"),
        ({"align": -1.0}, "align is -1.0"),
        ({"align": 0.1}, "group, mask and align need both streams"),
        ({"kind": "ncl", "align": 0.1}, "kind 'ncl' has no align"),
        ({"kind": "jumprelu", "bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"target_l0": 3.0}, "batchtopk takes k instead"),
        ({"kind": "relu", "target_l0": 900.0}, "target_l0 is 900.0"),
        ({"kind": "relu", "target_l0": 9.0, "sparsity": 0.0}, "sparsity above 0"),
        ({"kind": "matryoshka", "prefixes": (0.5,)}, "the last of them 1"),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        train_dictionary({"image": torch.randn(9, 4)}, TrainConfig(**options), progress=False)


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "jumprelu", "matryoshka"])
def test_a_frozen_decoder_keeps_the_random_rows_it_began_with(kind: Any) -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(n_features=16, k=2, steps=40, batch_size=64, kind=kind, frozen="decoder")
    frozen = train_dictionary({"image": x}, config, progress=False)
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.nn.functional.normalize(torch.randn(16, 8, generator=generator), dim=1)
    assert torch.equal(frozen.decoder, rows)
    assert not torch.allclose(frozen.encoder.weight, rows.T, atol=1e-2)
    free = train_dictionary({"image": x}, replace(config, frozen=None), progress=False)
    assert not torch.allclose(free.decoder, rows, atol=1e-2)


def test_a_frozen_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(n_features=16, k=2, steps=40, batch_size=64, frozen="decoder")
    whole = train_dictionary({"image": x}, config, progress=False)
    data, device = Data.of({"image": x}, config), torch.device("cpu")
    trainer = Trainer(data, config, device)
    for _ in range(15):
        trainer.step()
    Checkpoint(tmp_path / "state", 0.0, trainer).keep(last=True)
    resumed = train_dictionary({"image": x}, config, checkpoint=tmp_path / "state", progress=False)
    assert resumed.digest() == whole.digest()


def test_what_is_frozen_is_a_decoder_that_is_trained_at_all() -> None:
    x = {"image": torch.randn(9, 4), "text": torch.randn(9, 4)}
    with pytest.raises(VlmEditError, match="frozen is 'all'"):
        train_dictionary(x, TrainConfig(frozen="all"), progress=False)  # type: ignore[arg-type]
    with pytest.raises(VlmEditError, match="kind 'ncl' has no frozen"):
        train_dictionary(x, TrainConfig(kind="ncl", frozen="decoder"), progress=False)
