"""What is no dictionary of one site is named, and Lightning's files can be read by a layout."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import Layout

PLAIN = {"W_enc": torch.zeros(6, 16), "W_dec": torch.zeros(16, 6), "b_enc": torch.zeros(16)}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({f"_W_enc{out}": torch.zeros(6, 16) for out in ("", "_out")}, "of Jacobian SAEs"),
    ],
)
@pytest.mark.parametrize("name", ["layer_3.safetensors", "model.pt"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_stranger_is_named(tmp_path, contents, message, name, in_folder):
    (save_file if name.endswith("safetensors") else torch.save)(contents, tmp_path / name)
    with pytest.raises(VlmEditError, match=message) as caught:
        load_dictionary(tmp_path if in_folder else tmp_path / name)
    assert "known formats" not in str(caught.value)


def test_four_tensors_alone_may_be_an_sae_and_are_not_called_anything(tmp_path):
    save_file(PLAIN, tmp_path / "layer_3.safetensors")
    with pytest.raises(VlmEditError, match="is not known; known formats"):
        load_dictionary(tmp_path)


def layout_of(message, **rest):
    """Return the layout that a message writes out, with what it leaves open."""
    text = re.search(r"layout=(Layout\(.*?\))(?= names|:|;)", message)[1]
    text = re.sub(r", subtract_decoder_bias=\.\.\., activation=\.\.\.", ", **rest", text)
    return eval(text, {"Layout": Layout, "rest": rest})


@pytest.mark.parametrize("config", [True, False])
def test_either_of_a_pair_of_jacobian_saes_is_read_as_the_message_says(tmp_path, config):
    """As its library saves it, with the MLP of its training and cfg.json or without."""
    shapes = {"W_enc": (6, 16), "W_dec": (16, 6), "b_enc": (16,), "b_dec": (6,)}
    tensors = {f"_{n}{out}": torch.randn(s) for n, s in shapes.items() for out in ("", "_out")}
    tensors |= {"mlp.W_in": torch.randn(6, 24)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    if config:
        told = {"architecture": "standard", "d_in": 6, "d_sae": 16, "is_pair": True}
        told |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
        (tmp_path / "cfg.json").write_text(json.dumps(told))
    with pytest.raises(VlmEditError, match="pair of Jacobian SAEs") as caught:
        load_dictionary(tmp_path)
    leaving = layout_of(str(caught.value))
    entering = replace(
        leaving, **{n: v.removesuffix("_out") for n, v in leaving.names().items() if v}
    )
    x, file = torch.randn(5, 6), "sae_weights.safetensors"
    for layout, out in ((leaving, "_out"), (entering, "")):
        found = load_dictionary(tmp_path, "state_dict", file=file, k=3, layout=layout)
        hidden = x @ tensors[f"_W_enc{out}"] + tensors[f"_b_enc{out}"]
        least = hidden.topk(3).values[:, -1:]
        codes = torch.where(hidden >= least, hidden.relu(), 0.0)
        torch.testing.assert_close(found.encode(x), codes, rtol=1e-5, atol=1e-5)
        back = codes @ tensors[f"_W_dec{out}"] + tensors[f"_b_dec{out}"]
        torch.testing.assert_close(found.decode(codes), back, rtol=1e-5, atol=1e-5)


def lightning(folder, state):
    file = folder / "last.ckpt"
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 3}, file)
    return file


def test_a_checkpoint_of_lightning_is_read_as_its_message_says(tmp_path):
    state = {"sae.encoder.weight": torch.randn(16, 6), "sae.decoder.weight": torch.randn(6, 16)}
    state |= {"sae.encoder.bias": torch.randn(16), "sae.decoder.bias": torch.randn(6)}
    file = lightning(tmp_path, state)
    with pytest.raises(VlmEditError, match="checkpoint of Lightning") as caught:
        load_dictionary(file)
    layout = layout_of(str(caught.value), subtract_decoder_bias=True, activation="relu")
    x = torch.randn(5, 6)
    found = load_dictionary(file, "state_dict", layout=layout)
    centred = x - state["sae.decoder.bias"]
    expected = (centred @ state["sae.encoder.weight"].T + state["sae.encoder.bias"]).relu()
    torch.testing.assert_close(found.encode(x), expected, rtol=1e-5, atol=1e-5)
    back = expected @ state["sae.decoder.weight"].T + state["sae.decoder.bias"]
    torch.testing.assert_close(found.decode(expected), back, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "decoder"), [((6, 16), (16, 6)), ((16, 6), (16, 6)), ((6, 16), (6, 16))]
)
def test_a_layout_is_told_by_shapes_either_way_round(tmp_path, encoder, decoder):
    state = {"autoencoder.W_enc": torch.randn(encoder), "autoencoder.W_dec": torch.randn(decoder)}
    file = lightning(tmp_path, state)
    with pytest.raises(VlmEditError) as caught:
        load_dictionary(file)
    layout = layout_of(str(caught.value), subtract_decoder_bias=False, activation="relu")
    found = load_dictionary(file, "state_dict", layout=layout)
    assert (found.width, found.n_features) == (6, 16)
    assert layout.encoder_bias is None and layout.decoder_bias is None


@pytest.mark.parametrize(
    "state",
    [
        {"encoder.weight": torch.zeros(8, 8), "decoder.weight": torch.zeros(8, 8)},
        {"one": torch.zeros(6, 16), "other": torch.zeros(16, 6)},
        {"encoder": torch.zeros(6, 16), "decoder": torch.zeros(16, 6), "decoy": torch.zeros(6, 6)},
        {"encoder": torch.zeros(6, 16), "decoder": torch.zeros(16, 6)}
        | {n: torch.zeros(16) for n in ("bias", "threshold")},
        {"encoder": torch.zeros(6, 16), "decoder": torch.zeros(12, 6)},
    ],
)
def test_where_shapes_leave_it_open_names_are_listed(tmp_path, state):
    with pytest.raises(VlmEditError, match=f"names such as 'state_dict.{next(iter(state))}'"):
        load_dictionary(lightning(tmp_path, state))


@pytest.mark.parametrize("prefix", ["", "sae.", "model.autoencoder."])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_known_library_s_module_in_lightning_is_read_as_that_library_s(
    tmp_path, prefix, in_folder
):
    state = {"encoder.weight": torch.randn(16, 6), "enc_bias": torch.randn(16)}
    state |= {"decoder.weight": torch.randn(6, 16), "dec_bias": torch.randn(6)}
    file = lightning(tmp_path, {f"{prefix}{name}": value for name, value in state.items()})
    torch.save(state, tmp_path / "bare.pth")
    found = load_dictionary(tmp_path / "bare.pth")
    (tmp_path / "bare.pth").unlink()
    assert load_dictionary(tmp_path if in_folder else file).digest() == found.digest()
