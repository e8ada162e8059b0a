"""The format of ViT-Prisma, with its formulas written here by hand."""

import json
import zipfile
from collections import OrderedDict

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries.formats import prisma
from vlm_edit.dictionaries.formats.source import Source

FILE = "n_images_2600058.pt"


def write(folder, d=6, factor=3, seed=0, tensors=None, name=FILE, **config):
    """A folder as ``save_config`` and ``torch.save(sae.state_dict())`` of the library write it."""
    g, m = torch.Generator().manual_seed(seed), d * factor
    weights = {
        "W_dec": torch.randn(m, d, generator=g),
        "W_enc": torch.randn(d, m, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "b_dec": torch.randn(d, generator=g),
    }
    if config.get("architecture") == "gated":
        weights |= {n: torch.randn(m, generator=g) * 0.7 for n in ("b_gate", "r_mag", "b_mag")}
    weights |= tensors or {}
    weights = {key: value for key, value in weights.items() if value is not None}
    defaults = {
        "model_class_name": "HookedViT",
        "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "hook_point_layer": 9,
        "layer_subtype": "hook_resid_post",
        "hook_point_head_index": None,
        "use_patches_only": False,
        "architecture": "standard",
        "expansion_factor": factor,
        "is_transcoder": False,
        "d_in": d,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "cls_token_only": False,
        "normalize_activations": None,
    }
    config = {key: value for key, value in (defaults | config).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(OrderedDict(weights), folder / name)
    return {key: value.double() for key, value in weights.items()}


def by_hand(w, x, norm=None, activation="relu", k=0, gated=False):
    """Codes and reconstruction, in float64."""
    x, shift, scale = x.double(), 0.0, 1.0
    if norm == "layer_norm":
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x = (x - shift) / (scale + 1e-5)
    if norm == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        x = x / scale
    x = x - w["b_dec"]
    if gated:
        hidden = x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
        hidden = hidden.relu() * (x @ w["W_enc"] + w["b_gate"] > 0)
    else:
        hidden = x @ w["W_enc"] + w["b_enc"]
    codes = hidden.relu()
    if activation == "tanh-relu":
        codes = codes.tanh()
    if activation == "topk":
        values, indices = hidden.topk(k)
        codes = torch.zeros_like(hidden).scatter(-1, indices, values.relu())
    return codes.float(), ((codes @ w["W_dec"] + w["b_dec"]) * scale + shift).float()


@pytest.mark.parametrize(("d", "factor"), [(6, 3), (7, 1)])
@pytest.mark.parametrize("norm", [None, "none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("standard", "relu"),
        ("standard", "tanh-relu"),
        ("standard", "topk"),
        ("gated", "relu"),
        ("gated", "tanh-relu"),
    ],
)
def test_codes_and_reconstruction_are_those_of_the_library(
    tmp_path, architecture, activation, norm, d, factor
):
    w = write(
        tmp_path,
        d,
        factor,
        architecture=architecture,
        activation_fn_str=activation,
        activation_fn_kwargs={"k": 6} if activation == "topk" else {},
        normalize_activations=norm,
    )
    x = torch.randn(11, d, generator=torch.Generator().manual_seed(1)) * 3 + 1
    codes, back = by_hand(w, x, norm, activation, 6, architecture == "gated")
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    for name in (".", FILE):
        dictionary = load_dictionary(tmp_path / name)
        torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-4, atol=1e-3)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-4, atol=1e-4)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


def test_null_is_no_norm_and_a_missing_key_is_the_librarys_layer_norm(tmp_path):
    x = torch.randn(11, 6) * 3 + 1
    for value, norm in ((None, None), ("none", None), (..., "layer_norm")):
        w = write(tmp_path, normalize_activations=value)
        codes, _ = by_hand(w, x, norm)
        torch.testing.assert_close(load_dictionary(tmp_path).encode(x), codes, atol=1e-4, rtol=1e-4)


def test_other_missing_keys_have_the_librarys_defaults(tmp_path):
    write(tmp_path, d=2, factor=16, architecture=..., expansion_factor=..., is_transcoder=...,
          activation_fn_str=..., activation_fn_kwargs={"k": 3})  # fmt: skip
    encoder = load_dictionary(tmp_path).encoder
    assert (encoder.activation, encoder.k) == ("topk", 3)


def test_values_that_some_versions_nest_are_read_from_inside(tmp_path):
    write(
        tmp_path,
        dtype={"__type__": "torch.dtype", "value": "torch.float32"},
        device={"__type__": "torch.device", "value": "cuda"},
        normalize_activations={"__type__": "str", "value": "layer_norm"},
    )
    assert load_dictionary(tmp_path).encoder.norm == "layer_norm"


