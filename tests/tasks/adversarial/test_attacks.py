"""PGD, APGD and Square Attack, held to torchattacks' results and to what a ball allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm_edit import VlmEditError
from vlm_edit.tasks.adversarial.apgd import apgd, checkpoints
from vlm_edit.tasks.adversarial.attacks import Attacked, Ball, pgd
from vlm_edit.tasks.adversarial.black_box import share_at, square
from vlm_edit.tasks.adversarial.losses import Untargeted

# As golden_attacks.py has them.
EPS, EPS_L2, STEPS, APGD_STEPS, QUERIES, MANY = 8 / 255, 0.5, 10, 40, 300, 400


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "attacks.safetensors")


@pytest.fixture(scope="module")
def network(golden: dict[str, Tensor]) -> nn.Module:
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(6 * 25, 10)
    )
    made.load_state_dict(
        {k.removeprefix("network."): v for k, v in golden.items() if k.startswith("network.")}
    )
    return made.eval()


@pytest.fixture(scope="module")
def many(network: nn.Module) -> tuple[Tensor, Tensor]:
    images = torch.rand(MANY, 3, 12, 12, generator=torch.Generator().manual_seed(MANY))
    with torch.no_grad():
        return images, network(images).argmax(1)


def test_plain_pgd_is_that_of_torchattacks_to_the_pixel(golden: Any, network: nn.Module) -> None:
    aim = Untargeted(network, golden["labels"])
    plain: dict[str, Any] = {"steps": STEPS, "random_start": False, "keep": "last"}
    found = pgd(aim, golden["images"], EPS, step_size=EPS / 4, **plain)
    assert float((found.images - golden["pgd"]).abs().max()) < 1e-6
    found = pgd(aim, golden["images"], EPS_L2, step_size=EPS_L2 / 4, norm="l2", **plain)
    assert float((found.images - golden["pgd_l2"]).abs().max()) < 1e-5


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_from_the_same_start_breaks_the_images_that_torchattacks_breaks(
    loss: Any, golden: Any, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    drawn = 2 * torch.rand(golden["images"].shape) - 1
    drawn = EPS * drawn / drawn.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    monkeypatch.setattr(Ball, "start", lambda self, centre, _: self.project(centre + drawn, centre))
    found = apgd(Untargeted(network, golden["labels"], loss), golden["images"], EPS, steps=40)
    broken = golden[f"apgd_{loss}_broken"]
    assert bool((found.reached | ~broken).all())
    assert int((found.reached & ~broken).sum()) <= 2


@pytest.mark.parametrize(("name", "loss"), [("apgd_ce", "ce"), ("apgd_dlr", "dlr")])
def test_apgd_breaks_as_many_as_torchattacks(
    name: str, loss: Any, golden: Any, network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    images, labels = many
    found = apgd(Untargeted(network, labels, loss), images, EPS / 4, steps=APGD_STEPS)
    theirs = float(golden[f"{name}_many"].float().mean())
    assert float(found.reached.float().mean()) > theirs - 0.02


def test_square_attack_breaks_as_many_as_torchattacks(
    golden: Any, network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    images, labels = many
    found = square(Untargeted(network, labels, "margin"), images, EPS / 2, queries=QUERIES)
    theirs = float(golden["square_many"].float().mean())
    assert abs(float(found.reached.float().mean()) - theirs) < 0.06


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_attack_stays_in_its_ball_and_among_images(
    attack: Any, norm: Any, network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    images, labels = many[0][:32], many[1][:32]
    eps = 0.06 if norm == "linf" else 0.4
    found = attack(Untargeted(network, labels), images, eps, norm=norm, steps=10, restarts=2)
    change = (found.images - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= eps + 1e-5
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    with torch.no_grad():
        assert torch.equal(network(found.images).argmax(1) != labels, found.reached)


@pytest.mark.parametrize("attack", [pgd, apgd, square])
def test_batches_change_no_more_than_the_random_starts(
    attack: Any, network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    aim = Untargeted(network, many[1], "margin")
    key = "queries" if attack is square else "steps"
    rates = [
        attack(aim, many[0], EPS / 4, batch_size=size, **{key: 30}).reached.float().mean()
        for size in (64, 400)
    ]
    assert abs(float(rates[0] - rates[1])) < 0.04


def test_the_best_image_is_kept_where_a_step_overshoots() -> None:
    def aim(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return -(x - 0.55).abs().flatten(1).sum(1), torch.zeros(len(x), dtype=torch.bool)

    images = torch.full((1, 1, 1, 1), 0.5)
    options: Any = {"steps": 2, "step_size": 0.06, "random_start": False}
    best = pgd(aim, images, 0.2, **options)
    last = pgd(aim, images, 0.2, keep="last", **options)
    assert float(best.images) == pytest.approx(0.56)
    assert float(last.images) == pytest.approx(0.50)
    assert best.curve.tolist() == pytest.approx([-0.05, -0.01, -0.05], abs=1e-6)


def test_more_starts_break_no_fewer(network: nn.Module, many: tuple[Tensor, Tensor]) -> None:
    aim = Untargeted(network, many[1])
    weak: Any = {"steps": 1, "step_size": EPS / 16}
    once, often = (pgd(aim, many[0], EPS / 4, restarts=n, **weak).reached for n in (1, 4))
    assert bool((often | ~once).all()) and int(often.sum()) > int(once.sum())


def test_a_guide_is_followed_and_the_aim_judges(
    network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    """Where a defence rounds, its gradient is zero, and the undefended network's leads on."""

    def rounded(x: Tensor) -> Tensor:
        return network((x * 64).round() / 64)

    masked, plain = Untargeted(rounded, many[1]), Untargeted(network, many[1])
    blind = pgd(masked, many[0], EPS, steps=10)
    led = pgd(masked, many[0], EPS, steps=10, guide=plain)
    with torch.no_grad():
        assert torch.equal(rounded(led.images).argmax(1) != many[1], led.reached)
    assert int(led.reached.sum()) > 2 * int(blind.reached.sum())


