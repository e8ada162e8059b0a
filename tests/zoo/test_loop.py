"""The loop that trains every host, on one layer that is trained in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes.checkpoints import below, read_facts
from recipes.loop import StepRecipe, StepTrainer

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, for its Muon"
)


@dataclass(frozen=True)
class Recipe(StepRecipe):
    steps: int = 5
    batch: int = 8
    checkpoint: int = 2
    warm_up: int = 1
    decay: float = 0.5
    strengthen: int = 1


class Trainer(StepTrainer[Recipe]):
    """Learns to give back what it is given."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.model, self.average = nn.Linear(4, 4), nn.Linear(4, 4)
        self.parameters = list(self.model.parameters())
        self.optimizers = recipe.optimizers([self.model.weight], [], [self.model.bias])
        self.generator = torch.Generator()
        self.seeds: list[int] = []
        self.lost: list[float] = []

    def reseed(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        self.seeds.append(seed)

    def losses(self) -> dict[str, Tensor]:
        x = torch.randn(self.recipe.batch, 4, generator=self.generator)
        loss = (self.model(x) - x).square().mean()
        self.lost.append(loss.item())
        return {"loss": loss, "twice": 2 * loss.detach()}

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.average.parameters()), self.parameters

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{k}": v
            for name in ("model", "average")
            for k, v in getattr(self, name).state_dict().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name in ("model", "average"):
            getattr(self, name).load_state_dict(below(tensors, f"{name}."))


def stopped(recipe: Recipe, file: Path, after: int) -> None:
    """Leave what a run leaves that is killed behind so many checkpoints."""
    written: list[int] = []

    def kill() -> None:
        written.append(1)
        if len(written) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe).run(file, kill)


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path: Path, after: int) -> None:
    whole, resumed = Trainer(Recipe()), Trainer(Recipe())
    whole.run(tmp_path / "whole")
    stopped(Recipe(), tmp_path / "part", after)
    torch.rand(3)  # what is drawn elsewhere makes no difference
    resumed.run(tmp_path / "part")
    for name, value in whole.state().items():
        assert torch.equal(value, resumed.state()[name]), name
    assert resumed.lost == whole.lost[2 * after :]
    assert resumed.step == 5 and resumed.spent > 0
    assert [line.split()[0] for line in resumed.history] == ["2", "4", "5"]


def test_all_chance_is_seeded_by_the_step_after_each_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(replace(Recipe(), seed=3))
    trainer.run(tmp_path / "file")
    assert trainer.seeds == [3, 3 + 2 * 1_000_003, 3 + 4 * 1_000_003]


def test_the_line_of_a_checkpoint_is_the_mean_of_its_steps_however_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(Recipe())
    trainer.run(tmp_path / "file")
    lines = capsys.readouterr().out.splitlines()
    assert lines == trainer.history
    for line, lost in zip(
        lines, (trainer.lost[:2], trainer.lost[2:4], trainer.lost[4:]), strict=True
    ):
        words = line.split()
        mean = sum(lost) / len(lost)
        assert float(words[words.index("loss") + 1]) == pytest.approx(mean, abs=1e-4)
        assert float(words[words.index("twice") + 1]) == pytest.approx(2 * mean, abs=2e-4)


def test_each_checkpoint_is_whole_before_what_ships_is_written(tmp_path: Path) -> None:
    steps: list[str] = []
    file = tmp_path / "file"
    Trainer(Recipe()).run(file, lambda: steps.append(read_facts(file)["step"]))
    assert steps == ["2", "4", "5"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_goes_on_with_more_steps_and_with_nothing_else_changed(tmp_path: Path) -> None:
    Trainer(Recipe()).run(tmp_path / "file")
    longer = Trainer(replace(Recipe(), steps=7))
    longer.run(tmp_path / "file")
    assert longer.step == 7 and len(longer.lost) == 2
    for other in (replace(Recipe(), muon_rate=1.0), replace(Recipe(), batch=4)):
        with pytest.raises(ValueError, match="of another recipe: give another folder"):
            Trainer(other).run(tmp_path / "file")
    assert json.loads(read_facts(tmp_path / "file")["recipe"])["processes"] == 1


def test_weights_descend_and_the_average_follows_them(tmp_path: Path) -> None:
    fast = replace(Recipe(), steps=60, checkpoint=60, learning_rate=0.03, muon_rate=0.3)
    trainer = Trainer(fast)
    start = trainer.average.weight.detach().clone()
    trainer.run(tmp_path / "file")
    assert trainer.lost[-1] < trainer.lost[0] / 4
    average, end = trainer.average.weight.detach(), trainer.model.weight.detach()
    assert float((average - end).norm()) < float((start - end).norm()) / 2
