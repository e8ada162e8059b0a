"""What a step of a run does, and what tells one run's data and state from another's."""

import csv
import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training import checkpoint
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.objective import Objective, _Jump
from vlm_edit.dictionaries.training.trainer import Trainer, schedule
from vlm_edit.ground.errors import VlmEditError, VlmEditWarning
from vlm_edit.ground.files import read_tensors, write_tensors

CONFIG = TrainConfig(n_features=12, k=2, steps=40, batch_size=32, kind="relu", sparsity=0.7)
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trainer_of(config: TrainConfig, x: Tensor | None = None) -> Trainer:
    return Trainer(Data.of({"image": random(200, 6) if x is None else x}, config), config, CPU)


def objective_of(config: TrainConfig) -> Objective:
    return Objective(
        F.normalize(random(config.n_features, 6, seed=3), dim=1), torch.zeros(6), config
    )


def test_the_learning_rate_is_warmed_up_kept_and_brought_to_nothing() -> None:
    assert schedule(0.0) == pytest.approx(1e-3)
    assert schedule(0.025) == pytest.approx(0.501)
    assert schedule(0.05) == schedule(0.5) == schedule(0.8) == 1.0
    assert schedule(0.9) == pytest.approx(0.5)
    assert schedule(1.0) == pytest.approx(0.0)


def test_a_step_warms_up_the_penalty_and_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(replace(CONFIG, lr=0.1))
    engine, given = trainer.engine, []

    def spy(*args: Any) -> Any:
        given.append(args[3])
        return engine(*args)

    monkeypatch.setattr(trainer, "engine", spy)
    rates = []
    for _ in range(4):
        trainer.step()
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    assert given == pytest.approx([0.0, 0.35, 0.7, 0.7])
    assert rates == pytest.approx([0.1 * schedule(step / 40) for step in range(4)])


def test_only_kinds_with_a_penalty_tell_its_coefficient() -> None:
    assert trainer_of(CONFIG).step()["coefficient"] == 0.7
    assert trainer_of(replace(CONFIG, kind="topk")).step()["coefficient"] == 0.0


def test_a_run_begins_at_the_mean_with_tied_unit_rows_and_no_bias() -> None:
    x = random(200, 6) + 4.0
    trainer = trainer_of(replace(CONFIG, center=False), x)
    found = trainer.objective
    assert isinstance(found, Objective)
    scale = x.square().sum(1).mean().sqrt()
    assert torch.allclose(found.decoder_bias, x.mean(0) / scale, atol=1e-6)
    assert torch.equal(found.weight.T, found.decoder) and not bool(found.bias.any())
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(12))


def test_the_decoder_s_gradient_along_its_rows_is_taken_out() -> None:
    objective = objective_of(CONFIG)
    given = random(12, 6, seed=5)
    objective.decoder.grad = given.clone()
    objective.before_step()
    rows = objective.decoder.detach().double()
    along = (given.double() * rows).sum(1, keepdim=True) * rows
    assert torch.allclose(objective.decoder.grad.double(), given.double() - along, atol=1e-6)


def test_the_optimiser_sees_no_gradient_along_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen = trainer_of(CONFIG), []
    found, step = trainer.objective, trainer.optimiser.step
    assert isinstance(found, Objective)

    def spy() -> None:
        assert found.decoder.grad is not None
        seen.append((found.decoder.grad * found.decoder.detach()).sum(1).abs().max())
        assert float(found.decoder.grad.norm()) > 0.01
        step()

    monkeypatch.setattr(trainer.optimiser, "step", spy)
    trainer.step()
    assert float(seen[0]) < 1e-6
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(12), atol=1e-6)


def test_the_penalty_of_relu_weighs_codes_by_their_rows_norms() -> None:
    objective, x = objective_of(CONFIG), random(20, 6)
    with torch.no_grad():
        objective.decoder.mul_(torch.arange(1.0, 13.0)[:, None])
    plain, loss = (objective(x, None, None, c, 0.0)[0] for c in (0.0, 0.3))
    codes = F.relu(x @ objective.weight)
    expected = 0.3 * (codes * torch.arange(1.0, 13.0)).sum(1).mean()
    assert torch.allclose(loss - plain, expected, rtol=1e-4)


