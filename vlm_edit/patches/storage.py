"""Patches on disk: one safetensors file with a JSON header. Reading one runs no code from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit._version import __version__
from vlm_edit.dictionaries import Encoder, Slice
from vlm_edit.edits import Gate, Keep, Splice, expect_savable, rule_from_dict
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, VlmEditError
from vlm_edit.ground.files import has_checksum, read_header, read_tensors, write_tensors
from vlm_edit.hooks import Selection
from vlm_edit.patches.binding import Binding

VERSION = 3
_BESIDE = 4  # of patches that read other sites than they edit, which version 3 would not notice
_READ = (1, 2, 3, _BESIDE)
_OLD_TEXT = {"text": "text+special"}  # what formats 1 and 2 meant by it


def write(
    path: str | os.PathLike[str],
    bindings: Sequence[Binding],
    host: Mapping[str, Any],
    info: Mapping[str, str],
) -> None:
    """Write a patch, whole or not at all.

    Raises:
        BadArgument: A rule that could not be read from it.
    """
    tensors: dict[str, Tensor] = {}
    entries = []
    for number, binding in enumerate(bindings):
        expect_savable(binding.splice.rules)
        part, encoder = binding.splice.slice, binding.splice.slice.encoder
        weights = _weights(binding.splice)
        tensors |= {f"{number}.{name}": t for name, t in weights.items() if t is not None}
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
                "dictionary": binding.told(),
                "schedule": None if binding.schedule is None else list(binding.schedule),
                "gate": None if binding.splice.gate is None else binding.splice.gate.least,
                **({"reads": list(binding.reads)} if binding.reads else {}),
                **({"across": binding.across} if binding.reads and binding.across else {}),
            }
        )
    header = {
        "version": _BESIDE if any(binding.reads for binding in bindings) else VERSION,
        "versions": _versions(),
        "host": dict(host),
        "info": dict(info),
        "bindings": entries,
    }
    write_tensors(path, tensors, header, "patch")


def _weights(splice: Splice) -> dict[str, Tensor | None]:
    """Return the tensors of an edit by name."""
    part, encoder = splice.slice, splice.slice.encoder
    weights = {
        "weight": encoder.weight,
        "bias": encoder.bias,
        "decoder": part.decoder,
        "threshold": encoder.threshold,
        "subtract": encoder.subtract,
    } | {f"center.{stream}": center for stream, center in encoder.centers.items()}
    if splice.gate is not None:
        weights |= {"gate.decoder": splice.gate.decoder, "gate.bias": splice.gate.bias}
    return weights


def read(
    path: str | os.PathLike[str], verify: bool = True
) -> tuple[tuple[Binding, ...], dict[str, Any], dict[str, str], dict[str, str]]:
    """Read the bindings, host fingerprint, info and versions of a patch file.

    Raises:
        VlmEditError: Not such a file, damaged, or written by a newer version.
    """
    header, tensors = _read(Path(path))
    try:
        parts = _parts(header, dict(tensors))
        if verify and (header["version"] > 1 or "checksum" in header):
            _expect_checksum(header, tensors)
    except VlmEditError as error:  # what is no possible argument is no possible file either
        kind = UnknownName if isinstance(error, UnknownName) else DamagedFile
        raise kind(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        raise DamagedFile(
            f"{path}: the header is damaged ({type(error).__name__}: {error}); fetch the file anew"
        ) from error
    return parts


def is_patch(path: str | os.PathLike[str]) -> bool | None:
    """Tell by its header whether a file is a patch; None where none can be read."""
    try:
        return "bindings" in (read_header(path) or {})
    except DamagedFile:
        return None


def _parts(
    header: Mapping[str, Any], tensors: dict[str, Tensor]
) -> tuple[tuple[Binding, ...], dict[str, Any], dict[str, str], dict[str, str]]:
    bindings = []
    for number, entry in enumerate(header["bindings"]):
        rules = tuple(rule_from_dict(values) for values in entry["rules"])
        own = _take(tensors, f"{number}.")
        gate = _gate(entry.get("gate"), _take(own, "gate."))
        reads = tuple(str(name) for name in entry.get("reads") or ())
        if bool(reads) and header["version"] < _BESIDE:
            raise DamagedFile("it reads other sites, which its format does not know")
        part = _slice(entry, own, whole=gate is not None, apart=bool(reads))
        for rule in rules:  # counting all others of any number that a file names may take forever
            if isinstance(rule, Keep) and part.n_features > len(part.features) + len(rule.features):
                raise DamagedFile(f"it has not all features that {rule.kind!r} touches")
        if gate is not None and gate.decoder.shape != (part.n_features, part.decoder.shape[1]):
            raise DamagedFile(
                f"the gate's decoder is {tuple(gate.decoder.shape)}, expected "
                f"{(part.n_features, part.decoder.shape[1])}"
            )
        tokens = entry["tokens"]
        if header["version"] < 3:
            tokens = _OLD_TEXT.get(tokens, tokens)
        selection = Selection(tokens, entry["phase"], entry["steps"], entry["positions"])
        bindings.append(
            Binding(
                str(entry["site"]),
                Splice(part, rules, gate),
                selection,
                dictionary=_dictionary(entry.get("dictionary")),
                schedule=entry.get("schedule"),
                reads=reads,
                across=str(entry.get("across") or ""),
            )
        )
    if tensors:
        raise DamagedFile(
            f"tensors that no edit uses: {', '.join(sorted(tensors))}; the file is damaged"
        )
    names = {name for binding in bindings for name in (binding.site, *binding.reads)}
    host = _expect_fingerprint(header["host"], names)
    versions = _texts(header["versions"]) if header["version"] > 1 else {}
    return tuple(bindings), host, _texts(header["info"]), versions


def _told(selection: Selection) -> dict[str, Any]:
    return {item.name: getattr(selection, item.name) for item in fields(selection) if item.init}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, tensors = read_tensors(path, "patch", verify=False)
    version = header.get("version")
    if "bindings" not in header:
        raise DamagedFile(
            f"{path} is no patch: its header names no edits. The weights of a dictionary go where "
            "a dictionary is asked for"
        )
    if type(version) is not int or version not in _READ:
        raise DamagedFile(
            f"{path} has patch format {version!r}, this version reads {_READ[0]} to {_READ[-1]}: "
            "update vlm-edit"
        )
    return header, tensors


def _versions() -> dict[str, str]:
    """Return the versions of what has a part in a patch; transformers' only if it is loaded."""
    versions = {"vlm_edit": __version__, "torch": torch.__version__}
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        versions["transformers"] = str(getattr(transformers, "__version__", "unknown"))
    return versions


