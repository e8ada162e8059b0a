"""Decoder rows that are mixtures of activations, and what is kept of a run with them."""

import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.read import FOLDER
from safetensors.torch import load, save_file
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, TrainConfig, load_dictionary, save_saelens
from vlm_edit.dictionaries import train_dictionary as train
from vlm_edit.dictionaries.training.archetypes import Archetypes, begin_archetypes, centroids
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.objective import Objective
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import read_tensors

CONFIG = TrainConfig(n_features=10, k=2, steps=60, batch_size=64, kind="archetypal", points=24)
CPU = torch.device("cpu")
LIBRARY = FOLDER / "archetypal-overcomplete-0.3.0.zip"
CASES = ("RATopKSAE-square", "RATopKSAE-wide", "RAJumpSAE-square", "RAJumpSAE-wide")


def rows(n: int = 300, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).abs() + 0.5


def of_library(name: str) -> dict[str, Tensor]:
    """A state dict of overcomplete's own, or what it computed."""
    with zipfile.ZipFile(LIBRARY) as archive:
        data = archive.read(name)
    if name.endswith(".safetensors"):
        return load(data)
    state: dict[str, Tensor] = torch.load(BytesIO(data), weights_only=True)
    return state


def as_in(state: dict[str, Tensor]) -> Archetypes:
    """Ours with the weights of one of the library's."""
    points = state["dictionary.C"]
    found = Archetypes(points, torch.zeros(len(state["dictionary.W"]), dtype=torch.long), 1.0)
    with torch.no_grad():
        found.mixtures.copy_(state["dictionary.W"])
        found.relaxed.copy_(state["dictionary.Relax"])
    return found


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_authors_library(case: str) -> None:
    state = of_library(f"{case}/files/sae.pt")
    told = of_library(f"{case}/expected.safetensors")
    ours = as_in(state)() * state["dictionary.multiplier"].exp()
    torch.testing.assert_close(told["codes"] @ ours, told["reconstruction"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_after_a_step_they_are_held_as_the_authors_library_holds_them(case: str) -> None:
    ours = as_in(of_library(f"{case}-training/files/sae.pt"))
    assert bool((ours.mixtures < 0).any())
    ours.hold()
    held = of_library(f"{case}/files/sae.pt")
    torch.testing.assert_close(ours.mixtures.detach(), held["dictionary.W"])
    torch.testing.assert_close(ours.relaxed.detach(), held["dictionary.Relax"])


def test_what_would_be_no_mixture_or_too_far_away_is_brought_back() -> None:
    archetypes = Archetypes(rows(4), torch.tensor([0, 1, 2]), 0.5)
    assert torch.equal(archetypes(), archetypes.points[:3])
    with torch.no_grad():
        archetypes.mixtures[0] = torch.tensor([-0.3, -0.1, -0.2, -0.4])
        archetypes.mixtures[1] = torch.tensor([-1.0, 3.0, 1.0, 0.0])
        archetypes.relaxed[1] = torch.tensor([3.0, 4.0, 0, 0, 0, 0])
        archetypes.relaxed[2, 0] = 0.4
    archetypes.hold()
    expected = torch.tensor([[0, 1.0, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 1.0, 0]])
    torch.testing.assert_close(archetypes.mixtures.detach(), expected)
    assert torch.equal(archetypes.relaxed[0].detach(), torch.zeros(6))
    torch.testing.assert_close(archetypes.relaxed[1, :2].detach(), torch.tensor([0.3, 0.4]))
    assert float(archetypes.relaxed[2, 0].detach()) == pytest.approx(0.4)


def to_hull(points: Tensor, row: Tensor) -> float:
    """Distance of a row to the convex hull of points: mixtures by least squares, none below 0."""
    heavy = 1e4  # so that what is mixed sums to 1
    system = np.vstack([points.double().numpy().T, heavy * np.ones(len(points))])
    weights, _ = nnls(system, np.append(row.double().numpy(), heavy))
    assert abs(weights.sum() - 1) < 1e-6
    return float(np.linalg.norm(weights @ points.double().numpy() - row.double().numpy()))


@pytest.mark.parametrize("delta", [0.0, 0.3])
@pytest.mark.parametrize("center", [True, False])
def test_rows_lie_in_the_hull_of_the_activations_up_to_delta(delta: float, center: bool) -> None:
    x = rows()
    config = replace(CONFIG, delta=delta, center=center, steps=200)
    trainer = Trainer(Data.of({"image": x}, config), config, CPU)
    for _ in range(200):
        trainer.step()
    found, objective, scale = trainer.result({}), trainer.objective, trainer.data.scale
    assert isinstance(objective, Objective) and isinstance(objective.decoder, Archetypes)
    hull = x - x.mean(0)  # seen from the mean, where the decoder's bias begins
    assert max(to_hull(hull, row) for row in found.decoder) < delta * scale + 1e-4
    points = objective.decoder.points * scale
    assert max(to_hull(hull, point) for point in points) < 1e-4
    away = max(to_hull(points, row) for row in found.decoder)
    assert away < delta * scale + 1e-4
    assert (away > 0.1 * delta * scale + 1e-4) == (delta > 0)
    assert float(found.decoder.norm(dim=1).std()) > 1e-3  # they are points, not directions
    assert found.encoder.activation == "topk" and found.encoder.k == 2


def test_codes_and_losses_are_those_of_the_formula() -> None:
    x = rows(40)
    config = replace(CONFIG, points=12, delta=0.2)
    trainer = Trainer(Data.of({"image": x}, config), config, CPU)
    for _ in range(20):
        trainer.step()
    objective, found = trainer.objective, trainer.result({})
    assert isinstance(objective, Objective) and isinstance(objective.decoder, Archetypes)
    y = ((x - x.mean(0)) / trainer.data.scale).double()
    parts = {name: value.detach().double() for name, value in objective.state_dict().items()}
    D = parts["decoder.mixtures"] @ parts["decoder.points"] + parts["decoder.relaxed"]
    pre = ((y - parts["decoder_bias"]) @ parts["weight"] + parts["bias"]).relu()
    codes = torch.where(pre >= pre.topk(2).values[:, -1:], pre, 0.0)
    left = y - codes @ D - parts["decoder_bias"]
    loss, _ = objective(y.float(), None, None, 0.0, 0.0)
    expected = left.square().sum() / (y - y.mean(0)).square().sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(found.encode(x, "image"), codes.float(), rtol=1e-4, atol=1e-5)
    back = (y - left) * trainer.data.scale + x.mean(0)
    torch.testing.assert_close(found.reconstruct(x, "image"), back.float(), rtol=1e-4, atol=1e-4)


def test_an_encoder_begins_by_saying_how_much_of_its_row_there_is() -> None:
    config = replace(CONFIG, points=12)
    objective = Trainer(Data.of({"image": rows()}, config), config, CPU).objective
    assert isinstance(objective, Objective)
    own = (objective.rows() * objective.weight.T).sum(1)
    torch.testing.assert_close(own, torch.ones(10))
    short = Archetypes(torch.tensor([[0.01, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), 0.1)
    weight = Objective(short, torch.zeros(2), config).weight.detach()
    torch.testing.assert_close(weight, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_points_are_means_of_what_is_nearest_to_each() -> None:
    g = torch.Generator().manual_seed(3)
    places = 20 * torch.randn(5, 3, generator=g)
    x = places.repeat_interleave(80, 0) + torch.randn(400, 3, generator=g)
    found = centroids(x, 5)
    torch.testing.assert_close(found, x.reshape(5, 80, 3).mean(1), rtol=1e-4, atol=1e-4)
    many = centroids(x, 40)
    nearest = torch.cdist(x.double(), many.double()).argmin(1)
    for number in range(40):
        members = x[nearest == number]
        torch.testing.assert_close(many[number], members.mean(0), rtol=1e-4, atol=1e-4)
    alone = torch.tensor([[2.0], [2.0], [5.0]])  # of two equal beginnings one has no member
    assert torch.equal(centroids(alone, 3), alone)


def test_points_hang_on_the_activations_and_the_seed_says_where_features_begin() -> None:
    data = Data.of({"image": rows()}, CONFIG)
    found = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        found.append(begin_archetypes(data, data.mean, CONFIG, generator))
    assert torch.equal(found[0].points, found[2].points)
    assert torch.equal(found[0](), found[1]()) and not torch.equal(found[0](), found[2]())
    assert found[0].points.shape == (24, 6)
    assert len(found[0]().unique(dim=0)) == 10
    few = replace(CONFIG, points=4)
    assert len(begin_archetypes(data, data.mean, few, generator)().unique(dim=0)) == 4
    many = Data.of({"image": rows(15), "text": rows(3)}, CONFIG)
    default = replace(CONFIG, points=None)
    assert len(begin_archetypes(many, many.mean, default, generator).points) <= 18
    assert len(begin_archetypes(data, data.mean, default, generator).points) == 20


def test_activations_on_the_disk_give_the_same_dictionary(tmp_path: Path) -> None:
    streams = {"image": rows(), "text": rows(200, seed=1)}
    save_file(streams, tmp_path / "x.safetensors")
    inside = train(streams, CONFIG, progress=False)
    mapped = train(tmp_path / "x.safetensors", CONFIG, progress=False)
    torch.testing.assert_close(mapped.decoder, inside.decoder, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        mapped.encode(rows(50), "image"), inside.encode(rows(50), "image"), rtol=1e-2, atol=1e-2
    )


def test_what_is_saved_as_saelens_has_the_same_codes(tmp_path: Path) -> None:
    found = train({"image": rows()}, CONFIG, progress=False)
    save_saelens(found, tmp_path / "sae")
    again = load_dictionary(tmp_path / "sae")
    assert isinstance(again, Dictionary)
    x = rows(50, seed=4)
    torch.testing.assert_close(again.reconstruct(x, "image"), found.reconstruct(x, "image"))
    assert torch.equal(again.decoder, found.decoder)


def test_a_state_keeps_the_points_and_goes_on_with_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"checkpoint": tmp_path / "c", "progress": False}
    whole = train({"image": rows()}, replace(CONFIG, steps=30), **kept)
    points = read_tensors(tmp_path / "c")[1]["points"]
    again = train({"image": rows()}, replace(CONFIG, steps=30), **kept)
    assert again.digest() == whole.digest()
    # Elsewhere k-means may end a rounding away: what was begun with is what counts.
    monkeypatch.setattr(
        "vlm_edit.dictionaries.training.archetypes.centroids", lambda x, n: x[:n] * 1.5
    )
    assert train({"image": rows()}, replace(CONFIG, steps=30), **kept).digest() == whole.digest()
    assert points.shape == (24, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "points is 0; it must be at least 1"),
        ({"points": 2.5}, "points is 2.5; it must be a whole number"),
        ({"points": 400}, "points is 400, and there are 300 activations"),
        ({"delta": -0.1}, "delta is -0.1; it must be at least 0"),
        ({"delta": "far"}, "delta is 'far'; it must be a number"),
        ({"frozen": "decoder"}, "kind 'archetypal' has no frozen"),
        ({"target_l0": 2.0}, "target_l0 goes with relu, jumprelu and gated"),
        ({"kind": "topk"}, "points is 24, and kind 'topk' has no points"),
        ({"kind": "topk", "points": None, "delta": 0.5}, "kind 'topk' has no delta"),
    ],
)
def test_what_archetypes_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        train({"image": rows()}, replace(CONFIG, **options), progress=False)


def test_they_begin_with_no_dictionary() -> None:
    start = train({"image": rows()}, replace(CONFIG, kind="topk", points=None), progress=False)
    with pytest.raises(VlmEditError, match="rows are trained themselves, not archetypal"):
        train({"image": rows()}, CONFIG, start=start, progress=False)


@pytest.mark.slow
def test_archetypes_find_planted_directions_and_are_alike_from_seed_to_seed() -> None:
    g = torch.Generator().manual_seed(9)
    atoms = F.normalize(torch.randn(12, 16, generator=g), dim=1)
    there = torch.rand(4000, 12, generator=g) < 1.5 / 12
    x = (there * (0.5 + torch.rand(4000, 12, generator=g))) @ atoms
    base = TrainConfig(n_features=24, k=2, steps=400, batch_size=128)
    alike = {}
    for kind in ("topk", "archetypal"):
        config = replace(base, kind=kind)  # type: ignore[arg-type]
        found = [
            F.normalize(train({"image": x}, replace(config, seed=s), progress=False).decoder, dim=1)
            for s in range(3)
        ]
        assert all(float((rows @ atoms.T).amax(0).mean()) > 0.85 for rows in found)
        alike[kind] = sum(float((found[0] @ f.T).amax(1).mean()) for f in found[1:]) / 2
    assert alike["archetypal"] > alike["topk"]