@pytest.mark.parametrize(("alive", "kind"), [(6, "topk"), (9, "topk"), (9, "matryoshka")])
def test_dead_features_are_trained_on_what_the_others_leave(alive: int, kind: Any) -> None:
    config = replace(CONFIG, kind=kind, k=4, auxiliary=0.5, prefixes=(0.5, 1.0))
    objective, x = objective_of(config), random(20, 6)
    dead = torch.arange(12) >= alive
    with torch.no_grad():
        hidden = F.relu(x @ objective.weight)
        if kind == "topk":
            kept = hidden >= hidden.topk(4, dim=1).values[:, -1:]
        else:
            kept = hidden >= hidden.flatten().topk(80).values[-1]
        error = x - (hidden * kept) @ objective.decoder
        count = min(12 - alive, 6)
        strongest = hidden[:, dead].topk(count, dim=1).values[:, -1:]
        left = error - (hidden * dead * (hidden >= strongest)) @ objective.decoder
        expected = 0.5 * left.square().sum() / error.square().sum()
        plain, loss = (objective(x, None, d, 0.0, 0.0)[0] for d in (None, dead))
    assert torch.allclose(loss - plain, expected, rtol=1e-4)


def test_at_most_half_of_the_features_share_what_is_left() -> None:
    config = replace(CONFIG, kind="topk", k=4, auxiliary=1.0)
    objective, x = objective_of(config), random(20, 6)
    dead = torch.ones(12, dtype=torch.bool)
    with torch.no_grad():
        hidden = F.relu(x @ objective.weight)
        error = (
            x - hidden.where(hidden >= hidden.topk(4, dim=1).values[:, -1:], 0) @ objective.decoder
        )
        six = hidden.where(hidden >= hidden.topk(6, dim=1).values[:, -1:], 0)
        expected = (error - six @ objective.decoder).square().sum() / error.square().sum()
        plain, loss = (objective(x, None, d, 0.0, 0.0)[0] for d in (None, dead))
    assert torch.allclose(loss - plain, expected, rtol=1e-4)


def test_masked_features_are_left_out_but_the_threshold_in_use_is_of_all() -> None:
    config = replace(CONFIG, kind="batchtopk", mask=0.5)
    objective, x = objective_of(config), random(20, 6)
    mask = (torch.arange(12) % 2).float().repeat(20, 1)
    loss, figures = objective(x, mask, None, 0.0, 0.0)
    hidden = F.relu(x @ objective.weight).detach()
    masked = hidden * mask
    codes = masked.where(masked >= masked.flatten().topk(40).values[-1], 0)
    variance = (x - x.mean(0)).square().sum(1).mean()
    expected = (x - codes @ objective.decoder).square().sum(1).mean() / variance
    assert torch.allclose(loss, expected)
    assert figures.cut == hidden.flatten().topk(40).values[-1]
    assert torch.equal(figures.active, (codes > 0).any(0))
    assert float(figures.l0) == pytest.approx(2.0)


def test_what_matryoshka_explains_is_of_all_features() -> None:
    config = replace(CONFIG, kind="matryoshka", prefixes=(0.25, 1.0))
    objective, x = objective_of(config), random(20, 6)
    _, figures = objective(x, None, None, 0.0, 0.0)
    hidden = F.relu(x @ objective.weight)
    codes = hidden.where(hidden >= hidden.flatten().topk(40).values[-1], 0)
    left = (x - codes @ objective.decoder).square().sum() / (x - x.mean(0)).square().sum()
    assert float(figures.told["explained"]) == pytest.approx(1 - left.item(), rel=1e-4)


def test_jumprelu_passes_gradients_where_it_is_open() -> None:
    z = random(30, 4).requires_grad_()
    threshold = torch.full((4,), 0.3)
    (_Jump.apply(z, threshold, 0.1) * 2).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, 2 * (z > 0.3).float())


