"""The format of dictionary_learning, and of its fork inside sae-for-vlm.

``ae.pt`` or ``checkpoints/ae_N.pt``, a state dict by ``torch.save``, with ``config.json`` in the
training's folder. https://github.com/saprmarks/dictionary_learning has the seven classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
    read_json,
)
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, VlmEditError

CONFIG, WEIGHTS, CHECKPOINTS = "config.json", "ae.pt", "checkpoints"

_LINEAR = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
_PLAIN = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})
_KEYS: dict[str, frozenset[str]] = {
    "AutoEncoder": _LINEAR | {"bias"},
    "AutoEncoderNew": _LINEAR | {"decoder.bias"},
    "GatedAutoEncoder": frozenset(
        {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"}
    ),
    "JumpReluAutoEncoder": _PLAIN | {"threshold"},
    "AutoEncoderTopK": _LINEAR | {"b_dec", "k", "threshold"},
    "BatchTopKSAE": _LINEAR | {"b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": _PLAIN | {"k", "threshold", "group_sizes"},
}
_SPELLINGS = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
_COUNTED = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
# The first files of these classes had no buffers: the config, or the user, says what they held.
_LATER = frozenset({"k", "threshold"})
# Other libraries write these names too, so without a config the file's own name must fit.
_COMMON = ("AutoEncoderNew", "JumpReluAutoEncoder")
_BACKUP = {"ae", "optimizer", "norm_factor"}
_NAMES = re.compile(r"ae(_\d+)?\.pt")


def recognises(source: Source) -> bool:
    """Say whether a source is a file, or a folder of files, in this format."""
    try:
        path = _weights(source.path)
    except VlmEditError:
        return True  # several checkpoints, none of them named
    if path is None or not path.is_file():
        return False
    state = source.peek_torch(None if path == source.path else _inside(source, path))
    if not isinstance(state, dict):
        return False
    if set(state) >= _BACKUP:
        return True
    fits = _fitting(state)
    if not fits:
        return False
    named = _NAMES.fullmatch(path.name) is not None or "dict_class" in _peek_trainer(path)
    return named or fits[0] not in _COMMON


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a training's folder, its checkpoints' folder, or one file.

    Raises:
        VlmEditError: No such file or several, a backup of a training under way, tensors that do
            not fit the class, a class that nothing names, or a threshold never calibrated.
    """
    path = _weights(source.path)
    if path is None or not path.is_file():
        raise DamagedFile(f"there is neither {WEIGHTS} nor {CHECKPOINTS}/ae_N.pt")
    state = source.torch(None if path == source.path else _inside(source, path))
    if not isinstance(state, dict):
        raise DamagedFile(f"{path} holds a {type(state).__name__}, expected a state dict")
    if set(state) >= _BACKUP:
        raise DamagedFile(
            f"{path} is the backup of a training under way, whose biases are still those of "
            f"normalised activations: let it end and load the {WEIGHTS} written then, or load a "
            f"{CHECKPOINTS}/ae_N.pt"
        )
    trainer = _trainer(path)
    kind = _class(path, state, trainer, hints)
    needed = _KEYS[kind] - (_LATER if kind in _COUNTED else frozenset())
    expect_names(path, state, set(needed), set(_KEYS[kind]))
    contents = _Found(path, state, trainer, hints)
    stored = contents.simple(kind) if kind not in _COUNTED else contents.counted(kind)
    contents.expect_sizes(stored)
    return stored


FORMAT = Format(
    "dictionary_learning",
    f"{WEIGHTS} or {CHECKPOINTS}/ae_N.pt, beside {CONFIG}",
    recognises,
    read,
    frozenset({"activation", "k", "threshold"}),
)


