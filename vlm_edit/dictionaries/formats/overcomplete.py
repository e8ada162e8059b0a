"""The format of overcomplete (KempnerInstitute): a ``state_dict()`` saved by torch.

``a = relu(x @ W.T + b)``, ``code = select(a)``, ``x ~ code @ D`` with the rows of D brought to
length 1, times exp(multiplier); no bias of the decoder anywhere. The library brings rows to length
1 when it is switched to ``eval()``, so a file saved while training has rows a step away from it.

The state dicts of SAE, TopKSAE and BatchTopKSAE are alike, and neither k nor BatchTopK's running
threshold is in them. A checkpoint may hold the state dict under ``model_state`` with k beside it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    MOST_PICKLE,
    Source,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import (
    mapping,
    open_mapping,
    peek_mapping,
    torch_files,
)
from vlm_edit.dictionaries.formats.visaebench import is_config
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName

_STATE = "model_state"
# What trainers keep beside it, and what changes no code.
_BESIDE = {"epoch", "step", "loss", "logs", "optimizer_state", "scheduler_state", "k", "top_k"}
_ROWS, _MULTIPLIER = "dictionary._weights", "dictionary.multiplier"
_TO = "encoder.tied_to."  # its names there are those of the dictionary
_LINEAR = {"encoder.final_block.0.weight", "encoder.final_block.0.bias"}
_BATCH_NORM = {
    f"encoder.final_block.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
}
_COUNTER = "encoder.final_block.1.num_batches_tracked"
_BATCH_NORM_EPS = 1e-5  # torch's; another one would not be in the file
_OWN = {_ROWS, "dictionary.Relax"}
# A trainer's step moves a row's length by far less; other normalisations, by far more.
_SHORTEST, _LONGEST, _LOOKED_AT = 0.9, 1.1, 1024

_PLAIN = "save its parts under names of your own and load them with layout="
_REFUSED = (
    ("Q", "it is a QSAE, whose codes are rounded to learned levels: no activation here does that"),
    ("encoder.mlp_blocks.", "its encoder has layers before the last, so it is not one matrix"),
    ("encoder.attention_blocks.", "its encoder mixes tokens, so it is not one matrix"),
    ("encoder.resnet_blocks.", "its encoder mixes positions, so it is not one matrix"),
)
# Of an archetypal SAE: points, mixtures of them, and how far rows are from the mixtures.
_POINTS, _MIXTURES, _RELAXED = "dictionary.C", "dictionary.W", "dictionary.Relax"
_ARCHETYPAL = {_POINTS, _MIXTURES, _RELAXED}
_SUM_OFF = 1e-3


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has this library's names, even if it cannot be opened."""
    contents = peek_mapping(source)
    if is_config(source):  # VisAEBench's, which reads these names in another way
        return False
    inner = contents.get(_STATE, contents)
    if isinstance(inner, Mapping) and inner:
        return not _OWN.isdisjoint(inner)
    return _names_the_library(source)


