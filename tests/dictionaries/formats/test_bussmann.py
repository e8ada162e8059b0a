"""The format of Bussmann's BatchTopK, with the formulas of its classes written here by hand."""

import json

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary


def write(folder, d=6, m=16, state=None, **config):
    g = torch.Generator().manual_seed(d)
    weights = {
        "W_enc": torch.randn(d, m, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "W_dec": torch.randn(m, d, generator=g),
        "b_dec": torch.randn(d, generator=g),
    } | (state or {})
    told = {"sae_type": "topk", "act_size": d, "dict_size": m, "top_k": 3, "dtype": "torch.float32"}
    told |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"} | config
    torch.save(weights, folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps(told))
    return {name: w.double() for name, w in weights.items()}, told


def by_hand(w, told, x):
    x, mean, std = x.double(), 0, 1
    if told.get("input_unit_norm"):
        mean = x.mean(1, keepdim=True)
        std = (x - mean).std(1, keepdim=True)
        x = (x - mean) / (std + 1e-5)
    kind = told["sae_type"]
    hidden = (x if kind == "jumprelu" else x - w["b_dec"]) @ w["W_enc"]
    if kind in ("vanilla", "jumprelu") or told.get("use_encoder_bias"):
        hidden = hidden + w["b_enc"]
    codes = hidden.relu()
    if kind == "topk":
        values, places = codes.topk(told["top_k"], dim=1)
        codes = torch.zeros_like(codes).scatter(1, places, values)
    elif kind == "jumprelu":
        codes = codes * (codes > w["jumprelu.log_threshold"].exp())
    decoder = w["W_enc"].T if told.get("tied_weights") else w["W_dec"]
    return codes.float(), ((codes @ decoder + w["b_dec"]) * std + mean).float()


@pytest.mark.parametrize(("d", "m"), [(6, 16), (8, 8)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"sae_type": "vanilla"},
        {"sae_type": "topk"},
        {"sae_type": "topk", "use_encoder_bias": True, "activation": "relu"},
        {"sae_type": "topk", "tied_weights": True},
        {"sae_type": "jumprelu"},
    ],
)
def test_codes_and_reconstructions_are_those_of_its_classes(tmp_path, d, m, norm, config):
    jumps = {"jumprelu.log_threshold": torch.randn(m)} if config["sae_type"] == "jumprelu" else {}
    w, told = write(tmp_path, d, m, jumps, input_unit_norm=norm, **config)
    x = torch.randn(9, d) * 2 + 1
    codes, back = by_hand(w, told, x)
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    found = load_dictionary(tmp_path)
    torch.testing.assert_close(found.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    assert found.info["hook_name"] == "blocks.8.hook_resid_pre"


def test_a_batchtopk_asks_for_what_its_file_does_not_keep(tmp_path):
    w, _ = write(tmp_path, sae_type="batchtopk")
    x = torch.randn(9, 6)
    hidden = ((x.double() - w["b_dec"]) @ w["W_enc"]).relu().float()
    for options in ({}, {"k": 3, "threshold": 1.0}):
        with pytest.raises(VlmEditError, match="keeps no threshold: say threshold=.* k=3"):
            load_dictionary(tmp_path, **options)
    cut = load_dictionary(tmp_path, threshold=1.5).encode(x)
    torch.testing.assert_close(cut, hidden * (hidden > 1.5), rtol=1e-5, atol=1e-5)
    assert bool((load_dictionary(tmp_path, k=3).encode(x).count_nonzero(1) <= 3).all())


@pytest.mark.parametrize(
    ("state", "config", "options", "message"),
    [
        ({}, {"sae_type": "quantile"}, {}, "sae_type 'quantile'"),
        ({}, {"activation": "gelu"}, {}, "activation 'gelu' is not supported"),
        ({}, {"dict_size": 17}, {}, "dict_size=17, W_enc has 16"),
        ({}, {}, {"k": 3}, "keep k: leave it out"),
        ({}, {"sae_type": "jumprelu"}, {}, "missing: jumprelu.log_threshold"),
        ({"b_dec": torch.full((6,), torch.nan)}, {}, {}, "b_dec holds NaN"),
    ],
)
def test_what_its_reader_cannot_do_is_refused(tmp_path, state, config, options, message):
    write(tmp_path, state=state, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path, **options)