def test_the_threshold_is_the_plain_mean_of_the_first_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(replace(CONFIG, kind="batchtopk"))
    engine, cuts = trainer.engine, []

    def spy(*args: Any) -> Any:
        found = engine(*args)
        cuts.append(float(found[1].cut))
        return found

    monkeypatch.setattr(trainer, "engine", spy)
    for _ in range(5):
        trainer.step()
        assert float(trainer.threshold) == pytest.approx(sum(cuts) / len(cuts), rel=1e-5)
    trainer.done = 400
    before = float(trainer.threshold)
    trainer.step()
    assert float(trainer.threshold) == pytest.approx(before + 0.01 * (cuts[-1] - before), rel=1e-5)


@pytest.mark.parametrize(("kind", "brake", "whole"), [("relu", 1.0, 40), ("jumprelu", 4.0, 20)])
@pytest.mark.parametrize("steps", [40, 1000, 9000])
def test_the_coefficient_follows_the_l0_that_is_missing_and_brakes_as_that_changes(
    kind: Any, brake: float, whole: float, steps: int
) -> None:
    rate = max(0.01, min(0.05, whole / steps))
    trainer = trainer_of(replace(CONFIG, kind=kind, steps=steps, target_l0=2.0, lr=0.1))
    coefficient, smooth = 0.7, None
    for _ in range(6):
        figures = trainer.step()
        last = figures["l0"] if smooth is None else smooth
        smooth = last + 0.1 * (figures["l0"] - last)
        missing = max(-1.0, min(1.0, math.log(smooth / 2.0)))
        coefficient *= math.exp(rate * missing) * (smooth / last) ** brake
        assert figures["coefficient"] == pytest.approx(coefficient, rel=1e-5)


def test_a_restored_run_has_the_whole_state_of_the_one_it_goes_on_from() -> None:
    config = replace(CONFIG, target_l0=2.0)
    first, second = trainer_of(config), trainer_of(replace(config, seed=1))
    for _ in range(3):
        first.step()
    first.idle += torch.arange(12)
    first.threshold = torch.tensor(0.3)
    tensors, numbers = first.state()
    second.restore({name: t.detach().clone() for name, t in tensors.items()}, numbers)
    again, same = second.state()
    assert same == numbers and again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert first.step() == second.step()


def test_as_many_features_are_masked_as_was_asked_for() -> None:
    config = TrainConfig(200, 2, 40, 200, mask=0.2)
    x = random(300, 6)
    trainer = Trainer(Data.of({"image": x, "text": x}, config), config, CPU)
    mask = trainer._batch()[1]
    assert mask is not None and float(mask.mean()) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": math.inf}, "lr is inf"),
        ({"target_l0": 0.0}, "target_l0 is 0.0"),
        ({"kind": "jumprelu", "bandwidth": math.inf}, "bandwidth is inf"),
        ({"kind": "matryoshka", "prefixes": (0.0, 1.0)}, "shares above 0"),
        ({"kind": "matryoshka", "prefixes": ()}, "prefixes are"),
        ({"k": 0}, "k is 0"),
        ({"mask": -0.1}, "mask is -0.1"),
        ({"clip": 0.0}, "clip is 0.0; it must be above 0, or None"),
        ({"clip": math.nan}, "clip is nan"),
        ({"clip": "none"}, "clip is 'none'"),
        ({"n_features": 64.0}, "n_features is 64.0; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"batch_size": "32"}, "batch_size is '32'; it must be a whole number"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a number"),
        ({"n_features": 0, "k": 4}, "n_features is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": 10**23}, "seed is 1.*; it must be a whole number of 64 bits"),
        ({"norm": "rms_norm_of_input"}, "is of transcoders, which are not trained here"),
    ],
)
def test_numbers_at_the_edge_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        train_dictionary({"image": random(9, 4)}, replace(CONFIG, **options), progress=False)


