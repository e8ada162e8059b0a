"""The format of saev (OSU-NLP-Group): a line of JSON, then what torch.save writes, in one file.

``code = act(x @ W_enc + b_enc)``, ``x ~ code @ W_dec + b_dec``. Files whose header has no
``schema`` (saev 0.1.0) are relu of ``x - b_dec``. Those of schema 1 come from either side of the
day that subtraction was dropped: they are read where b_dec is zero, or where the header's form is
the later one. Matryoshka training leaves no trace in a file, and changes nothing in use.

No header says what the dictionary was trained on. The loaders of that time could subtract a mean
and divide by a scale, which are not in the file either, as for the DINOv2 dictionaries:
``Dictionary.standardised`` puts them in. The layer stands in the ``config.json`` that later
versions write beside the file, and is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    MOST_JSON,
    Source,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
    parse_json,
    read_torch,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, VlmEditError

FILE, CONFIG = "sae.pt", "config.json"

_OLDEST = {"d_vit", "exp_factor"}
_HEADER = {"schema", "cfg", "cls", "commit", "lib"}
_NAMES = {"W_enc", "b_enc", "W_dec", "b_dec"}
_THRESHOLD = "activation.threshold"
# What configured the training, and nothing in use.
_TRAINING = {
    *("n_reinit_samples", "reinit_blend", "reinit_enc_dec_tranpose", "seed", "sparsity_coeff"),
    *("ghost_grads", "use_ghost_grads", "l1_coeff", "remove_parallel_grads", "normalize_w_dec"),
}
_SIZES = {"d_model", "d_vit", "d_sae", "exp_factor"}
_ACTIVATIONS = ("Relu", "TopK", "BatchTopK")


def recognises(source: Source) -> bool:
    """Say whether a source's first line is such a header, with a zip right behind."""
    try:
        line, start = _head(_file(source))
        header = parse_json(line.decode("utf-8"), source.path)
    except (OSError, UnicodeDecodeError, VlmEditError):
        return False
    return start == b"PK\x03\x04" and (
        header.keys() >= {"schema", "cfg"} or header.keys() >= _OLDEST
    )


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with ``sae.pt``.

    Raises:
        VlmEditError: No such file, a header or tensors that are not valid or do not fit each
            other, a schema or activation that is not known, a threshold that must be told.
    """
    path = _file(source)
    line, header = _header(path)
    config, kind, k, subtracts = _described(path, header)
    tensors = read_torch(path, skip=len(line))
    if not isinstance(tensors, Mapping):
        raise DamagedFile(f"{path} holds a {type(tensors).__name__}, expected tensors by name")
    expect_names(path, tensors, _NAMES, {_THRESHOLD} if kind == "BatchTopK" else set())
    weight, decoder = (expect_matrix(path, tensors, name) for name in ("W_enc", "W_dec"))
    bias, decoder_bias = (expect_vector(path, tensors, name) for name in ("b_enc", "b_dec"))
    _expect_sizes(path, config, weight, decoder)
    if subtracts is None and bool(decoder_bias.any()):
        raise UnknownName(
            f"{path}: a file of schema 1 with a b_dec that is not zero. saev dropped `x - b_dec` "
            "without saying so in these files: see what it does at the commit that the header "
            f"names ({str(header.get('commit'))[:40]}), save the tensors behind the first line "
            "as a state dict of their own, and load that with layout="
        )
    activation, threshold = _activation(path, kind, tensors, hints, len(decoder))
    return StoredDictionary(
        weight=Rows(weight.T, "W_enc"),
        bias=bias,
        decoder=Rows(decoder, "W_dec"),
        decoder_bias=decoder_bias,
        activation=activation,
        threshold=threshold,
        k=None if k is None else min(k, len(decoder)),
        subtract=decoder_bias if subtracts else None,
        info=_info(source),
    )


FORMAT = Format(
    "saev",
    "sae.pt with a JSON header before its tensors",
    recognises,
    read,
    frozenset({"threshold"}),
)


def _file(source: Source) -> Path:
    return source.file(FILE) if source.is_folder else source.path


def _head(path: Path) -> tuple[bytes, bytes]:
    """Return the first line, of at most 1 MiB, with its end; and the four bytes behind it."""
    with path.open("rb") as file:
        if file.peek(1)[:1] != b"{":
            return b"", b""
        return file.readline(MOST_JSON), file.read(4)


def _header(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        line, _ = _head(path)
        header = parse_json(line.decode("utf-8"), path)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path}: its first line is not valid JSON: {error}") from error
    return line, header


def _described(
    path: Path, header: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str, int | None, bool | None]:
    """Return the config, the activation's class, its k; whether b_dec is subtracted, if known."""
    if "schema" not in header:
        _expect_keys(path, header, _SIZES | _TRAINING)
        return header, "Relu", None, True
    _expect_keys(path, header, _HEADER)
    schema, config = header["schema"], header.get("cfg")
    if schema not in (1, 2, 3, 4, 5) or isinstance(schema, bool):
        raise UnknownName(f"{path}: schema {str(schema)[:20]} is not known; known are 1 to 5")
    if not isinstance(config, dict):
        raise DamagedFile(f"{path}: the header's cfg is missing or is not an object")
    options: Mapping[str, Any]
    early = schema == 1 and header.get("cls") in _ACTIVATIONS
    if early:
        _expect_keys(path, config, _SIZES | _TRAINING | {"top_k"})
        kind, options = header["cls"], config
    else:
        _expect_keys(path, config, _SIZES | _TRAINING | {"activation"})
        kind, options = _class(path, config.get("activation"))
    k = expect_whole(path, options, "top_k") if kind == "TopK" else None
    return config, kind, k, None if early else False


