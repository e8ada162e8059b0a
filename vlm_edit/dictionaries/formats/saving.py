"""Write dictionaries as folders that SAELens 6 reads, whole or not at all.

SAELens subtracts the decoder's bias or nothing, and knows no streams. What a dictionary here
subtracts besides is folded in, and kept as it was in the header of the weights, where SAELens does
not look and from which it cannot part.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.formats.saelens import (
    ARCHITECTURES,
    CENTER,
    CENTERS,
    CONFIG,
    FOLDED,
    MARK,
    NORMS,
    PART,
    READS,
    SAVING,
    VERSION,
    WEIGHTS,
    WRITES,
    halves,
    mark,
)
from vlm_edit.dictionaries.paired import STREAMS, PairedDictionary
from vlm_edit.dictionaries.transcoder import AnyDictionary, Transcoder
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.ground.files import HEADER, beside


@dataclass(frozen=True, eq=False)
class _Folder:
    """What goes into a folder.

    Attributes:
        config: Of ``cfg.json``.
        tensors: Of the weights.
        folded: What they were before folding; empty where nothing was folded.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    folded: Mapping[str, Tensor]


def save_saelens(
    dictionary: AnyDictionary,
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a dictionary so that SAELens 6 and ``load_dictionary`` read it right.

    A dictionary whose streams have different centers is written as two folders, ``image`` and
    ``text``, and so is one for each stream: SAELens reads each of the two, and ``load_dictionary``
    makes of the folder around them what was saved. Anything else is one folder.

    Args:
        dictionary: With activation relu, jumprelu, topk or topk_abs; a transcoder of one layer
            with one of the first two. One that was left on disk is loaded.
        path: The folder, made if need be. A dictionary that was saved there before is replaced at
            the end; a reader takes the old one, the new one or none, never parts of both.
        dtype: Of the weights in the file.

    Raises:
        VlmEditError: An activation or a norm that the format does not have, or a folder that cannot
            be written to; what was there before is still there.
    """
    root, part, parts = Path(path), "", {}
    with torch.no_grad():
        whole: Dictionary | PairedDictionary[Dictionary] | Transcoder[Dictionary]
        whole = dictionary if isinstance(dictionary, Dictionary) else dictionary.load()
        if isinstance(whole, Transcoder):
            parts = {root: _transcoder(whole)}
        elif isinstance(whole, PairedDictionary):
            part = "paired"
            parts = {root / name: _described(whole.of(name), name) for name in STREAMS}
        elif _is_split(whole.encoder):
            part = "shared"
            parts = {root / name: _described(whole, name) for name in STREAMS}
        else:
            parts = {root: _described(whole, next(iter(whole.encoder.centers), None))}
        _write(root, parts, part, dtype)


def _is_split(encoder: Encoder) -> bool:
    """Say whether streams have different centers."""
    first, *rest = encoder.centers.values() or (torch.empty(0),)
    return any(not torch.equal(first, other) for other in rest)


def _described(dictionary: Dictionary, stream: str | None) -> _Folder:
    """Return what goes into the folder of a dictionary in use for a stream."""
    encoder = dictionary.encoder
    architectures = {value: key for key, value in ARCHITECTURES.items()}
    if encoder.activation not in architectures:
        raise BadArgument(
            f"SAELens has no architecture for activation {encoder.activation!r}; "
            "raw neurons need no file: use Dictionary.identity(width)"
        )
    if encoder.norm not in NORMS.values():
        raise BadArgument(f"SAELens has no normalize_activations for norm {encoder.norm!r}")
    if encoder.soft_cap is not None:
        raise BadArgument(f"SAELens 6 has nothing for soft_cap, which is {encoder.soft_cap} here")
    applies, tensors, folded = _folded(dictionary, stream)
    config: dict[str, Any] = {
        "architecture": architectures[encoder.activation],
        "d_in": dictionary.width,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": applies,
        "normalize_activations": encoder.norm,
        "reshape_activations": "none",
        "metadata": {VERSION: "6.0.0", **dictionary.info},
    }
    if encoder.threshold is not None:
        tensors["threshold"] = encoder.threshold
    if encoder.k is not None:
        config |= {"k": encoder.k, "rescale_acts_by_decoder_norm": False}
    return _Folder(config, tensors, folded)


def _transcoder(transcoder: Transcoder[Dictionary]) -> _Folder:
    """Return what goes into the folder of a transcoder."""
    inner = transcoder.inner
    encoder = inner.encoder
    if transcoder.parts > 1:
        raise BadArgument(
            f"SAELens has no architecture that reads {transcoder.parts} layers: keep the files "
            "that this came from"
        )
    if encoder.activation not in ("relu", "jumprelu") or encoder.norm != "none":
        raise BadArgument(
            f"SAELens has no transcoder with activation {encoder.activation!r} and norm "
            f"{encoder.norm!r}, only relu and jumprelu without a norm"
        )
    folder = _described(replace(inner, encoder=_unsubtracted(encoder)), None)
    if folder.config["apply_b_dec_to_input"]:
        raise BadArgument("SAELens' transcoders subtract nothing from what they read")
    kind = ("jumprelu_" if encoder.activation == "jumprelu" else "") + (
        "transcoder" if transcoder.skip is None else "skip_transcoder"
    )
    places = {READS: transcoder.reads, WRITES: transcoder.writes}
    metadata = folder.config["metadata"] | {k: v for k, v in places.items() if v is not None}
    tensors = dict(folder.tensors)
    if transcoder.skip is not None:
        tensors["W_skip"] = transcoder.skip.T
    config = {**folder.config, "architecture": kind, "d_out": inner.width, "metadata": metadata}
    return _Folder(config, tensors, {})


def _unsubtracted(encoder: Encoder) -> Encoder:
    """Return an encoder whose bias holds what is subtracted before its product."""
    if encoder.centers:
        raise BadArgument("SAELens' transcoders have no centers: save one without")
    if encoder.subtract is None:
        return encoder
    bias = encoder.bias.double() - encoder.subtract.double() @ encoder.weight.double()
    return replace(encoder, bias=bias.float(), subtract=None)


def _folded(
    dictionary: Dictionary, stream: str | None
) -> tuple[bool, dict[str, Tensor], dict[str, Tensor]]:
    """Say whether SAELens is to subtract the decoder's bias; the weights, and what they were."""
    encoder, bias, decoder_bias = (
        dictionary.encoder,
        dictionary.encoder.bias,
        dictionary.decoder_bias,
    )
    offset = encoder.subtract
    if encoder.centers:
        # As the encoder adds them, so that equal ones stay equal to the bit.
        center = encoder.center(stream)
        offset = center if offset is None else center + offset
        decoder_bias = center + decoder_bias
    applies = offset is not None and torch.equal(offset, decoder_bias)
    if offset is not None and not applies:
        bias = (bias.double() - offset.double() @ encoder.weight.double()).float()
    tensors = {
        "W_enc": encoder.weight,
        "b_enc": bias,
        "W_dec": dictionary.decoder,
        "b_dec": decoder_bias,
    }
    if bias is encoder.bias and decoder_bias is dictionary.decoder_bias:
        return applies, tensors, {}
    originals = {"b_enc": encoder.bias, "b_dec": dictionary.decoder_bias}
    originals |= {} if encoder.subtract is None else {"subtract": encoder.subtract}
    return applies, tensors, originals | {f"{CENTER}{k}": v for k, v in encoder.centers.items()}


def _write(root: Path, parts: Mapping[Path, _Folder], part: str, dtype: torch.dtype) -> None:
    """Write everything beside what is there, and move it into place when all of it is written.

    The weights go first, and name the saving that their ``cfg.json`` must name too: in between the
    two disagree, and are refused.
    """
    saving = _digest(parts, dtype)
    folders = [folder for folder in (*parts, root) if not folder.exists()]
    pieces: dict[Path, Path] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(_drop_empty, folders)
        try:
            for folder, content in parts.items():
                folder.mkdir(parents=True, exist_ok=True)
                target = folder / WEIGHTS
                pieces[target] = stack.enter_context(beside(target))
                _write_weights(content, pieces[target], dtype, {SAVING: saving, PART: part})
            for folder, content in parts.items():
                target = folder / CONFIG
                pieces[target] = stack.enter_context(beside(target))
                metadata = {**content.config["metadata"], SAVING: saving}
                text = json.dumps({**content.config, "metadata": metadata}, indent=2)
                pieces[target].write_text(f"{text}\n", encoding="utf-8")
            _place(root, pieces, part)
        except (OSError, SafetensorError) as error:
            raise VlmEditError(f"cannot write the dictionary to {str(root)!r}: {error}") from error


def _drop_empty(folders: Iterable[Path]) -> None:
    """Take folders away again that were made for what could not be written."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _place(root: Path, pieces: Mapping[Path, Path], part: str) -> None:
    """Move what is written to where it belongs, then take out what was there arranged otherwise."""
    stale = [] if part else list(halves(root))
    if part and (root / CONFIG).is_file() and (root / WEIGHTS).is_file():
        stale = [root]
    for target, piece in pieces.items():
        if target.name == CONFIG:
            (target.parent / CENTERS).unlink(missing_ok=True)  # which were beside, once
        piece.replace(target)
    for folder in stale:
        for name in (CONFIG, WEIGHTS, CENTERS):  # without the first nobody reads the others
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _digest(parts: Mapping[Path, _Folder], dtype: torch.dtype) -> str:
    """Return a digest of all that is written."""
    hasher = hashlib.blake2b(str(dtype).encode(), digest_size=16)
    for content in parts.values():
        hasher.update(json.dumps(content.config, sort_keys=True).encode())
        for tensors in (content.tensors, content.folded):
            for name, tensor in sorted(tensors.items()):
                hasher.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _copies(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory, as tied weights do.
    return {k: v.detach().to("cpu", dtype, copy=True).contiguous() for k, v in tensors.items()}


def _write_weights(
    content: _Folder, path: Path, dtype: torch.dtype, header: Mapping[str, str]
) -> None:
    tensors = _copies(content.tensors, dtype)
    statements = {name: value for name, value in header.items() if value}
    if content.folded:
        statements[FOLDED] = base64.b64encode(save(_copies(content.folded))).decode()
        statements[MARK] = mark(tensors["b_enc"], tensors["b_dec"])
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, {HEADER: json.dumps(statements)})
    path.chmod(mode)  # safetensors writes files that only their owner may read
