"""Rows left on disk, and what is made of them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Ablate, Host, Patch, VlmEditError, load_dictionary, measure, zoo
from vlm_edit.dictionaries import Encoder, Rows, StoredDictionary, save_saelens, streaming
from vlm_edit.dictionaries import stored as module
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.ground.modality import Mixed
from vlm_edit.measuring import collect


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
    edited = [Patch("joint", d, Ablate([3, 11])).bindings[0].splice(x) for d in (stored, whole)]
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


ALL = ("relu", "jumprelu", "topk", "topk_signed", "topk_abs", "groupmax", "identity")


def stored(activation, norm="none", centers=False, seed=0, m=24, d=5, soft_cap=None):
    g = torch.Generator().manual_seed(seed)
    file = torch.randn(m, d, generator=g)
    return StoredDictionary(
        weight=Rows(file, unit=True),
        bias=torch.randn(m, generator=g),
        decoder=Rows(torch.randn(d, m, generator=g).half().T, gain=torch.rand(m, generator=g)),
        decoder_bias=torch.randn(d, generator=g),
        activation=activation,
        threshold=torch.rand(m, generator=g) if activation == "jumprelu" else None,
        k=4 if activation.startswith("topk") or activation == "groupmax" else None,
        subtract=torch.randn(d, generator=g),
        norm=norm,
        centers={s: torch.randn(d, generator=g) for s in ("image", "text")} if centers else {},
        soft_cap=soft_cap,
    )


@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_a_dictionary_on_disk_encodes_and_decodes_as_the_loaded_one(activation, rows, monkeypatch):
    monkeypatch.setattr(module, "_PART", rows * 5)
    monkeypatch.setattr(streaming, "_HIDDEN", 3 * rows)
    for options in ({}, {"norm": "layer_norm", "centers": True}, {"soft_cap": 0.7}):
        lazy = stored(activation, **options)
        loaded = lazy.load()
        x = torch.randn(10, 5, generator=torch.Generator().manual_seed(1)).half()
        image = torch.arange(10) % 3 == 0
        stream = Mixed.of(image=image) if lazy.centers else None
        shaped = Mixed.of(image=image.view(2, 5)) if lazy.centers else None
        expected = loaded.encode_sparse(x, stream)
        found = lazy.encode_sparse(x, stream)
        assert torch.equal(found.rows, expected.rows)
        assert torch.equal(found.features, expected.features)
        torch.testing.assert_close(found.values, expected.values)
        dense = lazy.encode(x.view(2, 5, 5), shaped)
        torch.testing.assert_close(dense, loaded.encode(x.view(2, 5, 5), shaped))
        torch.testing.assert_close(lazy.decode(found), loaded.decode(expected))
        torch.testing.assert_close(lazy.decode(dense), loaded.decode(dense))
        torch.testing.assert_close(lazy.decode(dense[0, 0]), loaded.decode(dense[0, 0]))
        torch.testing.assert_close(lazy.normalise(x), loaded.normalise(x))


@pytest.mark.parametrize("activation", ALL)
def test_its_digest_is_the_loaded_ones_and_no_others(activation, monkeypatch):
    lazy = stored(activation, centers=True)
    whole = lazy.digest()
    monkeypatch.setattr(module, "_PART", 35)
    assert lazy.digest() == whole == lazy.load().digest()
    assert lazy.summary() == lazy.load().summary()
    others = [
        stored(activation, seed=1, centers=True),
        stored(activation, centers=True, soft_cap=0.7),
        stored(activation, norm="layer_norm", centers=True),
        stored(activation),
        replace(lazy, decoder_bias=lazy.decoder_bias + 1),
        replace(lazy, decoder=Rows(lazy.decoder.tensor)),
    ]
    assert len({whole, *(other.digest() for other in others)}) == 7


def test_no_activations_have_no_codes():
    for activation in ALL:
        lazy = stored(activation)
        assert lazy.encode(torch.zeros(0, 5)).shape == (0, 24)
        assert lazy.decode(torch.zeros(0, 24)).shape == (0, 5)


def test_a_dictionary_on_disk_refuses_what_the_loaded_one_refuses():
    lazy = stored("topk", centers=True)
    with pytest.raises(VlmEditError, match="width 4 meet a dictionary of width 5"):
        lazy.encode(torch.zeros(2, 4), "image")
    with pytest.raises(VlmEditError, match="pass stream='image'"):
        lazy.encode(torch.zeros(2, 5))
    with pytest.raises(VlmEditError, match=r"are \[n, d\]"):
        lazy.encode_sparse(torch.zeros(2, 2, 5), "image")
    with pytest.raises(VlmEditError, match="codes of 23 features meet a dictionary of 24"):
        lazy.decode(torch.zeros(2, 23))


def test_a_host_is_measured_with_a_dictionary_left_on_disk(tmp_path):
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs().select(range(48))
    save_saelens(zoo.load_dictionary("joint"), tmp_path)
    lazy, loaded = load_dictionary(tmp_path, lazy=True), load_dictionary(tmp_path)
    found = measure(Host.of(host, processor), pairs, lazy, "joint", progress=False)
    expected = measure(Host.of(host, processor), pairs, loaded, "joint", progress=False)
    # Only a code next to its threshold may differ by rounding.
    torch.testing.assert_close(
        found.dominance.scores, expected.dominance.scores, equal_nan=True, atol=1e-4, rtol=0
    )
    assert found.provenance == expected.provenance
    streams = collect(Host.of(host, processor), pairs, "joint", progress=False)
    assert lazy.check(streams["image"], "image") == loaded.check(streams["image"], "image")
