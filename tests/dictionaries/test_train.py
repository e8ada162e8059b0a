from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlm_edit.dictionaries import TrainConfig, load_dictionary, save_saelens, train_dictionary
from vlm_edit.ground.errors import VlmEditError

CONFIG = TrainConfig(n_features=64, k=3, steps=1000, batch_size=256, lr=3e-3)


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sparse non-negative mixtures of 32 directions in 24 dimensions, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(
        torch.randn(32, 24, generator=torch.Generator().manual_seed(99)), dim=1
    )
    active = torch.rand(n, 32, generator=generator) < 3 / 32
    codes = active * (0.5 + torch.rand(n, 32, generator=generator))
    return codes @ atoms + 2.0, atoms


def test_a_dictionary_finds_the_directions_that_were_planted() -> None:
    data, atoms = planted(4000, seed=0)
    found = train_dictionary({"image": data}, CONFIG, progress=False)
    fresh, _ = planted(1000, seed=1)
    assert found.explained_variance(fresh, "image") > 0.85
    best = (found.decoder @ atoms.T).amax(0)
    assert float((best > 0.9).double().mean()) > 0.8


def test_in_use_as_many_features_are_active_as_in_training() -> None:
    data, _ = planted(4000, seed=0)
    found = train_dictionary({"image": data}, CONFIG, progress=False)
    codes = found.encode(planted(1000, seed=1)[0], "image")
    assert 2.4 < float((codes > 0).sum(1).double().mean()) < 3.6
    assert found.encoder.activation == "jumprelu"


def test_decoder_rows_have_norm_one() -> None:
    data, _ = planted(500, seed=0)
    config = TrainConfig(n_features=16, k=2, steps=30, batch_size=64)
    found = train_dictionary({"image": data}, config, progress=False)
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(16), atol=1e-5)


def test_both_streams_are_centred_apart() -> None:
    data, _ = planted(600, seed=0)
    config = TrainConfig(n_features=16, k=2, steps=30, batch_size=64)
    found = train_dictionary({"image": data, "text": data - 9.0}, config, progress=False)
    assert torch.allclose(found.encoder.centers["image"], data.mean(0))
    assert torch.allclose(found.encoder.centers["text"], data.mean(0) - 9.0, atol=1e-4)
    assert torch.allclose(found.encode(data, "image"), found.encode(data - 9.0, "text"), atol=1e-3)


def test_the_same_seed_gives_the_same_weights() -> None:
    data, _ = planted(500, seed=0)
    config = TrainConfig(n_features=16, k=2, steps=30, batch_size=64, seed=5)
    first = train_dictionary({"image": data}, config, progress=False)
    again = train_dictionary({"image": data}, config, progress=False)
    assert torch.equal(first.decoder, again.decoder)
    assert torch.equal(first.encoder.weight, again.encoder.weight)


def test_a_trained_dictionary_survives_the_disk(tmp_path: Path) -> None:
    data, _ = planted(500, seed=0)
    config = TrainConfig(n_features=16, k=2, steps=30, batch_size=64, norm="constant_norm_rescale")
    found = train_dictionary({"image": data}, config, {"hook_name": "joint"}, progress=False)
    save_saelens(found, tmp_path)
    loaded = load_dictionary(tmp_path)
    assert torch.equal(loaded.encode(data, "image"), found.encode(data, "image"))
    assert loaded.info["hook_name"] == "joint"


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({}, "train on"),
        ({"image": torch.zeros(4, 3), "text": torch.zeros(4, 2)}, "one width"),
        ({"audio": torch.zeros(4, 3)}, "'image' or 'text'"),
        ({"image": torch.zeros(4, 3), "text": torch.zeros(0, 3)}, "activations of each stream"),
    ],
)
def test_streams_that_do_not_fit_are_refused(streams: dict[str, Tensor], message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        train_dictionary(streams, CONFIG, progress=False)


def test_more_active_features_than_there_are_is_refused() -> None:
    with pytest.raises(VlmEditError, match="k is 9"):
        train_dictionary({"image": torch.zeros(4, 3)}, TrainConfig(n_features=8, k=9))