@dataclass(frozen=True, eq=False)
class _Found:
    """A state dict with all that is known of it."""

    path: Path
    state: Mapping[str, Any]
    trainer: Mapping[str, Any]
    hints: Hints

    def simple(self, kind: str) -> StoredDictionary:
        """Make a dictionary of a class that knows no k."""
        if self.hints.given():
            raise BadArgument(
                f"{kind} keeps {', '.join(self.hints.given())} itself or has none: leave it out"
            )
        if kind == "GatedAutoEncoder":
            return self._gated()
        if kind == "JumpReluAutoEncoder":
            return self._stored("b_dec", False, "jumprelu", self._vector("threshold"))
        name = "bias" if kind == "AutoEncoder" else "decoder.bias"
        return self._stored(name, kind == "AutoEncoder", "relu")

    def counted(self, kind: str) -> StoredDictionary:
        """Make a dictionary that was trained with k active features, each time or on average."""
        activation = self.hints.activation or ("topk" if kind == "AutoEncoderTopK" else "jumprelu")
        if activation not in ("topk", "jumprelu"):
            raise BadArgument(
                f"{kind} has activation 'jumprelu' (its threshold) or 'topk' (the k largest), not "
                f"{activation!r}"
            )
        if "group_sizes" in self.state:
            self._expect_groups()
        k = self._k(needed=activation == "topk")
        if activation == "jumprelu":
            height = self._threshold(kind)
            bias = self._vector("b_enc" if "b_enc" in self.state else "encoder.bias")
            threshold = torch.full_like(bias, height)
            return self._stored("b_dec", True, "jumprelu", threshold, expected=k)
        if self.hints.threshold is not None:
            raise BadArgument("activation 'topk' has no threshold: leave it out")
        return self._stored("b_dec", True, "topk", k=k)

    def expect_sizes(self, stored: StoredDictionary) -> None:
        """Refuse a config that is not of these tensors."""
        sizes = (("activation_dim", stored.width), ("dict_size", stored.n_features))
        for name, size in sizes:
            stated = self.trainer.get(name)
            if stated is not None and stated != size:
                raise DamagedFile(
                    f"{CONFIG} states {name} = {str(stated)[:40]}, the tensors of "
                    f"{self.path.name} have {size}: the two files are not of one dictionary"
                )

    def _gated(self) -> StoredDictionary:
        """Make the gate a threshold on the magnitude, with which it shares a weight."""
        gain = self._vector("r_mag").exp()
        bias, gate = self._vector("mag_bias"), self._vector("gate_bias")
        if not bool(gain.isfinite().all()) or len({len(gain), len(bias), len(gate)}) > 1:
            raise DamagedFile(
                f"{self.path}: r_mag, mag_bias and gate_bias are no finite vectors of one size"
            )
        center = self._vector("decoder_bias")
        return StoredDictionary(
            weight=Rows(self._matrix("encoder.weight"), "encoder.weight", gain),
            bias=bias,
            decoder=Rows(self._matrix("decoder.weight").T, "decoder.weight"),
            decoder_bias=center,
            activation="jumprelu",
            threshold=bias - gate * gain,
            subtract=center,
            info=self._info(),
        )

    def _stored(
        self,
        decoder_bias: str,
        subtracts: bool,
        activation: str,
        threshold: Tensor | None = None,
        k: int | None = None,
        expected: int | None = None,
    ) -> StoredDictionary:
        center = self._vector(decoder_bias)
        if "W_enc" in self.state:
            weight, decoder = self._matrix("W_enc").T, self._matrix("W_dec")
            names = ("W_enc", "b_enc", "W_dec")
        else:
            weight, decoder = self._matrix("encoder.weight"), self._matrix("decoder.weight").T
            names = ("encoder.weight", "encoder.bias", "decoder.weight")
        return StoredDictionary(
            weight=Rows(weight, names[0]),
            bias=self._vector(names[1]),
            decoder=Rows(decoder, names[2]),
            decoder_bias=center,
            activation=activation,
            threshold=threshold,
            k=k,
            subtract=center if subtracts else None,
            info=self._info() | ({} if expected is None else {"k": str(expected)}),
        )

    def _k(self, needed: bool) -> int | None:
        known = {
            place: expect_whole(where, values, "k")
            for place, where, values in (
                (self.path.name, self.path, self.state),
                (CONFIG, CONFIG, self.trainer),
                ("the argument", "the argument", self.hints.given()),
            )
            if "k" in values
        }
        if len(set(known.values())) > 1:
            summary = ", ".join(f"{place} {k}" for place, k in known.items())
            raise DamagedFile(f"k differs ({summary}): the files are not of one dictionary")
        if not known and needed:
            raise BadArgument(f"neither {self.path.name} nor {CONFIG} keeps k: pass k=")
        return next(iter(known.values()), None)

    def _threshold(self, kind: str) -> float:
        """Return the height that codes must pass."""
        height = expect_scalar(self.path, self.state, "threshold") if self._has_threshold else -1.0
        argument = self.hints.threshold
        if height >= 0:
            if argument is not None:
                raise BadArgument(f"{self.path.name} keeps its threshold, {height}: leave it out")
            return height
        if argument is not None and 0 <= argument < float("inf"):
            return argument
        what = f"is {height}" if self._has_threshold else "is missing"
        raise BadArgument(
            f"the threshold of this {kind} {what}: it was never calibrated, and every feature "
            "above 0 would be active. activation='topk' takes the k largest of each activation "
            "instead; or pass threshold=, a number from 0 on that you calibrated"
        )

    @property
    def _has_threshold(self) -> bool:
        return "threshold" in self.state

    def _expect_groups(self) -> None:
        sizes = self.state["group_sizes"]
        whole = isinstance(sizes, Tensor) and sizes.ndim == 1 and sizes.dtype == torch.int64
        m = len(self._vector("b_enc"))
        if not whole or len(sizes) > m or int(sizes.sum()) != m or not bool((sizes > 0).all()):
            raise DamagedFile(f"{self.path}: group_sizes do not sum to the {m} features")

    def _vector(self, name: str) -> Tensor:
        return expect_vector(self.path, self.state, name)

    def _matrix(self, name: str) -> Tensor:
        return expect_matrix(self.path, self.state, name)

    def _info(self) -> dict[str, str]:
        values = {
            "model_name": self.trainer.get("lm_name"),
            "hook_name": self.trainer.get("submodule_name"),
            "layer": self.trainer.get("layer"),
        }
        # The fork writes empty strings.
        return {k: str(v) for k, v in values.items() if type(v) in (str, int) and v != ""}


