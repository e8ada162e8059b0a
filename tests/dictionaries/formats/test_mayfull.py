"""Folders of CLIP_TopKSAE and its kin, with the formula written here by hand."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import PairedDictionary

D, M, K = 6, 16, 4


def write(folder, kind="TopKSAE", tensors=None, **config):
    """A folder as the classes' save_pretrained writes it."""
    g = torch.Generator().manual_seed(0)
    weights = {
        "encoder.weight": torch.randn(M, D, generator=g),
        "encoder.bias": torch.randn(M, generator=g),
        "W_dec": torch.randn(M, D, generator=g),
        "b_dec": torch.randn(D, generator=g),
    } | (tensors or {})
    weights = {name: w for name, w in weights.items() if w is not None}
    told = {"architectures": [kind], "hidden_size": D, "latent_size": M, "k": K} | config
    told = {name: value for name, value in told.items() if value is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    save_file(weights, folder / "model.safetensors")
    return {name: w.double() for name, w in weights.items()}


def by_hand(w, x, k=K, live=None):
    """Codes and reconstruction in float64, of some features."""
    hidden = ((x.double() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    if live is not None:
        hidden = torch.where(live, hidden, 0.0)
    values, places = hidden.topk(k, dim=-1)
    codes = torch.zeros_like(hidden).scatter(-1, places, values)
    return codes.float(), (codes @ w["W_dec"] + w["b_dec"]).float()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["TopKSAE", "BatchTopKSAE", ...])
def test_codes_are_the_k_largest_of_relu_of_what_is_left_of_the_bias(tmp_path, kind):
    weights = write(tmp_path, architectures=... if kind is ... else [kind], model_name="clip")
    x, found = torch.randn(9, D) * 2, load_dictionary(tmp_path)
    codes, back = by_hand(weights, x)
    close(found.encode(x), codes)
    close(found.reconstruct(x), back)
    assert found.info == {"model_name": "clip"}
    wider = load_dictionary(tmp_path, k=7)  # it is evaluated with another k than trained with
    close(wider.encode(x), by_hand(weights, x, 7)[0])


def test_a_size_of_0_is_the_width_times_the_expansion(tmp_path):
    weights = {"encoder.weight": torch.randn(12, D), "encoder.bias": torch.zeros(12)}
    write(tmp_path, tensors=weights | {"W_dec": torch.zeros(12, D)}, latent_size=0,
          expansion_factor=2)  # fmt: skip
    assert load_dictionary(tmp_path).n_features == 12
    write(tmp_path, latent_size=0, expansion_factor=2)
    with pytest.raises(VlmEditError, match="states latent_size = 12, the tensors have 16"):
        load_dictionary(tmp_path)
    write(tmp_path, latent_size=0)
    with pytest.raises(VlmEditError, match="expansion_factor must be a whole number above 0"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("ratio", "image", "text"),
    [([2, 12, 2], (0, 14), (2, 16)), (None, (0, 12), (4, 16)), ([3, 2, 2], (0, 10), (6, 16))],
)
def test_of_a_stream_the_features_of_the_other_stay_out(tmp_path, ratio, image, text):
    weights = write(tmp_path, "VLTopKSAE", vl_split_ratio=ratio)
    x, found = torch.randn(40, D) * 2, load_dictionary(tmp_path)
    assert isinstance(found, PairedDictionary)
    for stream, (first, end) in (("image", image), ("text", text)):
        live = (torch.arange(M) >= first) & (torch.arange(M) < end)
        codes, back = by_hand(weights, x, live=live)
        close(found.encode(x, stream), codes)
        close(found.of(stream).reconstruct(x), back)
        assert not found.encode(x * 1000, stream)[:, ~live].any()
    lazy = load_dictionary(tmp_path, lazy=True)
    assert lazy.digest() == found.digest()
    assert load_dictionary(tmp_path, k=2).image.encoder.k == 2


def test_two_dictionaries_in_one_file_come_with_a_warning_that_they_are_not_matched(tmp_path):
    sides = {
        f"{side}.{name}": torch.randn(*size)
        for side in ("image_sae", "text_sae")
        for name, size in (("encoder.weight", (8, D)), ("encoder.bias", (8,)), ("W_dec", (8, D)),
                           ("b_dec", (D,)))
    }  # fmt: skip
    none = dict.fromkeys(("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    write(tmp_path, "TwoSidedTopKSAE", tensors=sides | none)
    with pytest.warns(UserWarning, match="match_dictionaries") as caught:
        found = load_dictionary(tmp_path)
    assert caught[0].filename == __file__
    assert found.n_features == 8
    assert torch.equal(found.text.decoder, sides["text_sae.W_dec"])
    write(tmp_path, "TwoSidedTopKSAE", tensors=sides | none, latent_size=8)
    with pytest.raises(VlmEditError, match="states latent_size = 4, the tensors have 8"):
        load_dictionary(tmp_path)
    write(tmp_path, "TwoSidedTopKSAE", tensors=sides)
    with pytest.raises(VlmEditError, match="does not have: W_dec, b_dec"):
        load_dictionary(tmp_path)


def test_one_encoder_may_have_a_decoder_for_each_stream(tmp_path):
    sides = {f"{side}_decoder.weight": torch.randn(D, M) for side in ("vision", "text")}
    sides |= {f"{side}_decoder.bias": torch.randn(D) for side in ("vision", "text")}
    write(tmp_path, "SharedEncSAE", tensors=sides | {"W_dec": None, "b_dec": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_dictionary(tmp_path)
    assert torch.equal(found.image.decoder, sides["vision_decoder.weight"].T)
    assert torch.equal(found.text.decoder_bias, sides["text_decoder.bias"])
    write(tmp_path, "SharedEncSAE", tensors=sides | {"W_dec": None})
    with pytest.raises(VlmEditError, match="does not have: b_dec"):
        load_dictionary(tmp_path)
    write(tmp_path, "SharedEncSAE", latent_size=17, tensors=sides | {"W_dec": None, "b_dec": None})
    with pytest.raises(VlmEditError, match="states latent_size = 17"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("VLSAE", {}, r"architectures \['VLSAE'\] is not supported; supported: one of TopKSAE, B"),
        ("TopKSAE", {"architectures": "TopKSAE"}, "architectures TopKSAE is not supported"),
        ("TopKSAE", {"architectures": ["TopKSAE", "VLTopKSAE"]}, "is not supported"),
        ("TopKSAE", {"architectures": [["TopKSAE"]]}, "is not supported"),
        ("TopKSAE", {"k": 0}, "k must be a whole number above 0"),
        ("TopKSAE", {"k": 17}, "k is 17"),
        ("TopKSAE", {"hidden_size": 7}, "states hidden_size = 7, the tensors have 6"),
        ("TopKSAE", {"latent_size": 17}, "states latent_size = 17, the tensors have 16"),
        ("TopKSAE", {"latent_size": "x"}, "latent_size must be a whole number"),
        ("VLTopKSAE", {"block_top_k": [1, 3]}, "block_top_k keeps a number of shared features"),
        ("VLTopKSAE", {"vl_split_ratio": [1, 2]}, "must be three whole numbers, got"),
        ("VLTopKSAE", {"vl_split_ratio": [0, 0, 0]}, "must be three whole numbers, got"),
        ("VLTopKSAE", {"vl_split_ratio": [1, -1, 1]}, "must be three whole numbers, got"),
        ("VLTopKSAE", {"vl_split_ratio": [1, True, 1]}, "must be three whole numbers, got"),
        ("VLTopKSAE", {"vl_split_ratio": [1, 1 << 31, 1]}, "must be three whole numbers, got"),
        ("VLTopKSAE", {"vl_split_ratio": "1:2:1"}, "must be three whole numbers, got"),
        ("MatryoshkaSAE", {}, "group_sizes None do not sum to the 16 features"),
        ("MatryoshkaSAE", {"group_sizes": [4, 8]}, "do not sum to the 16 features"),
        ("MatryoshkaSAE", {"group_sizes": [20, -4]}, "do not sum to the 16 features"),
        ("MatryoshkaSAE", {"group_sizes": ["16"]}, "do not sum to the 16 features"),
        (
            "VLMatryoshkaSAE",
            {"group_sizes": [4, 12], "active_groups": 1},
            "active_groups is 1 of 2: its encode gives codes of all groups and its forward drops",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(tmp_path, kind, config, message):
    write(tmp_path, kind, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("active", [None, 2])
def test_a_matryoshka_dictionary_of_all_its_groups_is_read(tmp_path, active):
    config = {"group_sizes": [4, 12], "active_groups": active}
    weights = write(tmp_path, "MatryoshkaSAE", **config)
    x = torch.randn(9, D)
    close(load_dictionary(tmp_path).encode(x), by_hand(weights, x)[0])
    write(tmp_path, "VLMatryoshkaSAE", latent_size=0, **config)
    assert isinstance(load_dictionary(tmp_path), PairedDictionary)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_dec": None}, "tensors missing: b_dec"),
        ({"W_skip": torch.zeros(D, D)}, "does not have: W_skip"),
        ({"W_dec": torch.zeros(D, M)}, "the decoder of 6 and 16"),
        ({"encoder.bias": torch.zeros(M - 1)}, r"has shape \(15,\)|shape"),
    ],
)
@pytest.mark.parametrize("kind", ["TopKSAE", "VLTopKSAE"])
def test_tensors_that_do_not_fit_are_refused(tmp_path, kind, tensors, message):
    write(tmp_path, kind, tensors=tensors)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_a_config_of_another_kind_of_model_is_not_this_format(tmp_path):
    write(tmp_path, latent_size=...)
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    write(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(VlmEditError, match=r"model.safetensors is empty"):
        load_dictionary(tmp_path / "other")
