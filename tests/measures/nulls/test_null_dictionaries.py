"""Random and frozen dictionaries: as sparse as the given one, in directions that mean nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, Encoder, PairedDictionary
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.nulls import config_like, frozen_dictionary, random_dictionary

M, D = 40, 12


def streams(n: int = 300) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, D, generator=generator)
    return {"image": x + 1, "text": torch.randn(n, D, generator=generator) - 1}


def dictionary(activation: str, **options: Any) -> Dictionary:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(M, D, generator=generator)
    encoder = Encoder(
        rows.T.contiguous(),
        torch.randn(M, generator=generator) - 3,
        activation,
        centers={"image": torch.ones(D), "text": -torch.ones(D)},
        subtract=torch.full((D,), 0.1),
        **options,
    )
    return Dictionary(encoder, rows, torch.full((D,), 0.1))


def active(given: Dictionary, data: dict[str, Tensor]) -> float:
    counts = [(given.encode(x, name) != 0).sum(1) for name, x in data.items()]
    return float(torch.cat(counts).double().mean())


@pytest.mark.parametrize(
    "given",
    [
        dictionary("relu"),
        dictionary("jumprelu", threshold=torch.linspace(0, 2, M)),
        dictionary("topk", k=5),
        dictionary("topk_abs", k=5),
    ],
    ids=lambda given: given.encoder.activation,
)
def test_random_directions_are_active_as_often_as_the_features_they_stand_for(
    given: Dictionary,
) -> None:
    data = streams()
    null = random_dictionary(given, data)
    assert active(null, data) == pytest.approx(
        active(given, data), abs=0.2 if given.encoder.k else 0.02
    )
    assert torch.equal(null.decoder, null.encoder.weight.T)
    assert torch.allclose(null.decoder.norm(dim=1), torch.ones(M))
    assert (null.encoder.activation, null.encoder.k) == (given.encoder.activation, given.encoder.k)
    assert torch.equal(null.encoder.centers["text"], given.encoder.centers["text"])
    cosines = torch.nn.functional.cosine_similarity(null.decoder, given.decoder)
    assert float(cosines.abs().mean()) < 0.35


def test_every_seed_has_directions_of_its_own() -> None:
    given, data = dictionary("topk", k=5), streams()
    first, again, other = (random_dictionary(given, data, seed) for seed in (0, 0, 1))
    assert first.digest() == again.digest() != other.digest()


def test_raw_neurons_turn_into_random_directions_without_a_cut() -> None:
    null = random_dictionary(Dictionary.identity(D), {"image": streams()["image"]})
    assert null.encoder.activation == "identity"
    assert active(null, {"image": streams()["image"]}) == D


def test_a_frozen_dictionary_is_as_large_and_about_as_sparse_and_keeps_its_random_rows() -> None:
    given, data = dictionary("relu"), streams(600)
    frozen = frozen_dictionary(data, given, steps=150, progress=False)
    assert frozen.n_features == M
    assert active(frozen, data) == pytest.approx(active(given, data), rel=0.4)
    begun = frozen_dictionary(data, given, steps=1, progress=False)
    assert torch.equal(frozen.decoder, begun.decoder)
    assert not torch.allclose(frozen.encoder.weight, begun.encoder.weight, atol=0.05)


def test_the_config_of_a_dictionary_is_that_of_its_size_and_sparsity() -> None:
    data = streams()
    topk = config_like(dictionary("topk", k=5), data, steps=7, seed=3)
    assert (topk.kind, topk.k, topk.n_features, topk.center) == ("topk", 5, M, True)
    assert (topk.steps, topk.seed) == (7, 3)
    relu = dictionary("relu")
    other = config_like(relu, data)
    assert (other.kind, other.k) == ("batchtopk", round(active(relu, data)))
    bare = replace(relu, encoder=replace(relu.encoder, centers={}))
    assert not config_like(bare, data).center


def test_a_dictionary_of_each_stream_is_refused() -> None:
    given = dictionary("relu")
    with pytest.raises(VlmEditError, match="PairedDictionary has no random counterpart"):
        random_dictionary(PairedDictionary(given, given), streams())