def _names_the_library(source: Source) -> bool:
    """Say whether a pickle that ``weights_only`` refuses speaks of this library."""
    names = torch_files(source)
    if not names:
        return False
    try:
        with zipfile.ZipFile(source.file(names[0]) if source.is_folder else source.path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(pickles) != 1:
                return False
            with archive.open(pickles[0]) as file:
                text = file.read(MOST_PICKLE)
    except Exception:  # a damaged zip raises anything
        return False
    return b"overcomplete.sae" in text or _ROWS.encode() in text


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file; a model without one encoder matrix; tensors that
            do not fit; k, threshold and activation not told, or told in vain.
    """
    path = source.path
    tensors, k = _state(path, open_mapping(source))
    jumps = "thresholds" in tensors
    rows = _ARCHETYPAL if _POINTS in tensors else {_ROWS}
    encoder, optional = _encoder_names(path, tensors, rows)
    needed = rows | encoder | ({"thresholds"} if jumps else set())
    expect_names(path, tensors, needed, {_MULTIPLIER} | optional)
    decoder = _decoder(path, tensors)
    weight, bias = _encoder(path, tensors, encoder, decoder)
    if jumps:
        if hints.given():
            raise BadArgument(
                f"{path} is a JumpSAE, whose thresholds are in the file: leave out "
                f"{', '.join(hints.given())}"
            )
        activation: str = "jumprelu"
        threshold: Tensor | None = _below(expect_vector(path, tensors, "thresholds").exp())
        k = None
    else:
        activation, k, level = _selection(path, hints, k)
        threshold = None if level is None else _below(torch.full((len(bias),), level))
    return StoredDictionary(
        weight=weight,
        bias=bias,
        decoder=decoder,
        decoder_bias=torch.zeros(decoder.tensor.shape[1]),
        activation=activation,
        threshold=threshold,
        k=k,
    )


FORMAT = Format(
    "overcomplete",
    "a .pt with dictionary._weights, or that under model_state",
    recognises,
    read,
    frozenset({"k", "threshold", "activation"}),
)


def _state(path: object, found: Mapping[str, Any]) -> tuple[Mapping[str, Any], int | None]:
    """Return the state dict, and k if it stands beside."""
    if _STATE not in found:
        return found, None
    unknown = sorted(str(name) for name in set(found) - _BESIDE - {_STATE})
    if unknown:
        raise DamagedFile(
            f"{path}: beside {_STATE} stands {', '.join(unknown)[:200]}, which may change the "
            f"codes: if it does not, save checkpoint[{_STATE!r}] alone and load that"
        )
    counts = [expect_whole(path, found, name) for name in ("k", "top_k") if name in found]
    if len(set(counts)) > 1:
        raise DamagedFile(f"{path}: k is {counts[0]} but top_k is {counts[1]}")
    return mapping(path, found, _STATE), counts[0] if counts else None


def _encoder_names(
    path: object, tensors: Mapping[str, Any], rows: set[str]
) -> tuple[set[str], set[str]]:
    """Return names of the encoder's tensors, which say its kind, and of those it may lack."""
    for start, why in _REFUSED:
        if any(n == start or (n.startswith(start) and "." in start) for n in map(str, tensors)):
            raise DamagedFile(f"{path}: {why}")
    own = {name for name in map(str, tensors) if name.startswith("encoder.")}
    if not own:
        raise UnknownName(
            f"{path}: it has no encoder, as MpSAE and OMPSAE, which search for codes step by step: "
            "no single product with a matrix gives them"
        )
    if any(name.startswith(_TO) for name in own):
        return {_tied(name) for name in (*rows, _MULTIPLIER)}, {"encoder.bias"}
    if "encoder.weight" in own:
        return {"encoder.weight"}, {"encoder.bias"}
    if "encoder.final_block.1.running_mean" in own:
        return _LINEAR | _BATCH_NORM, {_COUNTER}
    if own & _BATCH_NORM:
        raise UnknownName(
            f"{path}: its encoder ends in a layer norm over all features (mlp_ln_1), so a code is "
            "not a product with its feature's row: this cannot be represented"
        )
    return _LINEAR, set()


def _tied(name: str) -> str:
    """Return what a tensor of the dictionary is called where the encoder is tied to it."""
    return name.replace("dictionary.", _TO)


def _decoder(path: object, tensors: Mapping[str, Any]) -> Rows:
    archetypal = _POINTS in tensors
    rows = _archetypes(path, tensors) if archetypal else expect_matrix(path, tensors, _ROWS)
    # Files from before version 0.1.0 lack it.
    factor = expect_scalar(path, tensors, _MULTIPLIER) if _MULTIPLIER in tensors else 0.0
    gain = torch.full((len(rows),), factor).exp()
    if not bool(gain.isfinite().all()):
        raise DamagedFile(f"{path}: exp({_MULTIPLIER}) is not finite: the file is damaged")
    if not archetypal:
        _expect_unit(path, rows)
    return Rows(rows, _RELAXED if archetypal else _ROWS, gain=gain, unit=not archetypal)


def _archetypes(path: object, tensors: Mapping[str, Any]) -> Tensor:
    """Mix the rows of an archetypal dictionary, as the library does when it is evaluated."""
    names = (_POINTS, _MIXTURES, _RELAXED)
    points, mixtures, relaxed = (expect_matrix(path, tensors, name) for name in names)
    if (*mixtures.shape, points.shape[1]) != (len(relaxed), len(points), relaxed.shape[1]):
        raise DamagedFile(
            f"{path}: {_MIXTURES} is {tuple(mixtures.shape)}, {_POINTS} {tuple(points.shape)} and "
            f"{_RELAXED} {tuple(relaxed.shape)}: they do not fit"
        )
    sums = mixtures.float().sum(1)
    if bool((mixtures < 0).any()) or not bool(((sums - 1).abs() < _SUM_OFF).all()):
        raise DamagedFile(
            f"{path}: it is an archetypal SAE whose mixtures ({_MIXTURES}) are no weights that sum "
            "to 1, as they are left by a step of training: call model.eval() and save its "
            "state_dict() anew"
        )
    return mixtures.float() @ points.float() + relaxed.float()


def _expect_unit(path: object, rows: Tensor) -> None:
    some = rows[:: max(1, len(rows) // _LOOKED_AT)].float().norm(dim=1)
    if not bool(((some > _SHORTEST) & (some < _LONGEST)).all()):
        raise DamagedFile(
            f"{path}: rows of {_ROWS} have lengths from {some.min():.3g} to {some.max():.3g}, not "
            "about 1. If the dictionary's normalization is l2, the default, call model.eval() and "
            f"save its state_dict() anew; the file does not name any other, so {_PLAIN}"
        )


def _encoder(
    path: object, tensors: Mapping[str, Any], names: set[str], decoder: Rows
) -> tuple[Rows, Tensor]:
    m = len(decoder.tensor)
    if _tied(_MULTIPLIER) in names:
        _expect_tied(path, tensors, names)
        rows = decoder
    else:
        name = "encoder.weight" if "encoder.weight" in names else "encoder.final_block.0.weight"
        matrix = expect_matrix(path, tensors, name)
        if matrix.shape != decoder.tensor.shape:
            raise BadArgument(
                f"{path}: {name} is {tuple(matrix.shape)}, {_ROWS} is "
                f"{tuple(decoder.tensor.shape)}: they must be equal"
            )
        rows = Rows(matrix, name)
    if "encoder.final_block.0.bias" in names:
        bias = expect_vector(path, tensors, "encoder.final_block.0.bias")
    elif "encoder.bias" in tensors:
        bias = expect_vector(path, tensors, "encoder.bias")
    else:
        bias = torch.zeros(m)
    if len(bias) != m:
        raise DamagedFile(f"{path}: the encoder's bias is of {len(bias)} features, not of {m}")
    return _fold_batch_norm(path, tensors, rows, bias) if names >= _BATCH_NORM else (rows, bias)


def _expect_tied(path: object, tensors: Mapping[str, Any], names: set[str]) -> None:
    """Refuse an encoder that is tied to another dictionary than the one beside it."""
    factors = {expect_scalar(path, tensors, name) for name in (_MULTIPLIER, _tied(_MULTIPLIER))}
    same = [len(factors) == 1]
    for name in names - {_tied(_MULTIPLIER)}:
        pair = (name, name.replace(_TO, "dictionary."))
        tied, own = (expect_matrix(path, tensors, one) for one in pair)
        # Saved together they share their memory, and then nothing is read to compare them.
        same.append(tied.data_ptr() == own.data_ptr() or torch.equal(tied, own))
    if not all(same):
        raise DamagedFile(f"{path}: the encoder is tied to another dictionary than its own")


def _fold_batch_norm(
    path: object, tensors: Mapping[str, Any], rows: Rows, bias: Tensor
) -> tuple[Rows, Tensor]:
    """Fold ``(h - mean) / sqrt(var + eps) * weight + bias``, with stored mean and var."""
    scale, shift, mean, var = (
        expect_vector(path, tensors, f"encoder.final_block.1.{name}")
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    for vector in (scale, shift, mean, var):
        if vector.shape != bias.shape:
            raise DamagedFile(
                f"{path}: the encoder's batch norm is of {len(vector)} features, not {len(bias)}"
            )
    if not bool((var >= 0).all()):
        raise DamagedFile(f"{path}: running_var is below 0: the file is damaged")
    gain = scale / (var + _BATCH_NORM_EPS).sqrt()
    return Rows(rows.tensor, rows.name, gain=gain), (bias - mean) * gain + shift


def _selection(
    path: object, hints: Hints, stated: int | None
) -> tuple[str, int | None, float | None]:
    """Say which codes stay: by what is told, or by k that stands in the file."""
    if hints.k is not None and stated is not None and hints.k != stated:
        raise BadArgument(f"{path} says k={stated}, but it was told k={hints.k}: leave it out")
    k = hints.k if hints.k is not None else stated
    activation: str | None = None
    if hints.threshold is not None and hints.k is None and hints.activation in (None, "jumprelu"):
        activation, k = "jumprelu", None
    elif hints.threshold is None and k is not None and hints.activation in (None, "topk"):
        activation = "topk"
    elif hints == Hints(activation="relu"):
        activation, k = "relu", None
    if activation is None:
        options = (
            ", ".join(f"{name}={value!r}" for name, value in hints.given().items()) or "nothing"
        )
        raise BadArgument(
            f"{path} may be of SAE, TopKSAE or BatchTopKSAE, whose files are alike; it was told "
            f"{options}: say activation='relu' for SAE, k= (its top_k) for TopKSAE, or threshold= "
            "(its running_threshold) for BatchTopKSAE"
        )
    return activation, k, hints.threshold


def _below(threshold: Tensor) -> Tensor:
    """Lower a threshold: codes equal to it stay here, and with ``jumprelu`` would go."""
    return torch.nextafter(threshold, torch.tensor(-torch.inf))