KINDS = {
    "relu": {},
    "topk": {"kind": "topk"},
    "batchtopk": {"kind": "batchtopk"},
    "jumprelu": {"kind": "jumprelu"},
    "gated": {"kind": "gated"},
    "matryoshka": {"kind": "matryoshka"},
    "grouped": {"kind": "topk", "group": 0.1, "mask": 0.2},
    "ncl": {"kind": "ncl"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_gradient_longer_than_the_clip_is_cut_to_it_and_keeps_its_direction(
    kind: str, clip: float
) -> None:
    base = TrainConfig(n_features=12, steps=40, batch_size=32, clip=None, **KINDS[kind])  # type: ignore[arg-type]
    config = base if kind == "ncl" else replace(base, k=2)
    data = {"image": random(200, 6), "text": random(200, 6, seed=1)}

    def trainer(clip: float | None) -> Trainer:
        told = replace(config, clip=clip)
        return Trainer(Data.of(data, told), told, CPU)

    raw = trainer(None)  # its gradient is taken here, without a step
    x, mask, rows = raw._batch()
    given = (x, rows) if kind == "ncl" else (x, mask, None, 0.0, 0.0)
    raw.objective(*given)[0].backward()
    gradients = [p.grad for p in raw.objective.parameters() if p.grad is not None]
    length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    whole, cut = trainer(None), trainer(clip)
    whole.step()
    cut.step()
    share = min(1.0, clip / length)
    assert (share < 1) == (clip == 1e-3)
    for a, b in zip(whole.objective.parameters(), cut.objective.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad, share * a.grad, rtol=1e-4, atol=1e-9)


def test_what_cannot_be_trained_on_or_written_is_refused_before_any_step(tmp_path: Path) -> None:
    endless = replace(CONFIG, steps=10**9)
    x = random(50, 6)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"image": x.numpy()}, {}, "of 'image' are a ndarray: give a tensor, such as torch.from_"),
        (x, {}, "streams is a Tensor: give activations by stream"),
        ({"image": x}, {"device": "warp"}, "device 'warp' cannot be used here"),
        ({"image": x}, {"log": tmp_path / "no" / "a.csv"}, "log is .*: make it first"),
        ({"image": x}, {"checkpoint": tmp_path / "no" / "c"}, "checkpoint is .*: make it first"),
        ({"image": x}, {"checkpoint": tmp_path}, "checkpoint is .*, a folder: name a file in it"),
        ({"image": x}, {"checkpoint": "/proc/c"}, "cannot write the checkpoint to '/proc/c'"),
        ({"image": x}, {"log": "/proc/a.csv"}, "cannot write the log to '/proc/a.csv'"),
        ({"image": x}, {"callbacks": [3]}, "callbacks holds 3, which cannot be called"),
    ]
    if not torch.cuda.is_available():
        cases.append(({"image": x}, {"device": "cuda"}, "device 'cuda' cannot be used here"))
    for streams, options, message in cases:
        with pytest.raises(VlmEditError, match=message):
            train_dictionary(streams, endless, progress=False, **options)


def test_a_training_that_came_to_nothing_says_so() -> None:
    streams = {"image": random(200, 6)}
    config = replace(CONFIG, lr=1e6, clip=None)
    with pytest.warns(UserWarning, match=r"no feature was active.*smaller lr \(it was 1000000"):
        train_dictionary(streams, config, progress=False)
    with pytest.raises(VlmEditError, match=r"explained is nan in step 2 of 40.*lr than 1e\+30"):
        train_dictionary(streams, replace(config, kind="topk", lr=1e30), progress=False)
    with pytest.warns(VlmEditWarning, match=r"explains -.* of the variance.*smaller lr \(it was 3"):
        train_dictionary(streams, replace(config, kind="topk", lr=3.0), progress=False)


def test_a_share_of_less_than_a_feature_is_one_feature() -> None:
    config = replace(CONFIG, n_features=4, kind="matryoshka", prefixes=(0.01, 0.5, 1.0))
    assert config.sizes == (1, 2, 4)


def test_activations_that_are_all_alike_are_refused_once_they_are_centred() -> None:
    for streams in ({"image": torch.ones(9, 4)}, {"image": torch.zeros(9, 4)}):
        with pytest.raises(VlmEditError, match="they are all alike"):
            train_dictionary(streams, CONFIG, progress=False)
    with pytest.raises(VlmEditError, match="every batch takes activations of each stream"):
        both = {"image": random(9, 4), "text": random(9, 4)}
        train_dictionary(both, replace(CONFIG, batch_size=1), progress=False)


