"""OpenMOSS's later files, as Llama Scope R1's, with its library's formula written here by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary

HOOK = "blocks.15.hook_resid_post"


def write(folder, d=6, m=18, tensors=None, length=3.0, **config):
    g = torch.Generator().manual_seed(d)
    weights = {
        "encoder.weight": torch.randn(m, d, generator=g),
        "encoder.bias": torch.randn(m, generator=g),
        "decoder.weight": 2 * torch.randn(d, m, generator=g),
        "decoder.bias": torch.randn(d, generator=g),
        "log_jumprelu_threshold": torch.randn(m, generator=g) + 0.5,
        f"dataset_average_activation_norm.{HOOK}": torch.tensor(length),
    } | (tensors or {})
    weights = {name: w for name, w in weights.items() if w is not None}
    told = {
        "sae_type": "sae",
        "d_model": d,
        "expansion_factor": m // d,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": 3,
    } | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    save_file(weights, folder / "sae_weights.safetensors")
    return {name: w.double() for name, w in weights.items()}, told


def by_hand(w, told, x):
    """What OpenMOSS's encode does, and its reconstruction divided by its scale."""
    d, x = x.shape[1], x.double()
    scale = d**0.5 / 3.0
    if told["norm_activation"] == "inference":
        scale = 1.0
    if told["norm_activation"] == "token-wise":
        scale = d**0.5 / x.norm(dim=1, keepdim=True)
    inside = x * scale
    if told["apply_decoder_bias_to_pre_encoder"]:
        inside = inside - w["decoder.bias"]
    hidden = inside @ w["encoder.weight"].T + w["encoder.bias"]
    scores = hidden
    if told["sparsity_include_decoder_norm"]:
        scores = hidden * w["decoder.weight"].norm(dim=0)
    least = w["log_jumprelu_threshold"].exp() if told["act_fn"] == "jumprelu" else 0.0
    codes = hidden * (scores > least)
    return codes.float(), ((codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale).float()


@pytest.mark.parametrize("act_fn", ["jumprelu", "relu"])
@pytest.mark.parametrize("kind", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_codes_and_reconstructions_are_the_library_s(tmp_path, act_fn, kind, before, lengths):
    left_out = {} if act_fn == "jumprelu" else {"log_jumprelu_threshold": None}
    w, told = write(
        tmp_path, tensors=left_out, act_fn=act_fn, norm_activation=kind,
        apply_decoder_bias_to_pre_encoder=before, sparsity_include_decoder_norm=lengths,
    )  # fmt: skip
    x = torch.randn(9, 6) * 2 + 1
    codes, back = by_hand(w, told, x)
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    for place in (tmp_path, tmp_path / "sae_weights.safetensors"):
        found = load_dictionary(place)
        torch.testing.assert_close(found.encode(x), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-5, atol=1e-5)


def test_it_says_where_it_was_trained(tmp_path):
    folder = tmp_path / "models--fnlp--Llama-Scope-R1-Distill" / "L15R"
    write(folder)
    host = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert load_dictionary(folder).info == {"hook_name": HOOK, "model_name": host}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "is a transcoder"),
        ({"use_glu_encoder": True}, "GLU encoder"),
        ({"apply_decoder_bias_to_pre_encoder": 0}, "must be true or false, got 0"),
        ({"sparsity_include_decoder_norm": "no"}, "must be true or false, got 'no'"),
        ({"act_fn": "topk"}, "act_fn 'topk' of a 'sae' is not supported"),
        ({"sae_type": "crosscoder"}, "of a 'crosscoder' is not supported"),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise'"),
        ({"hook_point_in": "x", "hook_point_out": "x"}, "activation_norm.x must be a number"),
        ({"length": 0.0}, "not above 0"),
        ({"expansion_factor": 4}, "24 features of 6, the file has 18 of 6"),
        ({"d_model": 7}, "of 7, the file has 18 of 6"),
        ({"tensors": {"encoder.bias": torch.full((18,), torch.inf)}}, "NaN or infinity"),
        ({"tensors": {"more": torch.zeros(1)}}, "does not have: more"),
        ({"tensors": {"log_jumprelu_threshold": None}}, "missing: log_jumprelu_threshold"),
        ({"tensors": {"log_jumprelu_threshold": torch.zeros(3)}}, "is of 3 features"),
        ({"tensors": {"decoder.weight": torch.zeros(6, 18)}}, "0 rows that are not zero"),
        ({"tensors": {"log_jumprelu_threshold": torch.full((18,), 999.0)}}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, options, message):
    write(tmp_path, **options)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_lengths_of_decoder_rows_are_taken_of_any_float_dtype(tmp_path, dtype):
    decoder = (2 * torch.randn(6, 18)).to(dtype)
    w, told = write(tmp_path, tensors={"decoder.weight": decoder})
    x = torch.randn(5, 6)
    codes = load_dictionary(tmp_path).encode(x)
    torch.testing.assert_close(codes, by_hand(w, told, x)[0].float(), rtol=1e-5, atol=1e-5)
