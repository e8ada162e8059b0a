"""Hooks, names of files and of folders that say a layer are of one, or nothing is read."""

import pytest
import torch
from safetensors.torch import save_file
from test_saelens import D, M
from test_saelens import write as write_saelens
from test_scope import write as write_scope
from test_sparsify import write as write_sparsify

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries.formats.places import one_layer

MID, OUT = "blocks.{}.hook_resid_mid", "blocks.{}.hook_mlp_out"
BEFORE = "model.layers.{}.pre_feedforward_layernorm.output"
BEHIND = "model.layers.{}.post_feedforward_layernorm.output"


@pytest.mark.parametrize(
    ("said", "layer"),
    [
        ({"in": "blocks.3.hook_resid_mid", "out": "model.layers.3.mlp"}, "3"),
        ({"in": "blocks.3.ln2.hook_normalized", "out": None}, "3"),
        ({"in": "hook_resid_mid", "file": 0}, "0"),
        ({"in": "model.layers.{all}.output", "out": ["blocks.3"], "file": None}, None),
        ({"in": "blocks.3.hook_resid_mid", "layer": True}, "3"),
        ({}, None),
    ],
)
def test_what_says_one_layer_or_none_is_of_that(said, layer):
    assert one_layer("a file", said) == layer


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"in": MID.format(3), "out": OUT.format(7)}, "mid' says layer 3, out .* says layer 7"),
        ({"in": MID.format(3), "the file": 4}, "says layer 3, the file says layer 4"),
    ],
)
def test_what_says_two_is_refused_by_both(said, message):
    with pytest.raises(VlmEditError, match=f"a file: in .*{message}: what leads from a layer"):
        one_layer("a file", said)


def sae_lens(folder, **told):
    metadata = {"sae_lens_version": "6.54.12", **told}
    config = {"architecture": "transcoder", "d_out": D, "apply_b_dec_to_input": False}
    return write_saelens(folder, metadata=metadata, **config)


@pytest.mark.parametrize(
    "told",
    [
        {"hook_name": MID.format(3), "hook_name_out": OUT.format(7)},
        {"hook_name": "blocks.3.hook_resid_post", "hook_name_out": "blocks.7.hook_resid_post"},
        {"hook_name": MID.format(3), "hf_hook_name": BEFORE.format(7)},
        {"hook_name": MID.format(3), "hf_hook_name_out": BEHIND.format(7)},
        {"hook_name": MID.format(3), "hook_layer": 7},
        {"hook_name": MID.format(3), "hook_layer_out": 7},
    ],
)
def test_a_transcoder_of_saelens_of_two_layers_is_refused(tmp_path, told):
    with pytest.raises(VlmEditError, match="says layer 3, .* says layer 7"):
        load_dictionary(sae_lens(tmp_path, **told))


def test_a_transcoder_of_saelens_is_of_the_layer_that_either_of_its_hooks_says(tmp_path):
    told = {"hook_name": "hook_resid_mid", "hook_name_out": OUT.format(3)}
    found = load_dictionary(sae_lens(tmp_path, **told))
    assert (found.reads, found.writes, found.info["layer"]) == ("mid", "mlp_out", "3")
    with pytest.raises(VlmEditError, match="at layer 3 of 'hook_resid_mid', not at 'language.1"):
        found.expect_site("language.1.mlp_out")


@pytest.mark.parametrize(
    ("folder", "ends", "message"),
    [
        ("layer_5_width_16k", (5, 9), "point_in .* says layer 5, .*point_out .* says layer 9"),
        ("layer_9_width_16k", (5, 5), "says layer 5, the folder 'layer_9_width_16k' says layer 9"),
        ("mine", (5, 9), "says layer 5, .* says layer 9"),
    ],
)
@pytest.mark.parametrize("hooks", [(BEFORE, BEHIND), ("model.layers.{}.output",) * 2])
def test_a_folder_of_gemma_scope_of_two_layers_is_refused(tmp_path, folder, ends, message, hooks):
    read, written = (hook.format(layer) for hook, layer in zip(hooks, ends, strict=True))
    write_scope(tmp_path / folder, hf_hook_point_in=read, hf_hook_point_out=written)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path / folder)


def test_gemma_scope_s_config_says_the_layer_where_the_folder_does_not(tmp_path):
    write_scope(tmp_path, hf_hook_point_in=BEFORE.format(5), hf_hook_point_out=BEHIND.format(5))
    found = load_dictionary(tmp_path)
    assert found.info["layer"] == "5"
    found.expect_site("language.5.mlp_out")
    with pytest.raises(VlmEditError, match="not at 'language.1.mlp_out'"):
        found.expect_site("language.1.mlp_out")


@pytest.mark.parametrize(
    ("hooks", "layer"),
    [
        (("hook_resid_mid", "hook_mlp_out"), "3"),
        (("blocks.3.hook_resid_mid", "hook_mlp_out"), "3"),
        (("blocks.5.hook_resid_mid", "hook_mlp_out"), None),
        (("hook_resid_mid", "blocks.5.hook_mlp_out"), None),
        (("blocks.5.hook_resid_mid", "blocks.6.hook_mlp_out"), None),
    ],
)
def test_a_file_of_circuit_tracer_is_of_the_layer_that_its_config_says_if_any(
    tmp_path, hooks, layer
):
    path = tmp_path / "layer_3.safetensors"
    tensors = {"W_enc": torch.randn(M, D), "W_dec": torch.randn(M, D)}
    save_file(tensors | {"b_enc": torch.zeros(M), "b_dec": torch.zeros(D)}, path)
    config = 'feature_input_hook: "{}"\nfeature_output_hook: "{}"\n'.format(*hooks)
    (tmp_path / "config.yaml").write_text(config)
    if layer is None:
        with pytest.raises(VlmEditError, match="the file 'layer_3.safetensors' says layer 3"):
            load_dictionary(path)
        return
    found = load_dictionary(path)
    assert (found.reads, found.writes, found.info["layer"]) == ("mid", "mlp_out", layer)


def test_a_folder_of_sparsify_that_names_a_layer_is_held_to_it(tmp_path):
    write_sparsify(tmp_path / "layers.3.mlp", transcode=True)
    found = load_dictionary(tmp_path / "layers.3.mlp")
    found.expect_site("language.3.mlp")
    with pytest.raises(VlmEditError, match="at 'layers.3.mlp', not at 'language.1.mlp'"):
        found.expect_site("language.1.mlp")
