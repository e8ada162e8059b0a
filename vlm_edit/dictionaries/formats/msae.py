"""The format of MSAE: ``{model, mean_center, scaling_factor, target_norm}`` in one ``.pth``.

Activation, k, soft cap and layer norm stand in the file's name alone, as its ``train.py`` gives
it. A renamed file needs ``activation`` and ``k``; no cap and no layer norm are then taken, for
``train.py`` has no option that sets them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
)
from vlm_edit.dictionaries.formats.torchfile import (
    mapping,
    open_mapping,
    peek_mapping,
    the_torch_file,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName


class _NumpyType:
    """What stands in numpy.dtype's place in the unpickler, and remembers how it was called."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _number(kind: _NumpyType, data: bytes) -> float:
    """Make one number of its bytes, in numpy's place in the unpickler."""
    letter = {"f8": "d", "f4": "f", "i8": "q"}[kind.kind]
    return float(struct.unpack({"<": "<", ">": ">"}[kind.order] + letter, data)[0])


# The files hold numpy numbers. These stand-ins read them: numpy's own would reserve as much memory
# as a file asks for, and no code of numpy needs to run.
_ALLOW = (
    (_NumpyType, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
)

_KEYS = {"model", "mean_center", "scaling_factor", "target_norm"}
_NEEDED = {"encoder", "pre_bias", "latent_bias"}
_JUMP = "activation.log_threshold"
_NAME = re.compile(
    r"(\d{1,9})_(\d{1,9})_([A-Za-z]+)(?:_(\d{1,9}))?(?:_(UW|RW))?"
    r"_(True|False)_(True|False)_(\d{1,9}(?:\.\d{1,9})?)_.*"
)
_OWN: dict[str, str] = {
    "ReLU": "relu",
    "Identity": "identity",
    "TopK": "topk_signed",
    "TopKReLU": "topk",
    "JumpReLU": "jumprelu",
}
# Of these the library itself also gives relu of all, and the k largest of it for any k.
_OPEN = ("ReLU", "TopKReLU", "BatchTopKReLU")


@dataclass(frozen=True)
class _Named:
    """What a file's name says."""

    shape: tuple[int, int]
    activation: str
    k: int | None
    nested: bool
    tied: bool
    normalize: bool
    cap: float


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has these four keys and a model with ``latent_bias``."""
    contents = peek_mapping(source, _ALLOW)
    model = contents.get("model")
    return set(contents) == _KEYS and isinstance(model, dict) and set(model) >= _NEEDED


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, contents that do not fit, or neither name nor
            caller says what the activation is.
    """
    path, contents = source.path, open_mapping(source, _ALLOW)
    expect_names(path, contents, _KEYS)
    tensors = mapping(path, contents, "model")
    jumps = {_JUMP} & set(tensors)
    # Counts of training, which no code depends on.
    expect_names(path, tensors, _NEEDED, {"decoder", "latents_activation_frequency"} | jumps)
    named = _read_name(the_torch_file(source) or path.name)
    activation, k = _activation(path, named, hints, bool(jumps))
    weight, tied = expect_matrix(path, tensors, "encoder").T, "decoder" not in tensors
    decoder = weight if tied else expect_matrix(path, tensors, "decoder")
    if decoder.shape != weight.shape:
        raise DamagedFile(
            f"{path}: encoder is {tuple(weight.T.shape)} and decoder {tuple(decoder.shape)}"
        )
    _expect_as_named(path, named, weight, tied)
    mean, factor = _affine(
        path, contents, weight.shape[1], normed=named is not None and named.normalize
    )
    # (x - mean) * factor goes into the encoder, and its inverse behind the decoder.
    scale = mean.new_full(mean.shape, factor)
    bias = _of_width(path, tensors, "pre_bias", len(mean)) / factor + mean
    return StoredDictionary(
        weight=Rows(weight, "encoder", scale=scale),
        bias=expect_vector(path, tensors, "latent_bias"),
        decoder=Rows(decoder, "encoder" if tied else "decoder", scale=1 / scale),
        decoder_bias=bias,
        activation=activation,
        threshold=expect_vector(path, tensors, _JUMP).exp() if jumps else None,
        k=k,
        subtract=bias,
        norm="layer_norm" if named is not None and named.normalize else "none",
        soft_cap=named.cap if named is not None and named.cap > 0 else None,
    )


FORMAT = Format(
    "msae",
    "a .pth with model, mean_center, scaling_factor and target_norm",
    recognises,
    read,
    frozenset({"k", "activation"}),
)


def _affine(path: Path, found: Mapping[str, Any], d: int, normed: bool) -> tuple[Tensor, float]:
    """Return mean [d] and factor that the input is brought through first."""
    mean = _of_width(path, found, "mean_center", d)
    factor = expect_scalar(path, found, "scaling_factor")
    if not 1e-30 < factor < 1e30:
        raise DamagedFile(f"{path}: scaling_factor is {factor}, expected a number above 0")
    if normed and (factor != 1 or bool(mean.count_nonzero())):
        raise UnknownName(
            f"{path}: a layer norm after a mean and a factor is not supported; supported: either"
        )
    return mean, factor


def _of_width(path: Path, values: Mapping[str, Any], name: str, d: int) -> Tensor:
    vector = expect_vector(path, values, name)
    if len(vector) != d:
        raise DamagedFile(f"{path}: {name} has shape {tuple(vector.shape)}, expected {(d,)}")
    return vector


def _read_name(name: str) -> _Named | None:
    """Read what ``train.py`` put into a file's name; None if it has been renamed."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    m, d, activation, number, nested, tied, normalize, cap = parts.groups()
    return _Named(
        (int(m), int(d)),
        activation,
        int(number) if number and "TopK" in activation else None,
        nested is not None,
        tied == "True",
        normalize == "True",
        float(cap),
    )


def _activation(
    path: Path, named: _Named | None, hints: Hints, jumps: bool
) -> tuple[str, int | None]:
    own = "JumpReLU" if jumps else named.activation if named else None
    if (own == "JumpReLU") != jumps:
        raise DamagedFile(f"{path}: the name says JumpReLU, but {_JUMP} is missing: damaged")
    activation = hints.activation or (_OWN.get(own) if own else None)
    if activation is None:
        raise BadArgument(
            f"{path}: {_why(own)}: pass activation='relu', or activation='topk' and k="
        )
    free = own is None and activation in ("relu", "topk", "topk_signed", "identity")
    if not (
        free
        or (own in _OPEN and activation in ("relu", "topk"))
        or activation == _OWN.get(own or "")
    ):
        raise UnknownName(
            f"{path}: activation {activation!r} does not go with {own or 'this format'}"
        )
    if activation not in ("topk", "topk_signed"):
        if hints.k is not None:
            raise BadArgument(
                f"{path}: k={hints.k} goes with activation='topk', not {activation!r}"
            )
        return activation, None
    return activation, _k(path, named, hints)


def _why(own: str | None) -> str:
    if own is None:
        return "its name does not say the activation, and the file does not keep it"
    if "abs" in own:
        return f"{own} codes are absolute values, which are not supported"
    if own.startswith("BatchTopK"):
        return f"{own} codes of one example depend on its batch"
    return f"activation {own} is not known"


def _k(path: Path, named: _Named | None, hints: Hints) -> int:
    known = named.k if named is not None else None
    if known is None and hints.k is None:
        raise BadArgument(f"{path}: the file does not keep how many features stay: pass k=")
    # A nested dictionary is trained for several k, of which the name has the smallest.
    fixed = named is not None and named.activation in ("TopK", "TopKReLU") and not named.nested
    if fixed and hints.k not in (None, known):
        raise BadArgument(f"{path}: k={hints.k} was passed, but the name says {known}: leave it "
                           "out, or rename the file")  # fmt: skip
    k = hints.k if hints.k is not None else known
    assert k is not None
    return k


def _expect_as_named(path: Path, named: _Named | None, weight: Tensor, tied: bool) -> None:
    if named is None:
        return
    if named.shape != tuple(weight.shape):
        raise DamagedFile(
            f"{path}: the name says {named.shape[0]} features of width {named.shape[1]}, but "
            f"encoder is {tuple(weight.T.shape)}: it is another dictionary's name"
        )
    if named.tied != tied:
        raise DamagedFile(
            f"{path}: the name says tied {named.tied}, but the decoder is "
            f"{'missing' if tied else 'there'}: it is another dictionary's name"
        )