def _expect_checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if not has_checksum(header, tensors):
        raise DamagedFile(
            "it is not what was saved, a byte or more has changed: fetch the file anew, or load it "
            "as it is with verify=False"
        )


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _dictionary(told: Any) -> dict[str, Any] | None:
    """Return what a file tells of the dictionary, if it does and holds together."""
    if told is None:
        return None
    numbers, words = (told["features"], told["width"]), (told["activation"], told["norm"])
    if not all(type(n) is int for n in numbers) or not all(isinstance(w, str) for w in words):
        raise DamagedFile("what is told of the dictionary is damaged: fetch the file anew")
    return {
        "digest": str(told["digest"]),
        "features": told["features"],
        "width": told["width"],
        "activation": told["activation"],
        "norm": told["norm"],
        "centred": [str(stream) for stream in told["centred"]],
        "info": _texts(told["info"]),
    }


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _gate(least: float | None, tensors: dict[str, Tensor]) -> Gate | None:
    """Return a gate; without one there must be no tensors of it."""
    if least is None:
        if tensors:
            raise DamagedFile("tensors of a gate, and no gate")
        return None
    if set(tensors) != {"decoder", "bias"}:
        raise BadArgument("a gate needs the tensors gate.decoder and gate.bias, and no others")
    return Gate(least, tensors["decoder"], tensors["bias"])


def _slice(
    entry: Mapping[str, Any], tensors: dict[str, Tensor], whole: bool = False, apart: bool = False
) -> Slice:
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
        raise UnknownName(f"tensors of unknown use: {', '.join(sorted(tensors))}")
    features, total = tuple(entry["features"]), entry["n_features"]
    if not all(type(n) is int for n in (*features, total)):
        raise BadArgument("features and their number must be whole numbers")
    if list(features) != sorted(set(features)) or not 0 <= features[0] <= features[-1] < total:
        raise DamagedFile(f"features {features[:3]}... are not rising numbers below {total}")
    width = decoder.shape[-1] if apart else encoder.weight.shape[0]
    shape = (len(features), width)
    whole = whole or encoder.competes
    coded = total if whole else len(features)
    if tuple(decoder.shape) != shape or encoder.weight.shape[1] != coded:
        raise DamagedFile(
            f"shapes do not fit {len(features)} features: encoder {tuple(encoder.weight.shape)}, "
            f"decoder {tuple(decoder.shape)}"
        )
    if decoder.dtype != torch.float32:
        raise DamagedFile(f"the decoder is {decoder.dtype}, expected torch.float32")
    columns = torch.tensor(features) if whole else None
    return Slice(features, encoder, decoder, total, columns)


def _expect_fingerprint(host: Any, sites: set[str]) -> dict[str, Any]:
    if not sites or not sites <= set(host["sites"]):
        raise DamagedFile(
            f"the patch edits the sites {sorted(sites)}, its host has {sorted(host['sites'])}: "
            "the file is damaged"
        )
    for site in host["sites"].values():
        if not isinstance(site["width"], int):
            raise DamagedFile(f"the host's width is {site['width']!r}, expected a whole number")
        for weights in site["weights"].values():
            if weights is not None and not all(isinstance(v, float) for v in weights):
                raise DamagedFile("the host's fingerprint holds something else than numbers")
        for piece in site.get("held", {}).values():
            _expect_held(piece)
        if not all(isinstance(why, str) for why in site.get("unread", {}).values()):
            raise DamagedFile("the host's fingerprint does not say in words what is not read")
    for key in ("architecture", "model_type", "name", "licence"):
        if not isinstance(host.get(key), str | None):
            raise DamagedFile(f"the host's {key} is {host[key]!r}, expected text")
    fingerprint = {key: host[key] for key in ("architecture", "model_type", "sites")}
    return fingerprint | {key: host[key] for key in ("name", "licence") if key in host}


def _expect_held(held: Mapping[str, Any]) -> None:
    """Refuse samples that are not of a tensor's entries."""
    size, places, values = held["of"], held["at"], held["values"]
    if not all(type(n) is int for n in (size, *places)) or not all(
        isinstance(v, float) for v in values
    ):
        raise DamagedFile("the host's fingerprint holds something else than numbers")
    if len(places) != len(values) or not all(0 <= place < size for place in places):
        raise DamagedFile(f"the host's fingerprint samples places outside of 0 to {size - 1}")
