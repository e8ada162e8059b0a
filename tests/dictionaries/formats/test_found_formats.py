"""Hostile and damaged files of formats whose right ones stand in the golden archives."""

import json

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary

D, M = 6, 16


def goodfire(**changes):
    shapes = {"encoder_linear.weight": (M, D), "encoder_linear.bias": (M,)}
    shapes |= {"decoder_linear.weight": (D, M), "decoder_linear.bias": (D,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()} | changes


def hypothesaes(config=None, **changes):
    shapes = {"encoder.weight": (M, D), "decoder.weight": (D, M), "input_bias": (D,)}
    state = {n: torch.randn(s) for n, s in shapes.items()} | {"neuron_bias": torch.randn(M)}
    told = {"input_dim": D, "m_total_neurons": M, "k_active_neurons": 3, "use_batch_topk": False}
    return {"config": told | (config or {}), "state_dict": state | changes}


def dncbm(**changes):
    bias = torch.randn(1, D)
    state = {"tied_bias": bias, "pre_encoder_bias._bias_reference": bias}
    state |= {"encoder.weight": torch.randn(1, M, D), "encoder.bias": torch.randn(1, M)}
    return state | {"decoder.weight": torch.randn(1, D, M)} | changes


def archetypal(**changes):
    state = {"dictionary.W": torch.eye(M), "dictionary.Relax": torch.zeros(M, D)}
    state |= {"dictionary.C": torch.randn(M, D), "dictionary.multiplier": torch.tensor(0.0)}
    block = "encoder.final_block.0."
    state |= {f"{block}weight": torch.randn(M, D), f"{block}bias": torch.randn(M)}
    return state | changes


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        (goodfire(**{"encoder_linear.bias": torch.full((M,), torch.nan)}), {}, "NaN or infinity"),
        (goodfire(**{"decoder_linear.weight": torch.zeros(M, D)}), {}, "the decoder of 6 and 16"),
        (goodfire(), {"k": 3}, "keeps k itself or has none"),
        (hypothesaes({"use_batch_topk": "yes"}), {}, "use_batch_topk must be true or false"),
        (hypothesaes({"use_batch_topk": True}), {}, "threshold must be a number"),
        (hypothesaes({"k_active_neurons": 0}), {}, "k_active_neurons must be a whole number"),
        (hypothesaes({"input_dim": 7}), {}, "input_dim=7, the file has 6"),
        (hypothesaes(more=torch.zeros(1)), {}, "does not have: more"),
        (dncbm(**{"pre_encoder_bias._bias_reference": torch.ones(1, D)}), {}, "differs from tied"),
        (dncbm(**{"encoder.bias": torch.zeros(2, M)}), {}, "holds dictionaries of 2 places"),
        (dncbm(**{"encoder.weight": torch.full((1, M, D), torch.inf)}), {}, "NaN or infinity"),
        (archetypal(**{"dictionary.W": -torch.eye(M)}), {"k": 3}, "are no weights that sum to 1"),
        (
            archetypal(**{"dictionary.W": 2 * torch.eye(M) - torch.eye(M).roll(1, 0)}),
            {"k": 3},
            "are no weights that sum to 1",
        ),
        (archetypal(**{"dictionary.W": torch.ones(M, M)}), {"k": 3}, r"call model.eval\(\)"),
        (archetypal(**{"dictionary.W": torch.eye(M)[:5]}), {"k": 3}, "they do not fit"),
        (archetypal(**{"dictionary.C": torch.zeros(3, D)}), {"k": 3}, "they do not fit"),
        (archetypal(**{"dictionary.C": torch.full((M, D), torch.nan)}), {"k": 3}, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(tmp_path, contents, options, message):
    torch.save(contents, tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path, **options)


@pytest.mark.parametrize("part", ["C", "W", "Relax", "multiplier"])
def test_an_archetypal_encoder_is_tied_to_all_of_its_own_dictionary(tmp_path, part):
    state = {n: value for n, value in archetypal().items() if n.startswith("dictionary.")}
    state |= {n.replace("dictionary", "encoder.tied_to"): value for n, value in state.items()}
    torch.save(state, tmp_path / "sae.pt")
    found, x = load_dictionary(tmp_path, k=3), torch.randn(5, D)
    values, places = (x @ found.decoder.T).topk(3)
    codes = torch.zeros(5, M).scatter(1, places, values.relu())
    torch.testing.assert_close(found.encode(x), codes)
    state[f"encoder.tied_to.{part}"] = state[f"encoder.tied_to.{part}"].roll(1) + 0.5
    torch.save(state, tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match="tied to another dictionary"):
        load_dictionary(tmp_path, k=3)


def test_later_versions_of_dncbm_s_library_spell_their_tensors_without_an_underscore(tmp_path):
    state = {name: value[0] for name, value in dncbm().items()}
    torch.save(state, tmp_path / "sparse_autoencoder_final.pt")
    x = torch.randn(5, D)
    w = {name: value.double() for name, value in state.items()}
    codes = ((x - w["tied_bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    found = load_dictionary(tmp_path)
    torch.testing.assert_close(found.encode(x), codes.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"activation": "topk"}, {}, "k must be a whole number"),
        ({"activation": "topk", "k": 3, "hidden_dim": 5}, {}, "hidden_dim=5, the file has 16"),
        ({"activation": "jumprelu"}, {}, "say threshold=0.01"),
        ({"activation": "batchtopk", "threshold": 1e999}, {}, "threshold is inf|JSON"),
        ({"activation": "topk", "k": 3}, {"more": torch.zeros(1)}, "does not have: more"),
        ({"activation": "topk", "k": 3}, {"decoder.bias": torch.full((D,), torch.nan)}, "NaN"),
    ],
)
def test_visaebench_refuses_what_its_config_leaves_open(tmp_path, config, state, message):
    weights = {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M)}
    weights |= {"decoder.weight": torch.randn(M, D)} | state
    torch.save(weights, tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"input_dim": D} | config))
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_visaebench_s_config_may_be_yaml_where_there_is_no_json(tmp_path, name):
    weights = {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M)}
    torch.save(weights | {"decoder.weight": torch.randn(M, D)}, tmp_path / "sae.pt")
    (tmp_path / name).write_text(f"activation: topk  # of a batch's\nk: 3\ninput_dim: {D}\n")
    found = load_dictionary(tmp_path)
    assert (found.encoder.activation, found.encoder.k) == ("topk", 3)
    assert load_dictionary(tmp_path / "sae.pt").digest() == found.digest()
    told = {"activation": "topk", "k": 5, "input_dim": D}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert load_dictionary(tmp_path).encoder.k == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("activation: [", "is not valid YAML"),
        ("- topk", "holds a list"),
        ("!!python/object/apply:os.system ['touch ran']", "is not valid YAML"),
        ("activation: topk\n" * 70_000, "larger than 1 MiB"),
        ("k: \ud800", "is not valid YAML"),
    ],
)
def test_a_config_in_yaml_that_is_not_plain_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    weights = {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M)}
    torch.save(weights | {"decoder.weight": torch.randn(M, D)}, tmp_path / "sae.pt")
    (tmp_path / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path, format="visaebench")
    assert not (tmp_path / "ran").exists()


def test_visaebench_takes_the_threshold_that_its_library_would(tmp_path):
    weights = {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M)}
    torch.save(weights | {"decoder.weight": torch.randn(M, D)}, tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"activation": "jumprelu", "input_dim": D}))
    codes = load_dictionary(tmp_path, threshold=0.01).encode(torch.randn(50, D))
    assert float(codes[codes > 0].min()) > 0.01


def test_a_code_equal_to_visaebench_s_batchtopk_threshold_stays_and_to_a_jump_goes(tmp_path):
    weights = {"encoder.weight": torch.zeros(M, D), "encoder.bias": torch.full((M,), 1.25)}
    torch.save(weights | {"decoder.weight": torch.randn(M, D)}, tmp_path / "sae.pt")
    for kind, stays in (("batchtopk", True), ("jumprelu", False)):
        config = {"activation": kind, "input_dim": D}
        (tmp_path / "config.json").write_text(json.dumps(config))
        codes = load_dictionary(tmp_path, threshold=1.25).encode(torch.ones(2, D))
        assert bool((codes == (1.25 if stays else 0)).all())
