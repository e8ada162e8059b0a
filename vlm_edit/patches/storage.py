"""Patches on disk: one safetensors file with a JSON header. Reading one runs no code from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encoder, Slice
from vlm_edit.edits import Splice, rule_from_dict
from vlm_edit.errors import VlmEditError
from vlm_edit.files import read_tensors, write_tensors
from vlm_edit.hooks import Selection
from vlm_edit.patches.binding import Binding

VERSION = 1


def write(
    path: str | os.PathLike[str],
    bindings: Sequence[Binding],
    host: Mapping[str, Any],
    info: Mapping[str, str],
) -> None:
    """Write a patch, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for number, binding in enumerate(bindings):
        part, encoder = binding.splice.slice, binding.splice.slice.encoder
        stored = {
            "weight": encoder.weight,
            "bias": encoder.bias,
            "decoder": part.decoder,
            "threshold": encoder.threshold,
            "subtract": encoder.subtract,
        } | {f"center.{stream}": center for stream, center in encoder.centers.items()}
        tensors |= {f"{number}.{name}": t for name, t in stored.items() if t is not None}
        entries.append(
            {
                "site": binding.site,
                **_told(binding.selection),
                "rules": [rule.to_dict() for rule in binding.splice.rules],
                "features": list(part.features),
                "n_features": part.n_features,
                "activation": encoder.activation,
                "k": encoder.k,
                "norm": encoder.norm,
                "soft_cap": encoder.soft_cap,
            }
        )
    header = {"version": VERSION, "host": dict(host), "info": dict(info), "bindings": entries}
    write_tensors(path, tensors, header, "patch")


def read(
    path: str | os.PathLike[str],
) -> tuple[tuple[Binding, ...], dict[str, Any], dict[str, str]]:
    """Bindings, host fingerprint and info of a patch file.

    Raises:
        VlmEditError: Not such a file, damaged, or written by a newer version.
    """
    header, tensors = _read(Path(path))
    try:
        bindings = []
        for number, entry in enumerate(header["bindings"]):
            rules = tuple(rule_from_dict(values) for values in entry["rules"])
            part = _slice(entry, _take(tensors, f"{number}."))
            selection = Selection(
                entry["tokens"], entry["phase"], entry["steps"], entry["positions"]
            )
            bindings.append(Binding(str(entry["site"]), Splice(part, rules), selection))
        host = _expect_fingerprint(header["host"], {binding.site for binding in bindings})
        info = {str(key): str(value) for key, value in header["info"].items()}
    except VlmEditError as error:
        raise VlmEditError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        raise VlmEditError(
            f"{path}: the header is damaged ({type(error).__name__}: {error}); fetch the file anew"
        ) from error
    if tensors:
        raise VlmEditError(
            f"{path}: tensors that no edit uses: {', '.join(sorted(tensors))}; the file is damaged"
        )
    return tuple(bindings), host, info


def _told(selection: Selection) -> dict[str, Any]:
    return {item.name: getattr(selection, item.name) for item in fields(selection) if item.init}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, tensors = read_tensors(path, "patch")
    if header.get("version") != VERSION:
        raise VlmEditError(
            f"{path} has patch format {header.get('version')!r}, this version reads {VERSION}: "
            "update vlm-edit"
        )
    return header, tensors


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _slice(entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> Slice:
    centers = _take(tensors, "center.")
    decoder = tensors.pop("decoder")
    encoder = Encoder(
        weight=tensors.pop("weight"),
        bias=tensors.pop("bias"),
        activation=entry["activation"],
        threshold=tensors.pop("threshold", None),
        k=entry["k"],
        subtract=tensors.pop("subtract", None),
        norm=entry["norm"],
        centers=centers,
        soft_cap=entry.get("soft_cap"),
    )
    if tensors:
        raise VlmEditError(f"tensors of unknown use: {', '.join(sorted(tensors))}")
    features, total = tuple(entry["features"]), entry["n_features"]
    if not all(type(n) is int for n in (*features, total)):
        raise VlmEditError("features and their number must be whole numbers")
    if list(features) != sorted(set(features)) or not 0 <= features[0] <= features[-1] < total:
        raise VlmEditError(f"features {features[:3]}... are not rising numbers below {total}")
    expected = (len(features), encoder.weight.shape[0])
    coded = total if encoder.competes else len(features)
    if tuple(decoder.shape) != expected or encoder.weight.shape[1] != coded:
        raise VlmEditError(
            f"shapes do not fit {len(features)} features: encoder {tuple(encoder.weight.shape)}, "
            f"decoder {tuple(decoder.shape)}"
        )
    if decoder.dtype != torch.float32:
        raise VlmEditError(f"the decoder is {decoder.dtype}, expected torch.float32")
    columns = torch.tensor(features) if encoder.competes else None
    return Slice(features, encoder, decoder, total, columns)


def _expect_fingerprint(host: Any, sites: set[str]) -> dict[str, Any]:
    if not sites or not sites <= set(host["sites"]):
        raise VlmEditError(
            f"the patch edits the sites {sorted(sites)}, its host has {sorted(host['sites'])}: "
            "the file is damaged"
        )
    for site in host["sites"].values():
        if not isinstance(site["width"], int):
            raise VlmEditError(f"the host's width is {site['width']!r}, expected a whole number")
        for weights in site["weights"].values():
            if weights is not None and not all(isinstance(v, float) for v in weights):
                raise VlmEditError("the host's fingerprint holds something else than numbers")
    return {
        "architecture": host["architecture"],
        "model_type": host["model_type"],
        "sites": host["sites"],
    }
