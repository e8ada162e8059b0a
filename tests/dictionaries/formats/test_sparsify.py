"""Folders of sparsify, with the formula written here by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary


def write(folder, d=6, m=16, dtype=torch.float32, extra=None, **config):
    """A folder as SparseCoder.save_to_disk of eai-sparsify 1.3 writes it."""
    g = torch.Generator().manual_seed(d)
    weights = {
        "encoder.weight": torch.randn(m, d, generator=g),
        "encoder.bias": torch.randn(m, generator=g),
        "W_dec": torch.randn(m, d, generator=g),
        "b_dec": torch.randn(d, generator=g),
    } | (extra or {})
    weights = {name: w.to(dtype) for name, w in weights.items() if w is not None}
    told = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": m,
        "k": 4,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d,
    } | config
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: value for name, value in told.items() if value is not ...}
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file(weights, folder / "sae.safetensors")
    return {name: w.double() for name, w in weights.items()}


def by_hand(w, x, k=4, kind="topk"):
    """Codes and reconstruction in float64."""
    hidden = (x.double() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    if kind == "groupmax":
        parts = hidden.relu().reshape(*hidden.shape[:-1], k, -1)
        kept = parts == parts.max(-1, keepdim=True).values
        codes = torch.where(kept, parts, 0.0).reshape(hidden.shape)
    elif kind == "signed":
        places = hidden.abs().topk(k, dim=-1).indices
        codes = torch.zeros_like(hidden).scatter(-1, places, hidden.gather(-1, places))
    else:
        values, places = hidden.relu().topk(k, dim=-1)
        codes = torch.zeros_like(hidden).scatter(-1, places, values)
    return codes.float(), (codes @ w["W_dec"] + w["b_dec"]).float()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("kind", "k", "message"),
    [
        ("groupmax", 17, "k is 17; it must lie between 1 and the 16 features"),
        ("groupmax", 5, "16 features cannot be cut into 5 groups"),
        ("topk", 999, "k is 999; it must lie between 1 and the 16 features"),
    ],
)
def test_a_k_that_does_not_fit_the_features_is_refused(tmp_path, lazy, kind, k, message):
    write(tmp_path, activation=kind, k=k)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path, lazy=lazy)


@pytest.mark.parametrize(("d", "m"), [(6, 16), (8, 8)])
@pytest.mark.parametrize("kind", ["topk", "groupmax", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_reconstruction_are_those_of_the_formula(tmp_path, d, m, kind, dtype):
    told = {"signed": True, "activation": ...} if kind == "signed" else {"activation": kind}
    weights = write(tmp_path, d, m, dtype, **told)
    x = torch.randn(11, d) * 3 + 1
    dictionary = load_dictionary(tmp_path)
    codes, back = by_hand(weights, x, kind=kind)
    torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-5, atol=1e-4)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-5, atol=1e-5)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


def test_an_old_file_without_an_activation_is_topk(tmp_path):
    weights = write(tmp_path, activation=..., transcode=..., skip_connection=..., num_latents=0,
                    expansion_factor=2, m=12)  # fmt: skip
    x = torch.randn(5, 6)
    torch.testing.assert_close(load_dictionary(tmp_path).encode(x), by_hand(weights, x)[0])


def test_the_folder_s_name_is_the_hookpoint(tmp_path):
    write(tmp_path / "model.layers.24")
    assert load_dictionary(tmp_path, file="model.layers.24").info == {
        "hook_name": "model.layers.24"
    }
    write(tmp_path / "anything")
    assert load_dictionary(tmp_path / "anything").info == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"skip_connection": True}, "adds its input's image under W_skip"),
        ({"skip_connection": True, "transcode": ...}, "tensors missing: W_skip"),
        ({"transcode": 1}, "transcode must be true or false, got 1"),
        ({"activation": "relu"}, "activation 'relu' is not supported; supported: topk, groupmax"),
        ({"activation": ["topk"]}, "is not supported"),
        ({"k": 0}, "k must be a whole number above 0, got '0'"),
        ({"k": ...}, "k must be a whole number"),
        ({"k": 17}, "k is 17"),
        ({"activation": "groupmax", "k": 3}, "16 features cannot be cut into 3 groups"),
        ({"d_in": 7}, "states d_in = 7, the tensors have 6"),
        ({"num_latents": 17}, "states num_latents = 17, the tensors have 16"),
        ({"num_latents": 0, "expansion_factor": 3}, "states num_latents = 18"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(tmp_path, config, message):
    write(tmp_path, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"W_skip": torch.zeros(6, 6)}, "does not have: W_skip"),
        ({"b_dec": None}, "tensors missing: b_dec"),
        ({"W_dec": torch.zeros(6, 16)}, "the decoder of 6 and 16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, extra, message):
    write(tmp_path, extra=extra)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_a_folder_of_the_same_file_names_with_other_tensors_is_not_this_format(tmp_path):
    write(tmp_path, extra={"encoder.weight": None})
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(tmp_path)


def test_a_skip_makes_a_transcoder_of_a_file_older_than_the_word(tmp_path):
    """As EleutherAI published them, trained with the decoder's bias subtracted first."""
    folder = tmp_path / "layers.5.mlp"
    skip = torch.randn(6, 6)
    w = write(folder, activation=..., transcode=..., skip_connection=True, extra={"W_skip": skip})
    x = torch.randn(9, 6)
    codes, back = by_hand(w, x)
    found = load_dictionary(folder)
    torch.testing.assert_close(found.encode(x), codes)
    torch.testing.assert_close(found.predict(x), back + x @ skip.T)
    assert found.places("language.5.mlp") == (("language.5.mlp_in",), ("language.5.mlp",))
    with pytest.raises(VlmEditError, match="trained at 'layers.5.mlp', not at 'language.4.mlp'"):
        found.expect_site("language.4.mlp")