def test_apgd_needs_no_step_size_where_pgd_suffers_from_a_poor_one(
    network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    judge = Untargeted(network, many[1], "margin")

    def aim(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return judge(x, rows)[0], torch.zeros(len(x), dtype=torch.bool)

    found = apgd(aim, many[0], EPS, steps=20).loss.mean()
    for size in (EPS / 100, 2 * EPS):
        assert float(found) > float(pgd(aim, many[0], EPS, steps=20, step_size=size).loss.mean())


def test_checkpoints_rise_and_end_before_the_last_step() -> None:
    for steps in (1, 7, 20, 100, 1000):
        found = checkpoints(steps)
        assert found == sorted(set(found)) and all(0 < k < steps for k in found)


def test_square_windows_shrink_over_the_queries() -> None:
    shares = [share_at(query, 500, 0.8) for query in range(500)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 0.8


@pytest.mark.parametrize(
    ("images", "eps", "options", "told"),
    [
        (torch.zeros(1, 3, 2, 2), 0.0, {}, "eps is 0.0"),
        (torch.zeros(1, 3, 2, 2), 0.1, {"norm": "l1"}, "norm is 'l1'"),
        (torch.zeros(1, 3, 2, 2), 0.1, {"steps": 0}, "0 steps"),
        (torch.full((1, 3, 2, 2), 2.0), 0.1, {}, "between 2 and 2"),
        (torch.zeros(0, 3, 2, 2), 0.1, {}, "at least one"),
    ],
)
def test_what_cannot_be_attacked_is_refused(
    images: Tensor, eps: float, options: Any, told: str
) -> None:
    def never(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("asked")

    for attack in (pgd, apgd):
        with pytest.raises(VlmEditError, match=told):
            attack(never, images, eps, **options)


def test_a_curve_has_a_figure_for_each_step(
    network: nn.Module, many: tuple[Tensor, Tensor]
) -> None:
    found: Attacked = pgd(Untargeted(network, many[1]), many[0], EPS / 4, steps=12)
    assert found.curve.shape == (13,) and not bool(found.curve.isnan().any())
    assert float(found.curve[-1]) > float(found.curve[0])