def _weights(path: Path) -> Path | None:
    """Return the file with the tensors; None where there is none.

    Raises:
        VlmEditError: Several checkpoints and no final file.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    for folder in (path, path / CHECKPOINTS):
        files = sorted(p for p in folder.glob("ae_*.pt") if _NAMES.fullmatch(p.name))
        if len(files) > 1:
            names = ", ".join(p.relative_to(path).as_posix() for p in files[:5])
            raise BadArgument(
                f"{path} holds {len(files)} checkpoints ({names}): say which with file="
            )
        if files:
            return files[0]
    return None


def _inside(source: Source, path: Path) -> str:
    return path.relative_to(source.path).as_posix()


def _config(path: Path) -> Path:
    """Return where the config of a file with tensors would be."""
    parent = path.absolute().parent
    return (parent.parent if parent.name == CHECKPOINTS else parent) / CONFIG


def _trainer(path: Path) -> Mapping[str, Any]:
    """Return what the config says of the training; empty without one."""
    file = _config(path)
    if not file.is_file():
        return {}
    trainer = read_json(file).get("trainer")
    if not isinstance(trainer, dict):
        raise DamagedFile(f"{file}: 'trainer' is not an object: it is not of dictionary_learning")
    return trainer


def _peek_trainer(path: Path) -> Mapping[str, Any]:
    try:
        return _trainer(path)
    except VlmEditError:
        return {}


def _fitting(state: Mapping[Any, Any]) -> list[str]:
    """List the classes whose tensors these are."""
    names = set(state)
    return [
        kind
        for kind, keys in _KEYS.items()
        if keys - (_LATER if kind in _COUNTED else frozenset()) <= names <= keys
    ]


def _class(path: Path, state: Mapping[Any, Any], trainer: Mapping[str, Any], hints: Hints) -> str:
    """Return the class that the config names, or the only one with these tensors."""
    fits = _fitting(state)
    name = trainer.get("dict_class")
    if name is not None:
        kind = _SPELLINGS.get(name, name) if isinstance(name, str) else ""
        # The trainers write AutoEncoder whatever class they were given.
        if kind == "AutoEncoder" and fits == ["AutoEncoderNew"]:
            return fits[0]
        if kind not in _KEYS:
            raise UnknownName(
                f"{CONFIG}: dict_class {str(name)[:60]!r} is not supported; supported: "
                f"{', '.join(_KEYS)}"
            )
        return kind
    if not fits:
        names = ", ".join(sorted(map(str, state)))[:200]
        raise UnknownName(f"{path}: no class of dictionary_learning has the tensors {names}")
    if len(fits) > 1 and hints.activation is None:
        raise BadArgument(
            f"{path} could be of {' or '.join(fits)}, whose codes differ, and there is no "
            f"{CONFIG} that says: put it beside the file, or pass activation='topk' for the first "
            "or 'jumprelu' for the second"
        )
    return fits[-1] if hints.activation == "jumprelu" else fits[0]
