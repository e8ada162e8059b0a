"""The format of HypotheSAEs: ``{config, state_dict}``, TopK, or BatchTopK with its threshold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import mapping, open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile

_NAMES = {"encoder.weight", "decoder.weight", "input_bias", "neuron_bias"}
_BATCH = "use_batch_topk"


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has a config and a state dict of these names."""
    contents = peek_mapping(source)
    state = contents.get("state_dict")
    return isinstance(state, Mapping) and set(state) >= _NAMES and "config" in contents


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, or contents that do not fit.
    """
    del hints
    path, contents = source.path, open_mapping(source)
    config, tensors = mapping(path, contents, "config"), mapping(path, contents, "state_dict")
    expect_names(path, tensors, _NAMES, {"threshold"})
    batch = expect_flag(path, config, _BATCH)
    bias, pre_bias = (expect_vector(path, tensors, n) for n in ("neuron_bias", "input_bias"))
    stored = StoredDictionary(
        weight=Rows(expect_matrix(path, tensors, "encoder.weight"), "encoder.weight"),
        bias=bias,
        decoder=Rows(expect_matrix(path, tensors, "decoder.weight").T, "decoder.weight"),
        decoder_bias=pre_bias,
        activation="jumprelu" if batch else "topk",
        k=None if batch else expect_whole(path, config, "k_active_neurons"),
        threshold=torch.full((len(bias),), expect_scalar(path, tensors, "threshold"))
        if batch
        else None,
        subtract=pre_bias,
    )
    for name, size in (("input_dim", stored.width), ("m_total_neurons", stored.n_features)):
        if config.get(name, size) != size:
            raise DamagedFile(f"{path}: the config says {name}={config[name]}, the file has {size}")
    return stored


FORMAT = Format(
    "hypothesaes", "a .pt with config and a state_dict of neuron_bias", recognises, read
)
