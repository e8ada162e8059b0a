"""SAELens folders of versions 3 to 6, with its formulas written here by hand.

What sae-lens itself wrote is compared in test_golden.py.
"""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlm_edit import VlmEditError, load_dictionary

D, M = 6, 16
OLD = {"metadata": ...}


def write(folder, seed=0, dtype=torch.float32, tensors=None, **config):
    """A folder as SAE.save_model of sae-lens 6.54.12 writes it."""
    g = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(D, M, generator=g),
        "b_enc": torch.randn(M, generator=g),
        "W_dec": torch.randn(M, D, generator=g),
        "b_dec": torch.randn(D, generator=g),
    }
    architecture = config.get("architecture")
    if architecture == "jumprelu":
        weights["threshold"] = torch.randn(M, generator=g)
    if architecture == "gated":
        del weights["b_enc"]
        weights |= {n: torch.randn(M, generator=g) for n in ("b_gate", "b_mag", "r_mag")}
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        weights["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    weights = {k: v.to(dtype) for k, v in (weights | (tensors or {})).items() if v is not None}
    defaults = {
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "host", "hook_name": "joint"},
        "architecture": "standard",
    }
    folder.mkdir(exist_ok=True)
    config = {k: v for k, v in (defaults | config).items() if v is not ...}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def sae_lens(folder, x):
    """Codes and reconstruction as sae-lens computes them, in float64."""
    config = json.loads((folder / "cfg.json").read_text())
    w = {k: v.double() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    x, out = x.double(), lambda y: y
    if config["normalize_activations"] == "layer_norm":
        mu = x.mean(dim=-1, keepdim=True)
        x = x - mu
        std = x.std(dim=-1, keepdim=True)
        x, out = x / (std + 1e-5), lambda y: y * std + mu
    if config["normalize_activations"] == "constant_norm_rescale":
        coefficient = config["d_in"] ** 0.5 / x.norm(dim=-1, keepdim=True)
        x, out = x * coefficient, lambda y: y / coefficient
    x = x - w["b_dec"] * config["apply_b_dec_to_input"]
    norms = torch.ones(M).double()
    if config["architecture"] == "gated":
        magnitude = x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
        codes = (x @ w["W_enc"] + w["b_gate"] > 0) * magnitude.relu()
        return codes, out(codes @ w["W_dec"] + w["b_dec"])
    hidden = x @ w["W_enc"] + w["b_enc"]
    if config["architecture"] not in ("standard", "jumprelu"):
        if config["rescale_acts_by_decoder_norm"]:
            norms = w["W_dec"].norm(dim=-1)
        hidden = hidden * norms
    if config["architecture"] == "topk":
        values, indices = hidden.topk(config["k"], dim=-1)
        codes = torch.zeros_like(hidden).scatter(-1, indices, values.relu())
    elif config["architecture"] == "abstopk":
        indices = hidden.abs().topk(config["k"], dim=-1).indices
        codes = torch.zeros_like(hidden).scatter(-1, indices, hidden.gather(-1, indices))
    elif config["architecture"] == "jumprelu":
        codes = hidden.relu() * (hidden > w["threshold"])
    elif "topk_threshold" in w:
        codes = hidden.relu() * (hidden > w["topk_threshold"])
    else:
        codes = hidden.relu()
    return codes, out((codes / norms) @ w["W_dec"] + w["b_dec"])


@settings(max_examples=120, deadline=None)
@given(
    architecture=st.sampled_from(
        ["standard", "jumprelu", "gated", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk"]
    ),
    norm=st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
    apply=st.booleans(),
    rescale=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_codes_and_reconstruction_are_those_of_sae_lens(
    tmp_path_factory, architecture, norm, apply, rescale, dtype, seed
):
    extra = {"k": 11, "rescale_acts_by_decoder_norm": rescale} if "topk" in architecture else {}
    folder = write(
        tmp_path_factory.mktemp("sae"),
        seed,
        dtype,
        architecture=architecture,
        normalize_activations=norm,
        apply_b_dec_to_input=apply,
        **extra,
    )
    x = torch.randn(11, D, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    dictionary = load_dictionary(folder)
    codes, reconstruction = sae_lens(folder, x)
    torch.testing.assert_close(dictionary.encode(x), codes.float(), rtol=1e-4, atol=1e-4)
    mean = x.mean(-1, keepdim=True) if norm == "layer_norm" else 0.0
    scale = dictionary.encoder(x)[1]
    ours = dictionary.decode(dictionary.encode(x)) * (1.0 if scale is None else scale) + mean
    torch.testing.assert_close(ours, reconstruction.float(), rtol=1e-3, atol=1e-3)


def test_fields_that_sae_lens_leaves_out_have_its_defaults(tmp_path):
    folder = write(tmp_path, normalize_activations=..., apply_b_dec_to_input=..., metadata=...)
    dictionary = load_dictionary(folder)
    assert dictionary.encoder.norm == "none"
    assert torch.equal(dictionary.encoder.subtract, dictionary.decoder_bias)
    topk = load_dictionary(write(tmp_path, architecture="topk", k=2))
    assert torch.equal(topk.decoder, load_file(tmp_path / "sae_weights.safetensors")["W_dec"])


@pytest.mark.parametrize(
    ("name", "vector"),
    [
        ("b_gate", torch.zeros(M - 1)),
        ("b_mag", torch.zeros(M + 1)),
        ("r_mag", torch.zeros(1)),
    ],
)
def test_a_gate_whose_vectors_do_not_fit_each_other_is_refused(tmp_path, name, vector):
    folder = write(tmp_path, architecture="gated", tensors={name: vector})
    with pytest.raises(VlmEditError, match="b_gate, b_mag and exp\\(r_mag\\) are not finite"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("b_enc", torch.zeros(1)),
        ("b_enc", torch.zeros(M + 1)),
        ("W_dec", torch.ones(M + 1, D)),
        ("finetuning_scaling_factor", torch.full((1,), 2.0)),
    ],
)
def test_vectors_that_do_not_fit_the_decoder_s_norms_are_refused(tmp_path, name, tensor):
    said = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    said["finetuning_scaling_factor"] = name.startswith("fine")
    folder = write(tmp_path, tensors={name: tensor}, **said)
    with pytest.raises(VlmEditError, match="W_dec is of .* features, b_enc of"):
        load_dictionary(folder)


def test_a_decoder_row_of_zeros_stays_finite_when_its_norm_is_folded(tmp_path):
    rows = torch.randn(M, D)
    rows[3] = 0
    folder = write(
        tmp_path,
        tensors={"W_dec": rows},
        architecture="topk",
        k=M,
        rescale_acts_by_decoder_norm=True,
    )
    dictionary = load_dictionary(folder)
    assert dictionary.decoder.isfinite().all()
    assert (dictionary.decode(dictionary.encode(torch.randn(5, D)))).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_norms_of_decoder_rows_are_taken_of_any_float_dtype(tmp_path, dtype):
    said = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    folder, x = write(tmp_path, dtype=dtype, **said), torch.randn(9, D)
    close(load_dictionary(folder).encode(x), sae_lens(folder, x)[0])


def test_only_topk_rescales_by_the_decoders_norm_as_in_sae_lens(tmp_path):
    folder = write(tmp_path, architecture="jumprelu", rescale_acts_by_decoder_norm=True)
    x = torch.randn(9, D)
    torch.testing.assert_close(load_dictionary(folder).encode(x), sae_lens(folder, x)[0].float())


def test_what_the_file_says_of_its_training_is_kept(tmp_path):
    assert load_dictionary(write(tmp_path)).info == {"model_name": "host", "hook_name": "joint"}


@pytest.mark.parametrize(
    "said",
    [
        {"hook_name": "encoder.layers.7", "hook_layer": 7},
        {"hook_point": "encoder.layers.7", "hook_point_layer": 7},
        {"hook_name": "encoder.layers.7"},
        {"metadata": {"model_name": "host", "hook_name": "encoder.layers.7", "site": None}},
        {"metadata": {"model_name": "host", "hook_name": "encoder.layers.7.output"}},
    ],
)
def test_every_version_says_where_it_was_trained(tmp_path, said):
    said = {"model_name": "host", "prepend_bos": True, **OLD, **said}
    info = dict(load_dictionary(write(tmp_path, **said)).info)
    assert info.pop("hook_name").startswith("encoder.layers.7")
    assert info == {"model_name": "host", "layer": "7"}


def test_the_stated_layer_goes_before_the_one_in_the_hooks_name(tmp_path):
    said = {"hook_name": "blocks.3.hook", "hook_layer": 8, "sae_lens_training_version": "4.0.9"}
    info = load_dictionary(write(tmp_path, **OLD, **said)).info
    assert info["layer"] == "8"
    assert info["sae_lens_training_version"] == "4.0.9"


def close(found, expected):
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
@pytest.mark.parametrize("name", ["activation_fn", "activation_fn_str"])
def test_before_version_6_topk_is_an_activation_of_the_standard_architecture(
    tmp_path, architecture, name
):
    said = {name: "topk", "activation_fn_kwargs": {"k": 5}, "finetuning_scaling_factor": False}
    x = torch.randn(9, D)
    ours = load_dictionary(write(tmp_path, architecture=architecture, **OLD, **said))
    write(tmp_path, architecture="topk", k=5, rescale_acts_by_decoder_norm=False)
    codes, found = sae_lens(tmp_path, x)
    close(ours.encode(x), codes)
    close(ours.reconstruct(x), found)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_tanh_relu_ends_in_a_tanh(tmp_path, architecture):
    x = torch.randn(9, D)
    ours = load_dictionary(
        write(tmp_path, architecture=architecture, activation_fn_str="tanh-relu", **OLD)
    )
    close(ours.encode(x), sae_lens(tmp_path, x)[0].tanh())


def test_a_file_without_architecture_is_a_standard_one_of_version_3(tmp_path):
    x = torch.randn(9, D)
    said = {"architecture": ..., "normalize_activations": False, "activation_fn": "relu"}
    ours = load_dictionary(write(tmp_path, **OLD, **said)).encode(x)
    close(ours, sae_lens(write(tmp_path), x)[0])


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_the_factor_of_fine_tuning_scales_what_is_decoded_alone(tmp_path, name, architecture):
    factor = torch.rand(M) + 0.5
    said = {"finetuning_scaling_factor": True, "architecture": architecture, **OLD}
    folder = write(tmp_path / "a", tensors={name: factor}, **said)
    ours, lazy = load_dictionary(folder), load_dictionary(folder, lazy=True)
    x = torch.randn(9, D)
    codes, _ = sae_lens(folder, x)
    w = load_file(folder / "sae_weights.safetensors")
    close(ours.encode(x), codes)
    close(ours.reconstruct(x), (codes * factor) @ w["W_dec"].double() + w["b_dec"])
    assert torch.equal(lazy.slice([5, 2]).decoder, ours.decoder[[5, 2]])


def test_a_factor_of_fine_tuning_goes_with_rescaling_by_the_decoders_norm(tmp_path):
    factor = torch.rand(M) + 0.5
    said = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}
    said |= {"finetuning_scaling_factor": True}
    folder = write(tmp_path, tensors={"scaling_factor": factor}, **said)
    x = torch.randn(9, D)
    w = {n: t.double() for n, t in load_file(folder / "sae_weights.safetensors").items()}
    codes = sae_lens(folder, x)[0]
    found = (codes * factor / w["W_dec"].norm(dim=-1)) @ w["W_dec"] + w["b_dec"]
    close(load_dictionary(folder).reconstruct(x), found)


def test_a_factor_of_ones_that_early_files_have_changes_nothing(tmp_path):
    x = torch.randn(9, D)
    folder = write(tmp_path, tensors={"scaling_factor": torch.ones(M)}, **OLD)
    close(load_dictionary(folder).reconstruct(x), sae_lens(folder, x)[1])


def test_a_training_before_version_6_kept_the_thresholds_logarithm(tmp_path):
    logs = torch.randn(M)
    tensors = {"threshold": None, "log_threshold": logs}
    x = torch.randn(9, D)
    ours = load_dictionary(write(tmp_path, tensors=tensors, architecture="jumprelu")).encode(x)
    write(tmp_path, tensors={"threshold": logs.exp()}, architecture="jumprelu")
    close(ours, sae_lens(tmp_path, x)[0])


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk"])
@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("value", ["expected_average_only_in", True])
def test_a_scale_beside_the_weights_is_folded_in(tmp_path, architecture, apply, value):
    extra = {"rescale_acts_by_decoder_norm": True} if architecture == "batchtopk" else {}
    said = {"architecture": architecture, "apply_b_dec_to_input": apply, **extra}
    folder = write(tmp_path, **said, normalize_activations=value)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    ours = load_dictionary(folder)
    x = torch.randn(9, D) * 8 + 1
    codes, found = sae_lens(write(tmp_path, **said), x * 0.25)
    close(ours.encode(x), codes)
    close(ours.reconstruct(x), found / 0.25)


@pytest.mark.parametrize("scale", ["null", "0", "-1", "1e400", "true", '"1"', "1e-30"])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    folder = write(tmp_path, normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text(f'{{"scaling_factor": {scale}}}')
    with pytest.raises(VlmEditError, match="scaling_factor"):
        load_dictionary(folder)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_batchtopk_threshold_that_was_never_found_is_refused(tmp_path, threshold):
    tensors = {"topk_threshold": torch.tensor(threshold, dtype=torch.float64)}
    with pytest.raises(VlmEditError, match="topk_threshold is"):
        load_dictionary(write(tmp_path, tensors=tensors, architecture="batchtopk"))


@pytest.mark.parametrize("name", ["r_mag", "b_mag"])
def test_a_gated_dictionary_that_overflows_is_refused(tmp_path, name):
    tensors = {name: torch.full((M,), 1e30), "b_gate": torch.zeros(M)}
    tensors["r_mag"] = torch.full((M,), 100.0)
    with pytest.raises(VlmEditError, match="are not finite vectors"):
        load_dictionary(write(tmp_path, tensors=tensors, architecture="gated"))


def test_joined_heads_are_read_as_they_come(tmp_path):
    folder = write(tmp_path, reshape_activations="hook_z")
    x = torch.randn(9, D)
    close(load_dictionary(folder).encode(x), sae_lens(folder, x)[0])


def test_the_sparsity_that_training_leaves_beside_is_nothing_of_the_dictionary(tmp_path):
    x = torch.randn(9, D)
    folder = write(tmp_path)
    before = load_dictionary(folder).encode(x)
    save_file({"sparsity": torch.zeros(M)}, folder / "sparsity.safetensors")
    assert torch.equal(load_dictionary(folder).encode(x), before)


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("standard", {}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True}),
        ("batchtopk", {"rescale_acts_by_decoder_norm": True}),
    ],
)
def test_a_slice_read_from_disk_is_that_of_the_whole(tmp_path, architecture, extra):
    folder = write(tmp_path, architecture=architecture, **extra)
    whole, features = load_dictionary(folder), [11, 0, 5]
    part = load_dictionary(folder, lazy=True).slice(features)
    x = torch.randn(9, D)
    torch.testing.assert_close(part.codes(x)[0], whole.encode(x)[:, features])
    assert torch.equal(part.decoder, whole.decoder[features])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "crosscoder"}, "'crosscoder' is not supported; supported: standard"),
        ({"architecture": "temporal"}, "'temporal' is not supported: its codes depend on the"),
        ({"architecture": "matching_pursuit"}, "not supported: its codes are searched for"),
        ({"architecture": ["standard"]}, r"architecture \['standard'\] is not supported"),
        ({"architecture": ...}, "architecture None is not supported"),
        ({"normalize_activations": "expected_average_only_in"}, "not folded into these weights"),
        ({"normalize_activations": True}, "not folded into these weights"),
        ({"normalize_activations": "covariance_whitening"}, "take the final checkpoint"),
        ({"normalize_activations": "constant_scalar_rescale"}, "take the final checkpoint"),
        ({"normalize_activations": {}}, "normalize_activations {} is not supported"),
        ({"reshape_activations": "hook_q"}, "reshape_activations 'hook_q' is not supported"),
        ({"apply_b_dec_to_input": "false"}, "must be true or false, got 'false'"),
        ({"architecture": "topk"}, "needs a whole number k, got None"),
        ({"architecture": "topk", "k": True}, "needs a whole number k, got True"),
        ({"architecture": "topk", "k": M + 1}, "k is 17"),
        ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": 1}, "true or false"),
        ({"d_in": D + 1}, r"states d_in, d_sae = \(7, 16\), but W_enc is \(6, 16\)"),
        ({"activation_fn_str": "topk", "metadata": ...}, "must have k alone, got 'None'"),
        (
            {"activation_fn_kwargs": {"k": 2, "postact_fn": "id"}, **OLD, "activation_fn": "topk"},
            "must have k alone, got .*postact_fn",
        ),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": True}, **OLD}, "whole number k"),
        ({"activation_fn": "silu", **OLD}, "activation_fn 'silu' is not supported"),
        ({"activation_fn": ["relu"], **OLD}, "is not supported"),
        ({"activation_fn": "topk", "architecture": "gated", **OLD}, "'gated' with activation_fn"),
        ({"activation_fn": "relu", "architecture": "topk", "k": 2, **OLD}, "'topk' with activat"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu' is not supported"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 2}}, "'topk' is not supported"),
        ({"finetuning_scaling_factor": True}, "states a finetuning_scaling_factor and sae_weights"),
    ],
)
def test_a_config_that_cannot_be_followed_exactly_is_refused(tmp_path, config, message):
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(write(tmp_path, **config))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_enc": None}, "tensors missing: b_enc"),
        ({"scaling_factor": torch.full((M,), 2.0)}, "finetuning_scaling_factor None: set it to"),
        ({"threshold": torch.ones(M)}, "does not have: threshold"),
        (
            {"scaling_factor": torch.ones(M), "finetuning_scaling_factor": torch.ones(M)},
            "has both scaling_factor and finetuning_scaling_factor",
        ),
        ({"W_enc": torch.zeros(M, D)}, "encoder is of 6 features and width 16"),
        ({"W_dec": torch.zeros(M)}, "W_dec has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensors, message):
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(write(tmp_path, tensors=tensors))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point_are_refused(tmp_path, dtype):
    with pytest.raises(VlmEditError, match=r"is torch\.\w+, expected floating-point"):
        load_dictionary(write(tmp_path, dtype=dtype))


@pytest.mark.parametrize("centers", [{"sound": torch.zeros(D)}, {"image": torch.zeros(M)}])
def test_centers_that_do_not_fit_are_refused(tmp_path, centers):
    save_file(centers, write(tmp_path) / "centers.safetensors")
    with pytest.raises(VlmEditError, match="center of"):
        load_dictionary(tmp_path)


def test_a_dictionary_with_nan_in_it_is_refused(tmp_path):
    weights = torch.randn(D, M)
    weights[1, 2] = float("nan")
    folder = write(tmp_path, tensors={"W_enc": weights})
    with pytest.raises(VlmEditError, match="W_enc holds NaN or infinity"):
        load_dictionary(folder)
