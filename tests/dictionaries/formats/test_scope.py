"""Files of Gemma Scope 2 and Qwen-Scope, with their formulas written here by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary


def write(folder, d=6, m=16, extra=None, **config):
    """A folder of Gemma Scope 2."""
    g = torch.Generator().manual_seed(d)
    weights = {
        "w_enc": torch.randn(d, m, generator=g),
        "w_dec": torch.randn(m, d, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "b_dec": torch.randn(d, generator=g),
        "threshold": torch.rand(m, generator=g),
    } | (extra or {})
    weights = {name: w for name, w in weights.items() if w is not None}
    told = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-pt", "l0": 20} | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    save_file(weights, folder / "params.safetensors")
    return {name: w.double() for name, w in weights.items()}


@pytest.mark.parametrize(("d", "m"), [(6, 16), (8, 8)])
def test_gemma_scope_is_a_jumprelu_without_an_input_bias(tmp_path, d, m):
    w = write(tmp_path, d, m)
    x = torch.randn(11, d) * 2 + 1
    hidden = x.double() @ w["w_enc"] + w["b_enc"]
    codes = hidden.relu() * (hidden > w["threshold"])
    back = codes @ w["w_dec"] + w["b_dec"]
    found = load_dictionary(tmp_path)
    torch.testing.assert_close(found.encode(x), codes.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reconstruct(x), back.float(), rtol=1e-5, atol=1e-4)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]].float(), rtol=1e-5, atol=1e-5)


def test_gemma_scope_says_what_it_was_trained_on(tmp_path):
    folder = tmp_path / "layer_12_width_16k_l0_small"
    write(
        folder,
        hf_hook_point_in="model.layers.12.output",
        hf_hook_point_out="model.layers.12.output",
    )
    assert load_dictionary(folder).info == {
        "model_name": "google/gemma-3-4b-pt",  # the hub's name, not the config's
        "hook_name": "model.layers.12.output",
        "layer": "12",
    }


@pytest.mark.parametrize(
    ("extra", "config", "message"),
    [
        ({"affine_skip_connection": torch.zeros(6, 5)}, {}, "skip has shape"),
        ({"affine_skip_connection": torch.full((6, 6), torch.nan)}, {}, "holds NaN"),
        ({}, {"architecture": "topk"}, "architecture 'topk' is not supported"),
        ({"threshold": None}, {}, "tensors missing: threshold"),
        ({"w_dec": torch.zeros(6, 16)}, {}, "the decoder of 6 and 16"),
        ({"more": torch.zeros(2)}, {}, "does not have: more"),
    ],
)
def test_what_gemma_scope_cannot_be_read_from_is_refused(tmp_path, extra, config, message):
    write(tmp_path, extra=extra, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("parent", ["transcoder", "transcoder_all"])
def test_a_folder_s_name_tells_a_transcoder_where_no_config_says_otherwise(tmp_path, parent):
    folder = tmp_path / parent / "layer_12_width_16k_l0_small"
    write(folder)
    found = load_dictionary(folder)
    assert (found.reads, found.writes) == ("mlp_in", "mlp_out")
    write(folder, hf_hook_point_in="model.layers.12.mlp.input", hf_hook_point_out="somewhere")
    found = load_dictionary(folder)
    assert (found.reads, found.writes) == ("mlp_in", None)
    with pytest.raises(VlmEditError, match="does not say which place of a layer"):
        found.places("language.12.mlp_out")
    place = "model.layers.12.output"
    write(folder, hf_hook_point_in=place, hf_hook_point_out=place)
    assert load_dictionary(folder).info["hook_name"] == place


@pytest.mark.parametrize(
    ("parent", "place"),
    [
        ("resid_post", "model.layers.3.output"),
        ("attn_out_all", "model.layers.3.self_attn.o_proj.input"),
        ("mlp_out", "model.layers.3.post_feedforward_layernorm.output"),
        ("anything", None),
    ],
)
def test_names_of_folders_tell_the_place_only_where_there_is_no_config(tmp_path, parent, place):
    folder = tmp_path / "models--google--gemma-scope-2-1b-it" / parent / "layer_3_width_16k"
    write(folder)
    assert load_dictionary(folder).info == {"model_name": "google/gemma-3-4b-pt", "layer": "3"}
    (folder / "config.json").unlink()
    expected = {"model_name": "google/gemma-3-1b-it", "layer": "3"}
    expected |= {"hook_name": place} if place else {}
    assert load_dictionary(folder).info == expected


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("gemma-v3-270m-pt", "google/gemma-3-270m"),
        ("gemma-v3-270m-it", "google/gemma-3-270m-it"),
        ("google/gemma-3-12b-pt", "google/gemma-3-12b-pt"),
    ],
)
def test_hosts_are_named_as_on_the_hub(tmp_path, name, hub):
    write(tmp_path, model_name=name)
    assert load_dictionary(tmp_path).info == {"model_name": hub}


def write_qwen(folder, d=6, m=1024, name="layer7.sae.pt", **extra):
    """A file of Qwen-Scope."""
    g = torch.Generator().manual_seed(d)
    weights = {
        "W_enc": torch.randn(m, d, generator=g),
        "W_dec": torch.randn(d, m, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "b_dec": torch.randn(d, generator=g),
    } | extra
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / name)
    return folder / name, {key: w.double() for key, w in weights.items()}


@pytest.mark.parametrize("m", [1024, 6])
def test_qwen_scope_is_a_topk_without_an_input_bias(tmp_path, m):
    file, w = write_qwen(tmp_path, m=m)
    x = torch.randn(5, 6) * 2 + 1
    values, places = (x.double() @ w["W_enc"].T + w["b_enc"]).topk(3, dim=-1)
    codes = torch.zeros(5, m).double().scatter(-1, places, values.relu())
    found = load_dictionary(file, k=3)
    torch.testing.assert_close(found.encode(x), codes.float(), rtol=1e-5, atol=1e-5)
    back = (codes @ w["W_dec"].T + w["b_dec"]).float()
    torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-5, atol=1e-4)
    assert found.info == {"hook_name": "model.layers.7", "layer": "7"}


def test_the_repository_s_name_tells_k_and_is_held_to(tmp_path):
    folder = tmp_path / "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W1K-L0_50" / "snapshots"
    file, _ = write_qwen(folder)
    found = load_dictionary(file)
    assert found.encoder.k == 50
    assert found.info["model_name"] == "Qwen/Qwen3-1.7B-Base"
    with pytest.raises(VlmEditError, match="k=3 was told, the repository's name says 50"):
        load_dictionary(file, k=3)
    small, _ = write_qwen(folder, m=64, name="layer8.sae.pt")
    with pytest.raises(VlmEditError, match="says 1K features, the file has 64"):
        load_dictionary(small)


def test_qwen_scope_without_k_asks_for_it(tmp_path):
    file, _ = write_qwen(tmp_path)
    with pytest.raises(VlmEditError, match="say k="):
        load_dictionary(file)
    other, _ = write_qwen(tmp_path, name="layer9.sae.pt", more=torch.zeros(1))
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(other, k=3)
