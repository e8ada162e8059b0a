"""Safetensors in parts, with an index beside them, and indexes that lie."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Layout, save_saelens
from vlm_edit.dictionaries.formats.source import (
    MOST_SHARDS,
    Source,
    read_shards,
    safetensors_names,
)


def shard(folder, name):
    """Bring a safetensors file into a part per tensor and an index, as transformers does."""
    file = folder / name
    tensors = load_file(file)
    stem = name.removesuffix(".safetensors")
    places = {
        key: f"{stem}-{i + 1:05}-of-{len(tensors):05}.safetensors" for i, key in enumerate(tensors)
    }
    for key, part in places.items():
        save_file({key: tensors[key].clone()}, folder / part, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    file.unlink()
    return folder / f"{name}.index.json"


def saelens(folder):
    g = torch.Generator().manual_seed(0)
    encoder = Encoder(torch.randn(6, 8, generator=g), torch.zeros(8), "topk", k=3)
    save_saelens(Dictionary(encoder, torch.randn(8, 6, generator=g), torch.ones(6)), folder)
    save_file({"image": torch.randn(6, generator=g)}, folder / "centers.safetensors")
    return ["sae_weights.safetensors", "centers.safetensors"], {}


def linear(folder, config, name):
    g = torch.Generator().manual_seed(0)
    folder.mkdir()
    weights = {
        "encoder.weight": torch.randn(8, 6, generator=g),
        "encoder.bias": torch.randn(8, generator=g),
        "W_dec": torch.randn(8, 6, generator=g),
        "b_dec": torch.randn(6, generator=g),
    }
    save_file(weights, folder / name)
    if config:
        (folder / config[0]).write_text(json.dumps(config[1]))
    return [name], {}


def sparsify(folder):
    return linear(folder, ("cfg.json", {"k": 3, "d_in": 6}), "sae.safetensors")


def mayfull(folder):
    config = {"k": 3, "hidden_size": 6, "latent_size": 8}
    return linear(folder, ("config.json", config), "model.safetensors")


def gemma_scope(folder):
    g = torch.Generator().manual_seed(0)
    folder.mkdir()
    sizes = {"w_enc": (6, 8), "w_dec": (8, 6), "b_enc": (8,), "b_dec": (6,), "threshold": (8,)}
    weights = {name: torch.rand(*size, generator=g) for name, size in sizes.items()}
    save_file(weights, folder / "params.safetensors")
    return ["params.safetensors"], {}


def state_dict(folder):
    linear(folder, None, "mine.safetensors")
    layout = Layout(
        encoder="encoder.weight",
        decoder="W_dec",
        encoder_order="md",
        decoder_order="md",
        encoder_bias="encoder.bias",
        decoder_bias="b_dec",
        subtract_decoder_bias=False,
        activation="relu",
    )
    return ["mine.safetensors"], {"format": "state_dict", "layout": layout}


@pytest.mark.parametrize("write", [saelens, sparsify, mayfull, gemma_scope, state_dict])
def test_a_dictionary_in_parts_is_the_one_in_one_file(tmp_path, write):
    names, options = write(tmp_path / "sae")
    plain = write is state_dict
    whole = load_dictionary(tmp_path / "sae", file=names[0] if plain else None, **options)
    for name in names:
        shard(tmp_path / "sae", name)
    file = f"{names[0]}.index.json" if plain else None
    parts = load_dictionary(tmp_path / "sae", file=file, **options)
    assert parts.digest() == whole.digest()
    lazy = load_dictionary(tmp_path / "sae", file=file, lazy=True, **options)
    assert torch.equal(lazy.slice([5, 2]).decoder, whole.decoder[[5, 2]])


def test_of_a_file_and_an_index_the_file_is_read(tmp_path):
    mayfull(tmp_path / "sae")
    (tmp_path / "sae" / "model.safetensors.index.json").write_text("{}")
    assert load_dictionary(tmp_path / "sae").n_features == 8


def test_parts_are_mapped_and_their_rows_read_on_demand(tmp_path):
    places = {}
    for i, name in enumerate(("encoder.weight", "W_dec")):
        places[name] = f"model-{i + 1:05}-of-00003.safetensors"
        with (tmp_path / places[name]).open("wb") as file:
            told = {"dtype": "F16", "shape": [131072, 4096], "data_offsets": [0, 1 << 30]}
            header = json.dumps({name: told}).encode()
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + (1 << 30))  # a hole: it takes no room on disk
    small = {"encoder.bias": torch.zeros(131072), "b_dec": torch.zeros(4096)}
    places |= dict.fromkeys(small, "model-00003-of-00003.safetensors")
    save_file(small, tmp_path / "model-00003-of-00003.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"k": 3, "hidden_size": 4096, "latent_size": 131072}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = int(Path("/proc/self/statm").read_text().split()[1])
    rows = load_dictionary(tmp_path, lazy=True).decoder.take([5, 70_000, 131_071])
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - before) * 4096
    assert rows.shape == (3, 4096)
    assert grown < 64 << 20


def test_a_part_that_is_missing_is_named(tmp_path):
    mayfull(tmp_path / "sae")
    shard(tmp_path / "sae", "model.safetensors")
    (tmp_path / "sae" / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(VlmEditError, match=r"names 'model-00002-of-00004.*is not beside it: fetch"):
        load_dictionary(tmp_path / "sae")


def test_a_part_that_is_damaged_is_named(tmp_path):
    mayfull(tmp_path / "sae")
    shard(tmp_path / "sae", "model.safetensors")
    (tmp_path / "sae" / "model-00002-of-00004.safetensors").write_bytes(b"{}")
    with pytest.raises(VlmEditError, match=r"00002-of-00004.* is cut off within its header"):
        load_dictionary(tmp_path / "sae")


def test_an_index_and_parts_that_disagree_are_refused(tmp_path):
    mayfull(tmp_path / "sae")
    index = shard(tmp_path / "sae", "model.safetensors")
    places = json.loads(index.read_text())["weight_map"]
    for changed, told in (
        (places | {"more": places["W_dec"]}, "more"),  # named, and not there
        ({name: places["W_dec"] for name in places}, "b_dec, encoder.bias, encoder.weight"),
        (places | {"W_dec": places["b_dec"], "b_dec": places["W_dec"]}, "W_dec, b_dec"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(VlmEditError, match=f"disagree on {told}: they are not of one dictio"):
            read_shards(index)


def test_a_tensor_that_a_part_has_and_the_index_does_not_name_is_refused(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "m-1.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))
    with pytest.raises(VlmEditError, match="disagree on b: they are not of one dictionary"):
        read_shards(index)


@pytest.mark.parametrize(
    "part",
    [
        *("../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "model.bin"),
        *("a\\b.safetensors", "a\0.safetensors", "a\n.safetensors", ".safetensors"),
        *("..safetensors", "é.safetensors", "x" * 300 + ".safetensors"),
        *(None, 3, ["model.safetensors"], {"a": 1}),
    ],
)
def test_an_index_that_names_anything_but_files_beside_it_is_refused(tmp_path, part):
    folder = tmp_path / "inner" / "sae"
    folder.mkdir(parents=True)
    save_file({"W": torch.zeros(2)}, folder.parent / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"W": part}}))
    with pytest.raises(VlmEditError, match=r"'W' lies in .*, which is not the name of a safet"):
        read_shards(index)
    assert safetensors_names(folder / "model.safetensors") == frozenset()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": "a"}', "\0"],
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "m.safetensors.index.json").write_text(text)
    with pytest.raises(VlmEditError, match=r"index\.json (is not valid|holds a|has no weight_map)"):
        Source(tmp_path).tensors("m.safetensors")
    assert safetensors_names(tmp_path / "m.safetensors") == frozenset()


def test_an_index_of_a_thousand_parts_is_the_largest(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    for n in (MOST_SHARDS, MOST_SHARDS + 1):
        places = {f"t{i}": f"m-{i}.safetensors" for i in range(n)}
        index.write_text(json.dumps({"weight_map": places}))
        known = safetensors_names(tmp_path / "m.safetensors")
        assert len(known) == (n if n == MOST_SHARDS else 0)
    with pytest.raises(VlmEditError, match="names 1001 files; a dictionary has at most 1000"):
        read_shards(index)


def test_an_index_of_many_megabytes_is_not_read(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a" * (2 << 20): "m.safetensors"}}))
    with pytest.raises(VlmEditError, match="larger than 1 MiB"):
        read_shards(index)


def test_a_folder_has_the_file_whose_index_it_has_and_no_other(tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    (tmp_path / "config.json.index.json").write_text("{}")
    source = Source(tmp_path)
    assert source.has("m.safetensors")
    assert not source.has("n.safetensors")
    assert not source.has("config.json")
    assert not source.has("m.safetensors", "n.safetensors")
