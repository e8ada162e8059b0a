"""The format of Llama Scope, with its library's formula written here by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary

NORMS = {"in": 3.0, "out": 4.0}


def write(folder, d=6, m=16, tensors=None, **config):
    """A folder as OpenMOSS publishes it."""
    g = torch.Generator().manual_seed(d)
    weights = {
        "encoder.weight": torch.randn(m, d, generator=g),
        "encoder.bias": torch.randn(m, generator=g),
        "decoder.weight": torch.nn.functional.normalize(torch.randn(d, m, generator=g), dim=0),
        "decoder.bias": torch.randn(d, generator=g),
    } | (tensors or {})
    weights = {name: w for name, w in weights.items() if w is not None}
    told = {
        "d_model": d,
        "d_sae": m,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": NORMS,
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": 3,
    } | config
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(told))
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    return {name: w.double() for name, w in weights.items()}, told


def by_hand(w, told, x):
    """What OpenMOSS's encode does, and its reconstruction divided by its output's scale."""
    d, x = x.shape[1], x.double()
    scale_in, scale_out = (d**0.5 / NORMS[end] for end in ("in", "out"))
    if told["norm_activation"] == "inference":
        scale_in = scale_out = 1.0
    if told["norm_activation"] == "token-wise":
        scale_in = scale_out = d**0.5 / x.norm(dim=1, keepdim=True)
    inside = x * scale_in
    if told["apply_decoder_bias_to_pre_encoder"]:
        inside = inside - w["decoder.bias"]
    hidden = inside @ w["encoder.weight"].T + w["encoder.bias"]
    if told["act_fn"] == "topk":
        values, places = hidden.relu().topk(told["top_k"], dim=1)
        codes = torch.zeros_like(hidden).scatter(1, places, values)
    elif told["act_fn"] == "relu":
        codes = hidden.relu()
    else:
        codes = torch.where(hidden > told["jump_relu_threshold"], hidden, 0)
    bias = w["decoder.bias"] if told["use_decoder_bias"] else 0
    return codes.float(), ((codes @ w["decoder.weight"].T + bias) / scale_out).float()


@pytest.mark.parametrize(("d", "m"), [(6, 16), (8, 8)])
@pytest.mark.parametrize("act_fn", ["jumprelu", "topk", "relu"])
@pytest.mark.parametrize("kind", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("before", [True, False])
def test_codes_and_reconstructions_are_the_library_s(tmp_path, d, m, act_fn, kind, before):
    w, told = write(
        tmp_path, d, m, act_fn=act_fn, norm_activation=kind,
        apply_decoder_bias_to_pre_encoder=before,
    )  # fmt: skip
    x = torch.randn(9, d) * 2 + 1
    codes, back = by_hand(w, told, x)
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints/final.safetensors"):
        found = load_dictionary(place)
        torch.testing.assert_close(found.encode(x), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-5, atol=1e-5)


def test_a_decoder_without_a_bias_adds_none(tmp_path):
    w, told = write(tmp_path, tensors={"decoder.bias": None}, use_decoder_bias=False)
    x = torch.randn(9, 6)
    codes, back = by_hand(w, told, x)
    torch.testing.assert_close(load_dictionary(tmp_path).reconstruct(x), back, rtol=1e-4, atol=1e-4)
    assert int(codes.count_nonzero())


def test_it_says_where_it_was_trained(tmp_path):
    folder = tmp_path / "Llama3_1-8B-Base-L15R-8x"
    write(folder)
    info = {"hook_name": "blocks.15.hook_resid_post", "model_name": "meta-llama/Llama-3.1-8B"}
    assert load_dictionary(folder).info == info


LONG = {"decoder.weight": torch.full((6, 16), 3.0)}


def test_rows_of_other_lengths_are_warned_of_where_versions_of_the_library_differ(tmp_path):
    write(tmp_path, tensors=LONG)
    with pytest.warns(UserWarning, match="lengths from 7.35 to 7.35, .* ask dictionary.check"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"hook_point_out": "blocks.15.hook_mlp_out"}, "is a transcoder"),
        ({}, {"use_glu_encoder": True}, "GLU encoder"),
        ({}, {"use_decoder_bias": "false"}, "use_decoder_bias must be true or false"),
        ({}, {"apply_decoder_bias_to_pre_encoder": 0}, "must be true or false, got 0"),
        ({}, {"sparsity_include_decoder_norm": None}, "must be true or false, got None"),
        ({}, {"act_fn": "gelu"}, "act_fn 'gelu' is not supported"),
        ({}, {"norm_activation": "batch-wise"}, "norm_activation 'batch-wise'"),
        ({}, {"dataset_average_activation_norm": None}, "dataset_average_activation_norm"),
        ({}, {"dataset_average_activation_norm": {"in": 0, "out": 1}}, "not above 0"),
        ({}, {"dataset_average_activation_norm": {"in": 1}}, "out must be a number"),
        ({}, {"jump_relu_threshold": -1.0}, "below 0"),
        ({}, {"jump_relu_threshold": float("nan")}, "damaged"),
        ({}, {"d_sae": 17}, "d_sae=17, the file has 16"),
        ({"encoder.bias": torch.full((16,), torch.inf)}, {}, "NaN or infinity"),
        ({"more": torch.zeros(1)}, {}, "does not have: more"),
        (LONG, {"act_fn": "topk"}, "times the lengths of the decoder's rows"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, tensors, config, message):
    write(tmp_path, tensors=tensors, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)