def test_what_the_config_says_of_its_training_is_kept(tmp_path):
    write(tmp_path)
    everything = {
        "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "layer": "9",
        "hook_name": "blocks.9.hook_resid_post",
    }
    assert load_dictionary(tmp_path).info == everything
    write(tmp_path, hook_point_layer=[11], cls_token_only=True, hook_point_head_index=2)
    changed = {"layer": "11", "hook_name": "blocks.11.hook_resid_post"}
    expected = everything | changed | {"tokens": "cls", "head": "2"}
    assert load_dictionary(tmp_path).info == expected
    write(tmp_path, use_patches_only=True, hook_point_layer=..., model_name=None)
    assert load_dictionary(tmp_path).info == {"tokens": "patches"}
    write(
        tmp_path, cls_token_only="no", use_patches_only="no", model_name=None, hook_point_layer=...
    )
    assert load_dictionary(tmp_path).info == {}


def test_of_several_checkpoints_one_must_be_named(tmp_path):
    write(tmp_path, seed=1)
    second = write(tmp_path, seed=2, name="weights.pt")
    with pytest.raises(VlmEditError, match="2 torch files: name one with file= .*weights.pt"):
        load_dictionary(tmp_path)
    chosen = load_dictionary(tmp_path, file="weights.pt")
    torch.testing.assert_close(chosen.decoder, second["W_dec"].float())


def write_old(path):
    """The shape of the older form: its pickle names a class of the library, which is not here."""
    torch.save({"cfg": OrderedDict(), "state_dict": {}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename: archive.read(e) for e in archive.infolist()}
    pickled = b"\x80\x02cvit_prisma.sae.config\nVisionModelSAERunnerConfig\n)\x81."
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("beside", [False, True])
def test_the_older_form_is_refused_with_the_mend_and_runs_nothing(tmp_path, beside):
    if beside:
        write(tmp_path)
    write_old(tmp_path / FILE)
    for name in (".", FILE):
        with pytest.raises(VlmEditError, match=r"older form.*save_config\('config.json'\)"):
            load_dictionary(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"is_transcoder": True}, "tensors missing: W_skip, b_dec_out"),
        ({"is_transcoder": "yes"}, "is_transcoder must be true or false, got 'yes'"),
        ({"architecture": "jumprelu"}, "architecture 'jumprelu' is not supported"),
        ({"architecture": ["gated"]}, r"architecture \['gated'\] is not supported"),
        ({"activation_fn_str": "leaky_relu"}, "activation_fn_str 'leaky_relu' is not supported"),
        ({"activation_fn_str": "topk"}, "of topk must be k and nothing else, got {}"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2, "postact_fn": "x"}},
            "must be k and nothing else",
        ),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [2]}, "must be k and nothing else"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 0}}, "k must be a whole"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 19}}, "k is 19"),
        (
            {"architecture": "gated", "activation_fn_str": "topk",
             "activation_fn_kwargs": {"k": 2}},
            "a gated dictionary with activation_fn_str 'topk' is not supported",
        ),
        ({"normalize_activations": "expected_average_only_in"}, "is not supported; supported: nu"),
        ({"normalize_activations": []}, r"normalize_activations \[\] is not supported"),
        ({"d_in": 7}, r"states 7 dimensions and 21 features, but W_enc is \(6, 18\)"),
        ({"expansion_factor": 4}, r"states 6 dimensions and 24 features, but W_enc is \(6, 18\)"),
        ({"expansion_factor": 2.5}, "expansion_factor must be a whole number"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_followed_exactly_is_refused(tmp_path, config, message):
    write(tmp_path, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "tensors", "message"),
    [
        ("standard", {"W_skip": torch.zeros(6, 6)}, "does not have: W_skip"),
        ("standard", {"b_gate": torch.zeros(18)}, "does not have: b_gate"),
        ("gated", {"r_mag": None}, "tensors missing: r_mag"),
        ("gated", {"r_mag": torch.full((18,), 100.0)}, "are not finite vectors of one size"),
        ("gated", {"b_gate": torch.zeros(1)}, "are not finite vectors of one size"),
        ("standard", {"b_enc": torch.zeros(6)}, "encoder bias has shape"),
        ("standard", {"W_dec": torch.zeros(6, 18)}, "the decoder of 6 and 18"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, architecture, tensors, message):
    write(tmp_path, architecture=architecture, tensors=tensors)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_neither_half_alone_is_this_format(tmp_path):
    write(tmp_path)
    torch.save({"other": torch.zeros(2)}, tmp_path / FILE)
    assert not prisma.recognises(Source(tmp_path))
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"d_in": 6, "trainer": {}}))
    assert not prisma.recognises(Source(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert not prisma.recognises(Source(tmp_path / FILE))
    with pytest.raises(VlmEditError, match=r"config\.json is not valid JSON"):
        load_dictionary(tmp_path, format="prisma")
    (tmp_path / "config.json").unlink()
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 damaged")
    assert not prisma.recognises(Source(tmp_path))
    (tmp_path / FILE).unlink()
    assert not prisma.recognises(Source(tmp_path))
