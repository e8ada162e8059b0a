import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.cli import main
from vlm_edit.dictionaries import (
    Dictionary,
    TrainConfig,
    load_dictionary,
    save_saelens,
    train_dictionary,
)
from vlm_edit.dictionaries.training import contrast
from vlm_edit.dictionaries.training.contrast import fit_decoder, info_nce, rep_relu
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError

CONFIG = TrainConfig(n_features=48, steps=600, batch_size=512, kind="ncl")
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def atoms(n: int = 40) -> Tensor:
    return F.normalize(random(n, 32, seed=99), dim=1)


def planted(n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Pairs that share 24 features; each side has 8 of its own, noise, and a place far away."""
    generator = torch.Generator().manual_seed(seed)

    def codes(size: int, l0: float) -> Tensor:
        active = torch.rand(n, size, generator=generator) < l0 / size
        return active * (0.5 + torch.rand(n, size, generator=generator))

    shared, sides = codes(24, 3), {}
    for number, name in enumerate(("image", "text")):
        own = codes(8, 2) @ atoms()[24 + 8 * number :][:8]
        noise = 0.05 * torch.randn(n, 32, generator=generator)
        sides[name] = shared @ atoms()[:24] + own + noise + (3.0 - 5.0 * number)
    return sides, shared


def retrieved(found: Dictionary, sides: dict[str, Tensor]) -> float:
    """Share of images whose text is nearer, by the cosine of codes, than all others."""
    image, text = (F.normalize(found.encode(x, name), dim=1) for name, x in sides.items())
    cosines = image @ text.T
    own = cosines.diagonal().clone()
    return float((own > cosines.fill_diagonal_(-1).amax(1)).double().mean())


def by_hand(codes: Tensor, rows: list[int], temperature: float) -> tuple[float, float]:
    """InfoNCE and accuracy, pair by pair."""
    unit = [code / code.norm() for code in codes.double()]
    image, text = unit[: len(rows)], unit[len(rows) :]
    losses, right = [], []
    for these, others in ((image, text), (text, image)):
        for i, this in enumerate(these):
            own = float(this @ others[i])
            wrong = [float(this @ o) for j, o in enumerate(others) if rows[j] != rows[i]]
            chances = [math.exp(cosine / temperature) for cosine in (own, *wrong)]
            losses.append(-math.log(chances[0] / sum(chances)))
            right.append(all(own > cosine for cosine in wrong))
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0, 1, 0, 3, 1], [2, 2, 2, 2, 2]])
def test_the_loss_is_infonce_pair_by_pair_and_draws_of_one_pair_are_not_wrong(
    rows: list[int],
) -> None:
    text = random(5, 7).relu()
    codes = torch.cat([text + 0.7 * random(5, 7, seed=1).relu(), text])
    for temperature in (0.1, 0.7):
        loss, accuracy = info_nce(codes, torch.tensor(rows), temperature)
        expected = by_hand(codes, rows, temperature)
        assert float(loss) == pytest.approx(expected[0], rel=1e-5, abs=1e-7)
        assert float(accuracy) == pytest.approx(expected[1])


def test_a_code_that_is_like_another_pair_s_is_not_counted_as_right() -> None:
    codes = torch.zeros(6, 4)
    loss, accuracy = info_nce(codes, torch.arange(3), 0.1)
    assert float(loss) == pytest.approx(math.log(3)) and float(accuracy) == 0
    codes[0, 0] = codes[3, 0] = 1.0
    assert float(info_nce(codes, torch.arange(3), 0.1)[1]) == pytest.approx(2 / 6)


def test_rep_relu_is_relu_whose_gradient_is_that_of_gelu() -> None:
    hidden = torch.linspace(-6, 6, 241).requires_grad_()
    found = rep_relu(hidden)
    assert torch.equal(found, hidden.detach().relu())
    weights = random(241)
    (found * weights).sum().backward()
    expected = [
        0.5 * (1 + math.erf(x / math.sqrt(2))) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        for x in hidden.detach().double().tolist()
    ]
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, weights * torch.tensor(expected), atol=1e-5)


def test_codes_of_zeros_get_gradients_of_a_plain_size() -> None:
    hidden = -random(6, 5).abs().requires_grad_()
    hidden.retain_grad()
    info_nce(rep_relu(hidden), torch.arange(3), 0.1)[0].backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all()) and float(hidden.grad.abs().max()) < 1e3
    short = torch.full((2, 3), 1e-3).requires_grad_()
    loss, _ = info_nce(torch.cat([short, torch.eye(3)[:2]]), torch.arange(2), 1.0)
    loss.backward()
    assert short.grad is not None
    assert 10 < float(short.grad.abs().max()) < 100


def test_what_a_trainer_s_step_tells_is_the_loss_of_its_formula() -> None:
    sides, _ = planted(300, 0)
    config = replace(CONFIG, batch_size=64, temperature=0.3)
    trainer = Trainer(Data.of(sides, config), config, CPU)
    state = trainer.generator.get_state()
    x, _, rows = trainer._batch()
    trainer.generator.set_state(state)
    assert torch.allclose(trainer.data.mean, torch.zeros(32), atol=1e-5)
    hidden = x @ trainer.objective.weight + trainer.objective.bias
    loss, accuracy = by_hand(hidden.detach().relu(), rows.tolist(), 0.3)
    figures = trainer.step()
    assert list(figures) == ["loss", "accuracy", "l0", "dead"]
    assert figures["loss"] == pytest.approx(loss, rel=1e-4)
    assert figures["accuracy"] == pytest.approx(accuracy)
    assert figures["l0"] == pytest.approx(float((hidden > 0).double().sum(1).mean()), rel=1e-6)
    assert torch.equal(x[:32], trainer.data.streams["image"][rows] / trainer.data.scale)
    assert torch.equal(x[32:], trainer.data.streams["text"][rows] / trainer.data.scale)


@pytest.mark.slow
def test_new_pairs_are_matched_and_only_the_features_that_both_sides_share_are_found() -> None:
    (sides, _), (fresh, shared) = planted(4000, 0), planted(500, 1)
    found = train_dictionary(sides, CONFIG, progress=False)
    raw = train_dictionary(sides, replace(CONFIG, steps=1, lr=0.0), progress=False)
    assert retrieved(raw, fresh) < 0.5 < 0.6 < retrieved(found, fresh)
    nearest = F.cosine_similarity(found.decoder[:, None], atoms()[None], dim=2).amax(0)
    assert float(nearest[:24].mean()) > 0.75
    assert float(nearest[24:].mean()) < 0.5
    codes = found.encode(fresh["image"], "image")
    together = torch.corrcoef(torch.cat([codes, shared], 1).T)[:48, 48:].nan_to_num()
    assert float(together.amax(0).mean()) > 0.6


@pytest.mark.slow
def test_a_head_may_be_trained_without_centres_on_activations_off_the_origin() -> None:
    sides = planted(4000, 0)[0]
    sides["text"] += 5.0
    config = replace(CONFIG, center=False)
    trainer = Trainer(Data.of(sides, config), config, CPU)
    assert 16 < trainer.step()["l0"] < 32
    with torch.no_grad():
        trainer.objective.bias.copy_(0.1 * random(48))
    x = torch.cat(list(sides.values()))
    spread = (x - x.mean(0)).square().sum(1).mean().sqrt()
    hidden = (x - x.mean(0)) / spread @ trainer.objective.weight + trainer.objective.bias
    found = trainer.result({}).encode(x)
    assert torch.allclose(found, hidden.relu() * spread, atol=1e-4)
    state = trainer.generator.get_state()
    rows = trainer._batch()[2]
    trainer.generator.set_state(state)
    codes = torch.cat([found[rows], found[4000 + rows]])[: 2 * len(rows)]
    assert trainer.step()["loss"] == pytest.approx(by_hand(codes, rows.tolist(), 0.1)[0], rel=1e-3)
    found = train_dictionary(sides, config, progress=False)
    assert found.encoder.centers == {}
    fresh = planted(500, 1)[0]
    assert retrieved(found, {"image": fresh["image"], "text": fresh["text"] + 5.0}) > 0.5


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize(
    ("scale", "center"), [(1e-3, True), (1.0, True), (1e3, True), (1.0, False)]
)
def test_the_decoder_is_numpy_s_least_squares_with_the_ridge(
    norm: Any, scale: float, center: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "_CODES", 48 * 70)
    sides = {name: scale * x for name, x in planted(300, 0)[0].items()}
    config = replace(CONFIG, steps=20, batch_size=64, norm=norm, ridge=0.03, center=center)
    found = train_dictionary(sides, config, progress=False)
    ys, hs = [], []
    for name, x in sides.items():
        away = found.encoder.centers[name] if center else 0.0
        ys.append((found.normalise(x) - away).double().numpy())
        hs.append(found.encode(x, name).double().numpy())
    y, h = np.concatenate(ys), np.concatenate(hs)
    moved, target = h - h.mean(0), y - y.mean(0)
    r = 0.03 * (moved**2).sum(0).mean()
    stacked = np.concatenate([moved, np.sqrt(r) * np.eye(48)])
    expected = np.linalg.lstsq(stacked, np.concatenate([target, np.zeros((48, 32))]), rcond=None)[0]
    size = np.abs(expected).max()
    assert np.allclose(found.decoder.numpy(), expected, atol=1e-4 * size, rtol=1e-3)
    bias = y.mean(0) - h.mean(0) @ expected
    assert np.allclose(found.decoder_bias.numpy(), bias, atol=1e-4 * np.abs(y).max())
    assert found.decoder.is_contiguous()


def test_activations_without_spread_give_a_head_of_plain_numbers() -> None:
    sides = {name: torch.full((40, 6), 0.3) for name in ("image", "text")}
    config = TrainConfig(n_features=8, steps=5, batch_size=16, kind="ncl", center=False)
    found = train_dictionary(sides, config, progress=False)
    assert bool(found.encoder.weight.isfinite().all()) and bool(found.decoder.isfinite().all())


def test_features_count_as_active_if_one_activation_of_the_batch_has_them() -> None:
    head = contrast.Contrast(torch.eye(4), torch.zeros(4), TrainConfig(4, kind="ncl"))
    x = torch.zeros(4, 4)
    x[0, 0] = x[1, 0] = x[3, 2] = 1.0
    _, figures = head(x, torch.arange(2))
    assert figures.active.tolist() == [True, False, True, False]
    assert float(figures.l0) == 0.75


def test_codes_are_in_the_units_of_the_data() -> None:
    sides, _ = planted(300, 0)
    config = replace(CONFIG, steps=20, batch_size=64)
    found = train_dictionary(sides, config, progress=False)
    large = train_dictionary({k: 8.0 * x for k, x in sides.items()}, config, progress=False)
    codes = found.encode(sides["image"], "image")
    assert torch.allclose(large.encode(8.0 * sides["image"], "image"), 8.0 * codes, rtol=1e-4)
    assert torch.allclose(large.decoder, found.decoder, atol=1e-5)
    trainer = Trainer(Data.of(sides, config), config, CPU)
    for _ in range(20):
        trainer.step()
    x = trainer.data.streams["image"] / trainer.data.scale
    hidden = F.relu(x @ trainer.objective.weight + trainer.objective.bias)
    assert torch.allclose(codes, hidden * trainer.data.scale, atol=1e-5)


def test_a_feature_that_is_never_active_is_dead_and_decoded_to_nothing() -> None:
    sides, _ = planted(300, 0)
    config = replace(CONFIG, batch_size=64, dead_after=0, lr=0.0)
    trainer = Trainer(Data.of(sides, config), config, CPU)
    with torch.no_grad():
        trainer.objective.bias[:3] = -100.0
    assert trainer.step()["dead"] == 0
    assert trainer.step()["dead"] == 3
    found = trainer.result({})
    assert bool((found.decoder[:3] == 0).all()) and bool(found.decoder[3:].any(1).all())
    with torch.no_grad():
        trainer.objective.bias[:] = -100.0
    found = trainer.result({})
    assert not bool(found.decoder.any())
    assert torch.allclose(found.decoder_bias, trainer.data.mean, atol=1e-6)


def test_a_head_survives_the_disk_and_is_read_as_relu_that_subtracts_nothing(
    tmp_path: Path,
) -> None:
    sides, _ = planted(300, 0)
    config = replace(CONFIG, steps=20, batch_size=64, norm="constant_norm_rescale")
    found = train_dictionary(sides, config, {"hook_name": "joint"}, progress=False)
    save_saelens(found, tmp_path)
    loaded = load_dictionary(tmp_path)
    assert loaded.digest() == found.digest() and loaded.info["hook_name"] == "joint"
    assert loaded.encoder.activation == "relu" and loaded.encoder.subtract is None
    for name, x in sides.items():
        assert torch.equal(loaded.encode(x, name), found.encode(x, name))
        assert torch.equal(loaded.reconstruct(x, name), found.reconstruct(x, name))


def test_a_mapped_file_gives_the_head_of_its_tensors(tmp_path: Path) -> None:
    sides, _ = planted(300, 0)
    save_file(sides, tmp_path / "x.safetensors")
    config = replace(CONFIG, steps=30, batch_size=64)
    mapped = train_dictionary(tmp_path / "x.safetensors", config, progress=False)
    memory = train_dictionary(sides, config, progress=False)
    assert torch.allclose(mapped.encoder.weight, memory.encoder.weight, atol=1e-4)
    assert torch.allclose(mapped.decoder, memory.decoder, atol=1e-3)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_tells_loss_and_accuracy_and_that_the_decoder_is_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    train_dictionary(planted(50, 0)[0], replace(CONFIG, steps=5, batch_size=16))
    told = screen.getvalue()
    assert all(name in told for name in ("loss=", "accuracy=", "l0=", "dead=", "fit decoder"))
    assert "explained" not in told and "100/100" in told
    train_dictionary(planted(50, 0)[0], replace(CONFIG, steps=5, batch_size=16), progress=False)
    assert screen.getvalue() == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 8}, "k is 8, and kind 'ncl' has no k"),
        ({"auxiliary": 0.5}, "auxiliary is 0.5, and kind 'ncl' has no auxiliary"),
        ({"sparsity": 0.5}, "kind 'ncl' has no sparsity"),
        ({"target_l0": 9.0}, "kind 'ncl' has no target_l0"),
        ({"bandwidth": 0.5}, "kind 'ncl' has no bandwidth"),
        ({"prefixes": (1.0,)}, "kind 'ncl' has no prefixes"),
        ({"group": 0.1}, "kind 'ncl' has no group"),
        ({"mask": 0.1}, "kind 'ncl' has no mask"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a number above 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"n_features": 1}, "n_features is 1; .* at least 2"),
        ({"batch_size": 3}, "batch_size is 3; .* at least 4"),
        ({"kind": "topk", "temperature": 0.5}, "temperature is 0.5, and kind 'topk' has no"),
        ({"kind": "relu", "ridge": 0.5}, "ridge is 0.5, and kind 'relu' has no"),
    ],
)
def test_what_a_contrast_has_no_use_for_is_refused(options: dict[str, Any], message: str) -> None:
    config = replace(TrainConfig(n_features=32, kind="ncl"), **options)
    with pytest.raises(VlmEditError, match=message):
        train_dictionary(planted(50, 0)[0], config, progress=False)


def test_few_features_and_small_batches_are_enough_for_a_contrast() -> None:
    config = TrainConfig(n_features=2, steps=2, batch_size=4, kind="ncl")
    assert train_dictionary(planted(2, 0)[0], config, progress=False).n_features == 2


def test_activations_that_are_no_pairs_are_refused() -> None:
    image = random(40, 8)
    for streams in ({"image": image}, {"image": image, "text": random(41, 8)}):
        with pytest.raises(VlmEditError, match="ncl needs both streams with as many rows"):
            train_dictionary(streams, CONFIG, progress=False)
    with pytest.raises(VlmEditError, match="at least 2; got 1"):
        train_dictionary({"image": image[:1], "text": image[1:2]}, CONFIG, progress=False)


def test_what_no_decoder_can_be_fitted_to_is_refused() -> None:
    config = replace(CONFIG, center=False)
    sides = planted(300, 0)[0]
    data = Data.of(sides, config)
    weight, bias = random(32, 48), torch.zeros(48)
    for broken in ((weight / 0, bias), (weight, bias / 0)):
        with pytest.raises(VlmEditError, match="train it with a smaller lr"):
            fit_decoder(data, *broken, 0.1)
    twice = torch.cat([weight, weight], 1)
    with pytest.raises(VlmEditError, match="ridge is 1e-300, too small"):
        fit_decoder(data, twice, torch.zeros(96), 1e-300)


def test_the_command_trains_a_head_where_activations_are_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = str(tmp_path / "sae")
    given = ["train", "zoo:emoji-clip", "zoo:pairs", "--kind", "ncl", "--features", "64"]
    assert main([*given, "--steps", "40", "--rows", "256", "--out", sae]) == 0
    assert "64 features" in capsys.readouterr().out
    found = load_dictionary(sae)
    assert isinstance(found, Dictionary) and found.encoder.activation == "relu"
    assert sorted(found.encoder.centers) == ["image", "text"]
    for extra, message in (
        (["--k", "8"], "k is 8, and kind 'ncl' has no k"),
        (["--site", "vision.2"], "at site 'vision.2' a pair has several or one stream alone"),
    ):
        assert main([*given, *extra, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
