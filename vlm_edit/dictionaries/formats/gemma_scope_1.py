"""The format of Gemma Scope, the first: ``params.npz``, a JumpReLU that does not subtract b_dec.

No config lies beside it: the folders' names say what it was trained on, such as
``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.npz import npz_names, read_npz
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import DamagedFile, UnknownName

PARAMS = "params.npz"

_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?=/|$)")
_LAYER = re.compile(r"(?:^|/)layer_(\d{1,3})(?=/)")
_WIDTH = re.compile(r"(?:^|/)width_(\d+)(k|m)(?=/)")
_HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
    "transcoders": "blocks.{}.ln2.hook_normalized",
}


def recognises(source: Source) -> bool:
    """Say whether a source is a ``params.npz``, or a folder with one."""
    path = _params(source)
    return path.name == PARAMS and _spelled(npz_names(path)) >= _NAMES


def read(source: Source, hints: Hints) -> StoredDictionary | Transcoder[StoredDictionary]:
    """Read a ``params.npz``; a transcoder only where the repository's name tells.

    Raises:
        VlmEditError: Not a readable file, or arrays that do not fit.
    """
    del hints
    path = _params(source)
    folders = path.absolute().as_posix()
    repository = _REPOSITORY.search(folders)
    transcodes = repository is not None and repository[3] == "transcoders"
    arrays = {_spell(name): array for name, array in read_npz(path).items()}
    expect_names(path, arrays, _NAMES, {"scaling_factor"})
    if "scaling_factor" in arrays and not bool((arrays["scaling_factor"] == 1).all()):
        raise UnknownName(f"{path}: a scaling_factor that is not 1 is not supported")
    weight = expect_matrix(path, arrays, "W_enc")
    # Those of embeddings were trained on embeddings as the host scales them, times sqrt(d).
    scale = len(weight) ** 0.5 if "/embedding/" in folders else 1.0
    stored = StoredDictionary(
        weight=Rows(weight.T, "W_enc", scale=_all(1 / scale, len(weight))),
        bias=expect_vector(path, arrays, "b_enc"),
        decoder=Rows(expect_matrix(path, arrays, "W_dec"), "W_dec", scale=_all(scale, len(weight))),
        decoder_bias=expect_vector(path, arrays, "b_dec"),
        activation="jumprelu",
        threshold=expect_vector(path, arrays, "threshold"),
        norm="rms_norm_of_input" if transcodes else "none",
        info=_info(folders, repository),
    )
    _expect_width(path, folders, stored.n_features)
    # They read the stream as RMSNorm leaves it before its weight, and write behind the last norm.
    return Transcoder(stored, "mid", "mlp_out") if transcodes else stored


FORMAT = Format("gemma_scope_1", f"{PARAMS} with W_enc and threshold", recognises, read)


def _params(source: Source) -> Path:
    return source.file(PARAMS) if source.is_folder else source.path


def _spell(name: str) -> str:
    return f"W_{name[2:]}" if name.startswith("w_") else name


def _spelled(names: frozenset[str]) -> set[str]:
    return {_spell(name) for name in names}


def _all(scale: float, d: int) -> Tensor | None:
    return None if scale == 1 else torch.full((d,), scale)


def _info(folders: str, repository: re.Match[str] | None) -> dict[str, str]:
    """Take host, place and layer from the names of the folders."""
    info = {}
    layer = _LAYER.search(folders)
    if repository:
        info["model_name"] = f"google/gemma-2-{repository[1]}" + (
            "-it" if repository[2] == "it" else ""
        )
        if layer:
            info["hook_name"] = _HOOKS[repository[3]].format(layer[1])
        elif "/embedding/" in folders:
            info["hook_name"] = "hook_embed"
    return info | ({"layer": layer[1]} if layer else {})


def _expect_width(path: Path, folders: str, m: int) -> None:
    """Refuse a folder whose name says another number of features, which is rounded there."""
    said = _WIDTH.search(folders)
    if said is None:
        return
    count = int(said[1]) * (1024 if said[2] == "k" else 1 << 20)
    if not 0.9 * count < m < 1.1 * count:
        raise DamagedFile(f"{path}: the folder's name says {said[0].strip('/')}, the file has {m}")
