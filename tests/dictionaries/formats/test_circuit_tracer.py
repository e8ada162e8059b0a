"""Files of circuit-tracer that do not fit each other; golden files hold what is read of others."""

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary

D, M, LAYERS = 6, 5, 3


def write_layers(folder, layer=1, jumps=True, written=None, **changes):
    """A cross-layer transcoder; of one layer, tensors that are others."""
    folder.mkdir(exist_ok=True)
    for i in range(LAYERS):
        tensors = {"W_enc": torch.randn(M, D), "b_enc": torch.randn(M), "b_dec": torch.randn(D)}
        tensors |= {"threshold": torch.rand(M)} if jumps else {}
        decoder = torch.randn(M, LAYERS - i, D)
        if i == layer:
            tensors |= changes
            decoder = decoder if written is None else written
        save_file({f"{k}_{i}": v for k, v in tensors.items()}, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": decoder}, folder / f"W_dec_{i}.safetensors")
    return folder


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"b_enc": torch.zeros(M + 1)}, "encoder's bias"),
        ({"threshold": torch.zeros(M - 1)}, "threshold"),
        ({"b_dec": torch.zeros(D + 1)}, "decoder's bias"),
        ({"W_enc": torch.zeros(M + 1, D)}, "encoder's bias"),
        ({"written": lambda left: torch.zeros(M, left, D - 1)}, "decoder"),
        ({"written": lambda left: torch.zeros(M - 1, left, D)}, "decoder"),
    ],
)
def test_parts_of_a_layer_that_do_not_fit_are_refused_by_its_number(tmp_path, layer, changes, part):
    made = {name: v(LAYERS - layer) if callable(v) else v for name, v in changes.items()}
    folder = write_layers(tmp_path, layer, **made)
    for lazy in (False, True):
        with pytest.raises(VlmEditError, match=f"the {part} of layer {layer}, counted from 0, has"):
            load_dictionary(folder, lazy=lazy)


def test_vectors_of_two_layers_that_make_up_for_each_other_are_refused(tmp_path):
    folder = write_layers(tmp_path, 0, b_enc=torch.zeros(M + 1))
    other = write_layers(tmp_path / "other", 1, b_enc=torch.zeros(M - 1))
    (other / "W_enc_1.safetensors").replace(folder / "W_enc_1.safetensors")
    with pytest.raises(VlmEditError, match=r"bias of layer 0, .* shape \(6,\), expected \(5,\)"):
        load_dictionary(folder)


def test_a_layer_of_another_width_than_the_first_is_refused(tmp_path):
    wide = {"W_enc": torch.zeros(M, D + 2), "b_dec": torch.zeros(D + 2)}
    folder = write_layers(tmp_path, written=torch.zeros(M, LAYERS - 1, D + 2), **wide)
    with pytest.raises(VlmEditError, match=r"encoder of layer 1, .* \(5, 8\), expected \(5, 6\)"):
        load_dictionary(folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_decoder_of_more_or_fewer_layers_than_come_is_refused(tmp_path, layers):
    folder = write_layers(tmp_path, written=torch.zeros(M, layers, D))
    message = f"write {layers} layers: of 3 they write layer 1 and the 1 later ones"
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(folder)


def test_files_that_fit_are_read_with_a_threshold_and_without(tmp_path):
    assert load_dictionary(write_layers(tmp_path)).inner.encoder.activation == "jumprelu"
    bare = load_dictionary(write_layers(tmp_path, jumps=False))
    assert (bare.inner.encoder.activation, bare.parts, bare.n_features) == ("relu", 3, 15)
