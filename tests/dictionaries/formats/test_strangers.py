"""What is no dictionary of one site is named, and Lightning's files can be read by a layout."""

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import Layout

PLAIN = {"W_enc": torch.zeros(6, 16), "W_dec": torch.zeros(16, 6), "b_enc": torch.zeros(16)}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"encoder": torch.zeros(16, 6)}
            | {f"{side}_decoder.weight": torch.zeros(6, 16) for side in ("vision", "text")},
            "is a VL-SAE",
        ),
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


def test_a_checkpoint_of_lightning_is_read_as_its_message_says(tmp_path):
    state = {"sae.encoder.weight": torch.randn(16, 6), "sae.decoder.weight": torch.randn(6, 16)}
    whole = {"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 3}
    file = tmp_path / "last.ckpt"
    torch.save(whole, file)
    with pytest.raises(VlmEditError, match=r"Lightning, .* 'state_dict\.sae\.encoder\.weight'"):
        load_dictionary(file)
    layout = Layout(
        encoder="state_dict.sae.encoder.weight",
        decoder="state_dict.sae.decoder.weight",
        encoder_order="md",
        decoder_order="dm",
        encoder_bias=None,
        decoder_bias=None,
        subtract_decoder_bias=False,
        activation="relu",
    )
    x = torch.randn(5, 6)
    found = load_dictionary(file, "state_dict", layout=layout)
    expected = (x @ state["sae.encoder.weight"].T).relu()
    torch.testing.assert_close(found.encode(x), expected, rtol=1e-5, atol=1e-5)
