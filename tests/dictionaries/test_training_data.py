from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.ground.errors import VlmEditError

CONFIG = TrainConfig(n_features=16, k=2, steps=20, batch_size=64, norm="layer_norm")


def rows(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator) * 3 + torch.arange(8)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mapped_file_gives_the_statistics_and_batches_of_memory(
    tmp_path: Path, dtype: torch.dtype, center: bool
) -> None:
    streams = {"image": rows(9000).to(dtype), "text": rows(50, 1).to(dtype)}
    save_file(streams, tmp_path / "x.safetensors")
    config = TrainConfig(center=center, norm="constant_norm_rescale")
    memory, mapped = Data.of(streams, config), Data.of(tmp_path / "x.safetensors", config)
    assert memory.ready and not mapped.ready
    assert mapped.streams["image"].dtype == dtype
    assert mapped.scale == pytest.approx(memory.scale, rel=1e-5)
    assert torch.allclose(mapped.mean, memory.mean, atol=1e-5)
    drawn = {"image": torch.tensor([8999, 3]), "text": torch.tensor([7])}
    ours, theirs = (x.batch(drawn, torch.device("cpu")) for x in (mapped, memory))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_dictionary_of_a_mapped_file_is_that_of_its_tensors(tmp_path: Path) -> None:
    save_file({"text": rows(300)}, tmp_path / "x.safetensors")
    mapped = train_dictionary(tmp_path / "x.safetensors", CONFIG, progress=False)
    memory = train_dictionary({"text": rows(300)}, CONFIG, progress=False)
    assert torch.allclose(mapped.decoder, memory.decoder, atol=1e-4)
    assert torch.allclose(mapped.encoder.centers["text"], memory.encoder.centers["text"], atol=1e-5)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(VlmEditError, match="cannot read activations"):
            train_dictionary(tmp_path / name, CONFIG, progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad: float) -> None:
    x = rows(40)
    x[3, 3] = bad
    with pytest.raises(VlmEditError, match="not finite"):
        train_dictionary({"image": x}, TrainConfig(n_features=8, k=2, steps=1), progress=False)


def test_activations_of_whole_numbers_are_refused() -> None:
    with pytest.raises(VlmEditError, match="floating dtype"):
        train_dictionary({"image": torch.ones(4, 3, dtype=torch.long)}, CONFIG, progress=False)


def test_pairs_of_unequal_streams_are_refused() -> None:
    for streams in ({"image": rows(40)}, {"image": rows(40), "text": rows(41)}):
        with pytest.raises(VlmEditError, match="as many rows"):
            train_dictionary(streams, TrainConfig(8, 2, 1, group=0.1), progress=False)
