"""Gemma Scope 2's dictionaries of several layers: what folders say, and files that do not fit."""

import json
from dataclasses import replace

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


CLT = {
    "type": "clt",
    "hf_hook_point_in": "model.layers.{all}.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.{all}.post_feedforward_layernorm.output",
}
CROSSCODER = {"type": "crosscoder", "hf_hook_point_in": "model.layers.{7,13}.output"}


@pytest.mark.parametrize(
    ("name", "options", "ends", "layers"),
    [
        ("clt/width_16k", {}, "mlp", "0, 1"),
        ("clt", {}, "mlp", "0, 1"),
        ("clt/width_16k", {"skips": True, "told": CLT}, "mlp", "0, 1"),
        ("my-clt/width_16k", {"skips": True}, "mlp", "0, 1"),
        ("crosscoder/layer_7_13_width_65k_l0_medium", {}, "layer", "7, 13"),
        ("crosscoder/mine", {}, "layer", None),
        ("clt/gemma-scope-2-1b-pt/crosscoder/layer_7_13_width_65k", {}, "layer", "7, 13"),
        ("clt/tried/layer_7_13_width_65k", {}, "layer", "7, 13"),
        ("mine", {"told": CROSSCODER}, "layer", "7, 13"),
        ("mine", {"told": CLT}, "mlp", "0, 1"),
        ("my-clt/width_16k", {}, None, None),
        ("clt/somewhere/else", {"told": {"type": ["clt"]}}, None, None),
    ],
)
def test_the_nearest_that_tells_says_which_of_the_two_it_is(tmp_path, name, options, ends, layers):
    found = load_dictionary(write(tmp_path / name, **options))
    known = {"mlp": ("mlp_in", "mlp_out"), "layer": ("", ""), None: (None, None)}
    assert (found.reads, found.writes) == known[ends]
    assert found.info.get("layers") == layers


def test_one_that_nothing_tells_of_asks_for_its_places(tmp_path):
    found = load_dictionary(write(tmp_path / "mine"))
    with pytest.raises(VlmEditError, match="reads='mlp_in', .* or reads='', writes='' of a cross"):
        found.expect_site("language.7+language.13")
    replace(found, reads="", writes="").expect_site("language.7+language.13")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clt/layer_7_13_width_65k", {}, "folder 'clt' says 'clt', the name 'layer_7_13_width_65k"),
        ("crosscoder/width_65k", {"skips": True}, "'crosscoder', affine_skip_connection in its"),
        ("layer_7_13_width_65k", {"skips": True}, "says 'crosscoder', affine_skip_connection"),
        ("clt/width_65k", {"told": CROSSCODER}, "config.json's type says 'crosscoder', the"),
        ("crosscoder/layer_7_14_width_65k", {"told": CROSSCODER}, "says '7, 14', config.json's hf"),
        ("crosscoder/layer_7_13_17_width_65k", {}, "the 3 layers 7, 13, 17, and there are 2 files"),
        ("mine", {"told": CROSSCODER, "count": 3}, "the 2 layers 7, 13, and there are 3 files"),
    ],
)
def test_a_folder_that_says_two_things_is_refused(tmp_path, name, options, message):
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(write(tmp_path / name, **options))
