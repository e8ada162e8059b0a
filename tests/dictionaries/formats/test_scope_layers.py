"""Gemma Scope 2's dictionaries of several layers: what folders say, and files that do not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError, load_dictionary

D, M = 6, 5


def write(folder, count=2, skips=False, layer=1, told=None, **changes):
    """A folder of so many files; of one layer, tensors that are others; of a config, if told."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        tensors = {"w_enc": torch.randn(D, M), "w_dec": torch.randn(M, count, D)}
        tensors["w_dec"][:, :i] = 0
        tensors |= {"b_enc": torch.zeros(M), "b_dec": torch.zeros(D), "threshold": torch.rand(M)}
        tensors |= {"affine_skip_connection": torch.randn(D, D)} if skips else {}
        tensors |= changes if i == layer else {}
        save_file(tensors, folder / f"params_layer_{i}.safetensors")
    if told is not None:
        (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": torch.zeros(M + 1)}, "encoder's bias of layer 1, counted from 0, has shape"),
        ({"threshold": torch.zeros(M + 1)}, "threshold of layer 1"),
        ({"b_dec": torch.zeros(D + 1)}, "decoder's bias of layer 1"),
        ({"w_enc": torch.zeros(D + 1, M)}, r"has shape \(6, 6\), expected \(7, 7\)"),
        ({"w_dec": torch.zeros(M + 1, 2, D)}, "decoder of layer 1"),
        ({"w_dec": torch.zeros(M, 3, D)}, "write 3 layers, and there are 2 such files"),
        ({"w_dec": torch.zeros(M, D)}, r"w_dec has shape \(5, 6\), expected 3 axes"),
        ({"affine_skip_connection": torch.eye(D + 1)}, "affine_skip_connection has shape"),
    ],
)
def test_parts_of_a_layer_that_do_not_fit_are_refused(tmp_path, changes, message):
    folder = write(tmp_path / "clt" / "width_16k", skips=True, **changes)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(folder)


def test_skips_that_make_up_for_each_other_are_refused(tmp_path):
    folder = write(tmp_path, skips=True, affine_skip_connection=torch.zeros(D + 1, D - 1))
    other = write(tmp_path / "b", skips=True, affine_skip_connection=torch.zeros(D - 1, D + 1))
    (other / "params_layer_1.safetensors").replace(folder / "params_layer_0.safetensors")
    with pytest.raises(VlmEditError, match=r"params_layer_0.* has shape \(5, 7\), expected \(6, 6"):
        load_dictionary(folder)
