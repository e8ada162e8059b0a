import csv
from pathlib import Path

import pytest
import torch
from processes import run_together
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, Encoder, TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.distributed import kth_largest
from vlm_edit.ground.errors import VlmEditError

KINDS = {
    "batchtopk": {},
    "matryoshka": {"mask": 0.2, "group": 0.01},
    "jumprelu": {"target_l0": 3.0},
    "ncl": {"ridge": 0.1},
    "gated": {"target_l0": 3.0, "middle": "median", "center": False},
    "archetypal": {"points": 30, "delta": 0.3},
    "relu in bfloat16": {"kind": "relu", "precision": "bfloat16", "target_l0": 3.0},
    "topk from a start": {"kind": "topk", "align": 0.3},
}
# Rounded products end a rounding of bfloat16 apart, and are summed in another order.
TOLERANCE = {"relu in bfloat16": 1e-2}
SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_training_distributed import KINDS, config, start
from vlm_edit.dictionaries import train_dictionary
from vlm_edit.dictionaries.training import archetypes
from vlm_edit.ground.errors import VlmEditError
torch.set_num_threads(1)
dist.init_process_group("gloo")
if dist.get_rank():  # k-means that ends elsewhere
    kmeans = archetypes.centroids
    archetypes.centroids = lambda x, count: kmeans(x, count) + 0.01
streams, found = load_file(sys.argv[2] + "/x.safetensors"), {}
for kind in KINDS:
    kept = {"log": f"{sys.argv[2]}/{kind}.csv", "checkpoint": f"{sys.argv[2]}/{dist.get_rank()}"}
    got = train_dictionary(streams, config(kind), start=start(kind), progress=False, **kept)
    Path(kept["checkpoint"]).unlink(missing_ok=True) if kind != list(KINDS)[-1] else None
    found |= {f"{kind}.decoder": got.decoder, f"{kind}.weight": got.encoder.weight}
    found |= {f"{kind}.decoder_bias": got.decoder_bias, f"{kind}.bias": got.encoder.bias}
    if got.encoder.threshold is not None:
        found[f"{kind}.threshold"] = got.encoder.threshold
try:
    train_dictionary(streams, config("batchtopk", 66), progress=False)
except VlmEditError as error:
    assert "must divide" in str(error)
    save_file(found, f"{sys.argv[2]}/{dist.get_rank()}.safetensors")
dist.destroy_process_group()
"""


DIFFERING = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import save_file
from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.ground.errors import VlmEditError
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, generator = dist.get_rank(), torch.Generator().manual_seed(0)
plain = {name: torch.randn(300, 6, generator=generator) for name in ("image", "text")}
last = {**plain, "text": plain["text"].clone()}
last["text"][200, 3] += 1e-6
cases = {
    "values of image": {**plain, "image": plain["image"] * 1.7},
    "values of text": last,
    "rows of image, values of image, rows of text, values of text (rows in all, by process: 600":
        {name: x[:100] for name, x in plain.items()},
    "rows of text, values of text (rows in all, by process: 600, 300": {"image": plain["image"]},
    "config": plain,
}
for expected, other in cases.items():
    seed = rank if expected == "config" else 0
    config = TrainConfig(n_features=8, k=2, steps=2, batch_size=8, seed=seed)
    mine = other if rank == 1 else plain
    save_file(mine, f"{sys.argv[1]}/{rank}")
    for given in (mine, f"{sys.argv[1]}/{rank}"):
        try:
            train_dictionary(given, config, progress=False)
        except VlmEditError as error:
            assert f"differ from process 0 in process 1: {expected}" in str(error), error
        else:
            raise AssertionError(expected)
train_dictionary({**plain}, TrainConfig(n_features=8, k=2, steps=2, batch_size=8), progress=False)
dist.destroy_process_group()
"""


def config(kind: str, batch_size: int = 64) -> TrainConfig:
    extra = {} if kind == "ncl" else {"k": 2, "auxiliary": 0.5}
    options = {"kind": kind, **extra, **KINDS[kind]}
    return TrainConfig(n_features=24, steps=60, batch_size=batch_size, dead_after=5, **options)


def start(kind: str) -> Dictionary | None:
    """What a run begins with, one and the same in all processes."""
    if not kind.endswith("start"):
        return None
    weight = F.normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(8)), dim=0)
    centers = {name: torch.zeros(6) for name in ("image", "text")}
    encoder = Encoder(weight, torch.zeros(24), activation="relu", centers=centers)
    return Dictionary(encoder, weight.T.contiguous(), torch.full((6,), 0.2), {})


def figures_of(log: Path) -> dict[str, float]:
    with log.open() as file:
        (line,) = csv.DictReader(file)
    return {name: float(value) for name, value in line.items()}


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    streams = {"image": x, "text": x + 0.3 * torch.randn(400, 6, generator=generator)}
    save_file(streams, tmp_path / "x.safetensors")
    ran = run_together(SCRIPT, Path(__file__).parent, tmp_path)
    assert [status for status, _ in ran] == [0, 0], ran
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert (tmp_path / "0").exists() and not (tmp_path / "1").exists()
    for kind in KINDS:
        log = tmp_path / "alone.csv"
        alone = train_dictionary(streams, config(kind), start=start(kind), progress=False, log=log)
        figures, expected = figures_of(tmp_path / f"{kind}.csv"), figures_of(log)
        assert figures == pytest.approx(expected, rel=1e-2, abs=1e-3)
        encoder, near = alone.encoder, TOLERANCE.get(kind, 2e-4)
        parts = {"decoder": alone.decoder, "decoder_bias": alone.decoder_bias}
        parts |= {"weight": encoder.weight, "bias": encoder.bias, "threshold": encoder.threshold}
        assert (encoder.threshold is None) == (encoder.activation != "jumprelu")
        for name, value in parts.items():
            if value is not None:
                torch.testing.assert_close(
                    found[0][f"{kind}.{name}"], value, rtol=0, atol=near, msg=f"{kind} {name}"
                )


def test_processes_with_other_activations_or_another_config_are_refused(tmp_path: Path) -> None:
    ran = run_together(DIFFERING, tmp_path)
    assert [status for status, _ in ran] == [0, 0], ran


@pytest.mark.parametrize("guess", [-9.0, 0.0, 0.5, 9.0])
def test_the_cut_is_exact_whatever_was_guessed(guess: float) -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    for k in (1, 7, 600, 2000):
        assert torch.equal(kth_largest(x, k, guess), x.flatten().topk(k).values[-1])


def test_nothing_is_split_without_processes() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert train_dictionary({"image": x}, config("batchtopk", 33), progress=False).n_features == 24
    with pytest.raises(VlmEditError, match="batch_size is 0"):
        train_dictionary({"image": x}, config("batchtopk", 0), progress=False)
