"""The format of PatchSAE and ConceptScope, with its formula written here by hand."""

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary


def write(folder, d=6, m=16, key="cfg", state=None, **config):
    g = torch.Generator().manual_seed(d)
    weights = {
        "W_enc": torch.randn(d, m, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "W_dec": torch.randn(m, d, generator=g),
        "b_dec": torch.randn(d, generator=g),
    } | (state or {})
    told = {"d_in": d, "d_sae": m, "model_name": "openai/clip-vit-base-patch16", "block_layer": -2}
    told |= {"dtype": torch.float32, "device": torch.device("cpu"), "gated_sae": False} | config
    torch.save({key: told, "state_dict": weights}, folder / "out.pt")
    return {name: w.double() for name, w in weights.items()}


@pytest.mark.parametrize(("d", "m"), [(6, 16), (8, 8)])
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_codes_are_relu_of_what_the_decoder_s_bias_leaves(tmp_path, d, m, key):
    w = write(tmp_path, d, m, key)
    x = torch.randn(9, d) * 2 + 1
    codes = ((x.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    for place in (tmp_path, tmp_path / "out.pt"):
        found = load_dictionary(place)
        torch.testing.assert_close(found.encode(x), codes.float(), rtol=1e-5, atol=1e-5)
        back = (codes @ w["W_dec"] + w["b_dec"]).float()
        torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    # A layer counted from the end says nothing before the host is known.
    assert found.info == {"model_name": "openai/clip-vit-base-patch16"}


def test_a_layer_that_is_counted_from_the_start_is_known(tmp_path):
    write(tmp_path, block_layer=10)
    load_dictionary(tmp_path).expect_site("vision.10")
    with pytest.raises(VlmEditError, match="not at 'vision.9'"):
        load_dictionary(tmp_path).expect_site("vision.9")


@pytest.mark.parametrize(
    ("state", "config", "message"),
    [
        ({}, {"gated_sae": True}, "is a gated SAE"),
        ({"r_mag": torch.zeros(16)}, {}, "does not have: r_mag"),
        ({}, {"d_sae": 17}, "d_sae=17, W_enc has 16"),
        ({"b_enc": torch.full((16,), torch.nan)}, {}, "b_enc holds NaN"),
        ({"W_dec": torch.zeros(6, 16)}, {}, "the decoder of 6 and 16"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_cause(tmp_path, state, config, message):
    write(tmp_path, state=state, **config)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


class Config:
    """What the library's ancestors saved as the config."""


def test_a_config_that_is_an_object_is_not_unpickled(tmp_path):
    torch.save({"cfg": Config(), "state_dict": {"W_enc": torch.zeros(2, 2)}}, tmp_path / "a.pt")
    with pytest.raises(VlmEditError, match=r"would run code .* save its state_dict\(\) alone"):
        load_dictionary(tmp_path)
