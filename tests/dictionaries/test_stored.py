"""Rows left on disk, and what is made of them."""

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Ablate, Patch, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Rows, StoredDictionary, save_saelens
from vlm_edit.dictionaries.dictionary import Dictionary


def test_rows_are_taken_as_the_whole_would_give_them():
    g = torch.Generator().manual_seed(0)
    file = torch.randn(5, 9, generator=g).half()  # [d, m], as many files have it
    rows = Rows(file.T, "W", torch.rand(9, generator=g), torch.rand(5, generator=g), unit=True)
    whole = file.T.float()
    whole = whole / whole.norm(dim=1, keepdim=True) * rows.gain[:, None] * rows.scale
    torch.testing.assert_close(rows.take(), whole)
    torch.testing.assert_close(rows.take([7, 0, 7]), whole[[7, 0, 7]])
    assert rows.take().dtype == torch.float32


def test_what_is_taken_is_a_copy():
    tensor = torch.ones(2, 3)
    Rows(tensor).take().zero_()
    assert bool((tensor == 1).all())


@pytest.mark.parametrize(
    "rows",
    [
        Rows(torch.tensor([[1.0, float("nan")]]), "W"),
        Rows(torch.tensor([[1.0, float("inf")]]), "W", unit=True),
        Rows(torch.ones(1, 2), "W", gain=torch.tensor([float("inf")])),
        Rows(torch.full((1, 2), 3e38), "W", scale=torch.tensor([1.0, 10.0])),
    ],
)
def test_numbers_that_are_not_finite_are_refused_when_they_are_read(rows):
    with pytest.raises(VlmEditError, match="W holds NaN or infinity"):
        rows.take([0])


def test_shapes_that_do_not_fit_are_refused_before_anything_is_read():
    rows, b, c = Rows(torch.ones(4, 3)), torch.zeros(4), torch.zeros(3)
    with pytest.raises(VlmEditError, match=r"gain has shape \(3,\), expected \(4,\)"):
        Rows(torch.ones(4, 3), gain=torch.ones(3))
    with pytest.raises(VlmEditError, match="expected 2 axes"):
        Rows(torch.ones(4))
    with pytest.raises(VlmEditError, match="decoder of 3 and 4"):
        StoredDictionary(rows, b, Rows(torch.ones(3, 4)), c)
    with pytest.raises(VlmEditError, match=r"encoder bias has shape \(3,\), expected \(4,\)"):
        StoredDictionary(rows, c, rows, c)
    with pytest.raises(VlmEditError, match="subtract holds NaN"):
        StoredDictionary(rows, b, rows, c, subtract=torch.full((3,), torch.nan))


@pytest.mark.parametrize(
    ("activation", "k"),
    [("relu", None), ("jumprelu", None), ("topk", 3), ("topk_abs", 3)],
)
def test_a_patch_of_a_stored_dictionary_is_the_patch_of_the_whole(tmp_path, activation, k):
    g = torch.Generator().manual_seed(1)
    encoder = Encoder(
        torch.randn(6, 16, generator=g),
        torch.randn(16, generator=g),
        activation,
        threshold=torch.rand(16, generator=g) if activation == "jumprelu" else None,
        k=k,
    )
    save_saelens(
        Dictionary(encoder, torch.randn(16, 6, generator=g), torch.randn(6, generator=g)), tmp_path
    )
    x = torch.randn(20, 6, generator=g)
    stored, whole = load_dictionary(tmp_path, lazy=True), load_dictionary(tmp_path)
    assert isinstance(stored, StoredDictionary)
    assert (stored.width, stored.n_features) == (6, 16)
    edited = [Patch.at("joint", d, Ablate([3, 11])).bindings[0].splice(x) for d in (stored, whole)]
    assert torch.equal(*edited)
    assert not torch.equal(edited[0], x)
    with pytest.raises(VlmEditError, match="feature 16 is not in this dictionary"):
        stored.slice([16])


def test_a_slice_reads_its_own_rows_and_leaves_a_damaged_one_elsewhere_alone(tmp_path):
    encoder = Encoder(torch.randn(6, 16), torch.zeros(16))
    dictionary = Dictionary(encoder, torch.randn(16, 6), torch.zeros(6))
    save_saelens(dictionary, tmp_path)
    broken = dictionary.decoder.clone()
    broken[9] = torch.nan
    tensors = {"W_enc": encoder.weight, "b_enc": encoder.bias, "W_dec": broken}
    save_file({**tensors, "b_dec": torch.zeros(6)}, tmp_path / "sae_weights.safetensors")
    stored = load_dictionary(tmp_path, lazy=True)
    assert torch.equal(stored.slice([4]).decoder[0], dictionary.decoder[4])
    with pytest.raises(VlmEditError, match="W_dec holds NaN"):
        stored.slice([4, 9])
    with pytest.raises(VlmEditError, match="W_dec holds NaN"):
        stored.load()