def test_a_digest_sees_rows_means_and_sizes_alike() -> None:
    x = torch.arange(4096.0)[:, None].repeat(1, 2)
    x -= x.mean(0)
    config = replace(CONFIG, center=False)
    seen = torch.linspace(0, 4095, 512).long()
    unseen = [row for row in range(4096) if row not in set(seen.tolist())][:2]
    swapped, moved, spread = x.clone(), x.clone(), x.clone()
    swapped[[8, 16]] = x[[16, 8]]
    assert 8 in seen and 16 in seen
    moved[unseen[0]] *= -1
    spread[unseen[0]] += 64.0
    spread[unseen[1]] -= 64.0
    given = [x, x.clone(), swapped, moved, spread]
    data = [Data.of({"image": each}, config) for each in given]
    digests = [each.digest() for each in data]
    assert digests[0] == digests[1] and len(set(digests)) == 4
    assert torch.equal(data[4].mean, data[0].mean) and data[4].scale != data[0].scale
    assert data[3].scale == data[0].scale and not torch.equal(data[3].mean, data[0].mean)


def test_lines_of_the_log_behind_the_state_are_dropped_and_a_new_run_begins_anew(
    tmp_path: Path,
) -> None:
    config, log = replace(CONFIG, steps=5), tmp_path / "log.csv"
    kept = {"checkpoint": tmp_path / "c", "log": log}
    train_dictionary({"image": random(50, 6)}, config, progress=False, **kept)
    told = log.read_text()
    assert [line["step"] for line in csv.DictReader(io.StringIO(told))] == ["5"]
    with log.open("a") as file:
        file.write(told.splitlines()[1].replace("5,", "6,", 1) + "\n")
    train_dictionary({"image": random(50, 6)}, config, progress=False, **kept)
    assert log.read_text() == told
    log.write_text("what,ever\n1,2\n")
    train_dictionary({"image": random(50, 6)}, config, progress=False, log=log)
    assert log.read_text() == told


def test_states_are_written_when_it_is_time_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += 0.5
            return now[0]

    def write(*given: Any) -> None:
        written.append(given[2]["done"])

    monkeypatch.setattr(checkpoint, "time", Clock)
    monkeypatch.setattr(checkpoint, "write_tensors", write)
    kept = {"checkpoint": tmp_path / "c", "every": 5.0}
    train_dictionary({"image": random(50, 6)}, replace(CONFIG, steps=25), progress=False, **kept)
    assert written == [10, 20, 25]


def test_a_state_with_tensors_of_another_shape_or_of_other_processes_is_refused(
    tmp_path: Path,
) -> None:
    config, path = replace(CONFIG, steps=5), tmp_path / "c"
    train_dictionary({"image": random(50, 6)}, config, checkpoint=path, progress=False)
    header, tensors = read_tensors(path)
    write_tensors(path, {**tensors, "exp_avg.weight": torch.zeros(2, 2)}, header)
    with pytest.raises(VlmEditError, match="is not a whole state"):
        train_dictionary({"image": random(50, 6)}, config, checkpoint=path, progress=False)
    write_tensors(path, tensors, {**header, "processes": "2"})
    with pytest.raises(VlmEditError, match="another processes"):
        train_dictionary({"image": random(50, 6)}, config, checkpoint=path, progress=False)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_tells_what_is_explained_and_goes_on_where_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, steps=5)
    told = []
    for progress in (True, True, False):
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        kept = {"checkpoint": tmp_path / "c", "progress": progress}
        train_dictionary({"image": random(50, 6)}, config, **kept)
        told.append(screen.getvalue())
    assert all(name in told[0] for name in ("explained=", "l0=", "dead=", " 0/5", "5/5"))
    assert "coefficient" not in told[0]
    assert "5/5" in told[1] and " 0/5" not in told[1]
    assert told[2] == ""
