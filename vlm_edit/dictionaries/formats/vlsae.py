"""The format of VL-SAE: a state dict of one encoder and a decoder for each stream.

A code is 2 minus the distance of an activation from a row of the encoder, both brought to length 1;
those that are not above the k + 1-th largest are 0. The decoders write activations as long as they
were. How many stay only the file's name tells: ``openclip_ViT-B-32_VL_SAE_256_8_best.pth``.

Those of LLaVA and Qwen read what an auxiliary autoencoder makes of a layer's output.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import open_mapping, peek_mapping, torch_files
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.stored import Rows, StoredDictionary, row_lengths
from vlm_edit.ground.errors import CannotKnow, DamagedFile

ENCODER = "encoder"
DECODERS = ("vision_decoder", "text_decoder")

_NAMES = {ENCODER, *(f"{side}.{part}" for side in DECODERS for part in ("weight", "bias"))}
_TOLD = re.compile(r"_(\d{1,6})_(\d{1,4})_(?:best|[\d.]+_final)\.pth?$")
_SHORTEST = 1e-12  # rows are divided by their length, or by this


def recognises(source: Source) -> bool:
    """Say whether a source holds such a state dict."""
    return set(peek_mapping(source)) == _NAMES


def read(source: Source, hints: Hints) -> PairedDictionary[StoredDictionary]:
    """Read a file, or a folder of one.

    Raises:
        VlmEditError: A file that is not valid, a k that nothing tells, or tensors that do not fit.
    """
    path, tensors = source.path, open_mapping(source)
    expect_names(path, tensors, _NAMES)
    weight = expect_matrix(path, tensors, ENCODER)
    name = path.name if not source.is_folder else torch_files(source)[0]
    k = _k(path, name, hints, *weight.shape)
    if name.startswith(("llava_", "qwen_")):
        warnings.warn(
            f"{path}: by its name it was trained on what an auxiliary autoencoder makes of a "
            "layer's output, and no site here holds that: its codes of the layer mean nothing",
            UserWarning,
            stacklevel=5,  # at who called load_dictionary
        )
    bias = _bias(weight)
    return PairedDictionary(
        *(
            StoredDictionary(
                weight=Rows(weight, ENCODER, unit=True),
                bias=bias,
                decoder=Rows(expect_matrix(path, tensors, f"{side}.weight").T, f"{side}.weight"),
                decoder_bias=expect_vector(path, tensors, f"{side}.bias"),
                activation="topk_distance",
                k=k,
                norm="unit_read",
                info={"hook_name": "joint"} if name.startswith("openclip_") else {},
            )
            for side in DECODERS
        )
    )


FORMAT = Format(
    "vlsae", "a .pth with encoder and vision_decoder.weight", recognises, read, frozenset({"k"})
)


def _k(path: Path, name: str, hints: Hints, m: int, d: int) -> int:
    told = _TOLD.search(name)
    if hints.k is not None:
        return hints.k
    if told is None:
        raise CannotKnow(
            f"{path}: how many features stay only the name tells that its library gives a file, "
            "256 in openclip_ViT-B-32_VL_SAE_256_8_best.pth: say it with k="
        )
    k, ratio = int(told[1]), int(told[2])
    if m != d * ratio:
        raise DamagedFile(
            f"{path}: its name tells of {d} * {ratio} features and it holds {m}: it is another's; "
            "say k= to read it all the same"
        )
    return k


def _bias(weight: Tensor) -> Tensor:
    """Return what makes 2 - 2 h the squared distance from rows of length 0 too, [m]."""
    missing: Tensor = 1 - (row_lengths(weight) / _SHORTEST).clamp_max(1).square()
    return missing / 2