def _class(path: Path, activation: Any) -> tuple[str, Mapping[str, Any]]:
    """Return a class and options, as of ``{"cls": "TopK", "params": {"top_k": 32}}``."""
    kind = activation.get("cls") if isinstance(activation, dict) else None
    options = activation.get("params") if isinstance(activation, dict) else None
    if kind not in _ACTIVATIONS or not isinstance(options, dict):
        raise UnknownName(
            f"{path}: activation {str(activation)[:60]!r} is not known; known classes: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    _expect_keys(path, options, {"top_k", "sparsity", "aux", "key", "kind", "momentum"})
    return kind, options


def _expect_keys(path: Path, found: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise DamagedFile(
            f"{path}: the header has {', '.join(unknown)[:200]}, which no known version of saev "
            "writes: it may change the codes"
        )


def _expect_sizes(path: Path, config: Mapping[str, Any], weight: Tensor, decoder: Tensor) -> None:
    d = expect_whole(path, config, "d_model" if "d_model" in config else "d_vit")
    if "d_sae" in config:
        m = expect_whole(path, config, "d_sae")
    else:
        m = d * expect_whole(path, config, "exp_factor")
    for name, matrix, size in (("W_enc", weight, (d, m)), ("W_dec", decoder, (m, d))):
        if tuple(matrix.shape) != size:
            raise DamagedFile(
                f"{path}: the header states {m} features of width {d}, but {name} is "
                f"{tuple(matrix.shape)}, expected {size}"
            )


def _activation(
    path: Path, kind: str, tensors: Mapping[str, Any], hints: Hints, m: int
) -> tuple[str, Tensor | None]:
    """Return the activation and its threshold.

    Both kinds of top-k keep codes below zero; BatchTopK has a threshold in use.
    """
    stored = _THRESHOLD in tensors
    if hints.threshold is not None and (kind != "BatchTopK" or stored):
        raise BadArgument(f"{path}: {kind} here has its own threshold or none: leave it out")
    if kind != "BatchTopK":
        return ("relu" if kind == "Relu" else "topk_signed"), None
    if stored:
        level = expect_scalar(path, tensors, _THRESHOLD)
    elif hints.threshold is not None:
        level = hints.threshold
    else:
        raise BadArgument(
            f"{path}: a BatchTopK of before saev kept its threshold: measure the lowest code that "
            "stays on a batch, and say threshold="
        )
    return "jumprelu", torch.full((m,), level)


def _info(source: Source) -> dict[str, str]:
    """Return the layer, if the run's config lies beside."""
    if not source.is_folder or not source.has(CONFIG):
        return {}
    data = source.json(CONFIG).get("train_data")
    layer = data.get("layer") if isinstance(data, dict) else None
    return {"layer": str(layer)} if isinstance(layer, int) and not isinstance(layer, bool) else {}
