"""The format of CLIP_TopKSAE and its kin (Mayfull): a ``config.json`` of transformers.

All are relu and the k largest of ``encoder(x - b_dec)``, with a decoder of rows. The kin of
VLTopKSAE cut their features into image, shared and text, ``vl_split_ratio``, and those of the
other stream stay out of an activation's k; the kin of TwoSidedTopKSAE are two dictionaries;
SharedEncSAE has one encoder and two decoders. BatchTopK and Matryoshka compete over a whole batch
in training, and are read as their ``encode`` has them and a batch of one activation.
"""

from __future__ import annotations

import warnings
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
    expect_vector,
    expect_whole,
    safetensors_names,
)
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_SINGLE = ("TopKSAE", "BatchTopKSAE", "MatryoshkaSAE")
_SPLIT = ("VLTopKSAE", "VLBatchTopKSAE", "VLMatryoshkaSAE")
_SIDES = ("TwoSidedTopKSAE", "TwoSidedBatchTopKSAE")
_DECODERS = ("SharedEncSAE",)
_NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_PARTS = ("weight", "bias")
_RATIO = [1, 2, 1]  # files from before the option have this one


def recognises(source: Source) -> bool:
    """Say whether a source is a folder of such a config and of weights."""
    if not source.has(CONFIG, WEIGHTS):
        return False
    if {"latent_size", "hidden_size"} - set(source.peek_json(CONFIG)):
        return False
    return bool(safetensors_names(source.file(WEIGHTS)))


def read(source: Source, hints: Hints) -> StoredDictionary | PairedDictionary[StoredDictionary]:
    """Read a folder; of one that tells the streams apart, make a dictionary for each.

    Raises:
        VlmEditError: A file is missing or not valid, a class that is not known, an option that
            cannot be represented, or tensors that do not fit the config.
    """
    path, config = source.path, source.json(CONFIG)
    kind = _kind(path, config)
    k = expect_whole(path, {"k": hints.k} if hints.k is not None else config, "k")
    contents = _Found(path, config, source.tensors(WEIGHTS), k)
    if kind in _SIDES:
        return contents.sides()
    if kind in _DECODERS:
        return contents.decoders()
    if "Matryoshka" in kind:
        contents.expect_all_groups()
    return contents.split() if kind in _SPLIT else contents.linear()


FORMAT = Format(
    "mayfull", f"{CONFIG} with latent_size, and {WEIGHTS}", recognises, read, frozenset({"k"})
)


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """Return the class that wrote it; its authors take TopKSAE where none is named."""
    names = config.get("architectures", ["TopKSAE"])
    known = (*_SINGLE, *_SPLIT, *_SIDES, *_DECODERS)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in known:
        raise UnknownName(
            f"{path}: architectures {str(names)[:60]} is not supported; supported: one of "
            f"{', '.join(known)}"
        )
    return str(names[0])


@dataclass(frozen=True, eq=False)
class _Found:
    """A config with its tensors."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Any]
    k: int

    def linear(
        self, prefix: str = "", m: int | None = None, live: Tensor | None = None
    ) -> StoredDictionary:
        """Make one dictionary of some tensors.

        Args:
            prefix: What the names of its tensors begin with.
            m: Number of its features, as the config has it by default.
            live: [m] bool, the features that may be active; all by default.
        """
        if not prefix:
            expect_names(self.path, self.tensors, set(_NAMES))
        weight, bias, decoder, center = (f"{prefix}{name}" for name in _NAMES)
        subtract = self._vector(center)
        height = self._vector(bias)
        rows = Rows(self._matrix(weight), weight, None if live is None else live.float())
        if live is not None:  # with weights of 0 too, below what relu lets through
            height = torch.where(live, height, -1.0)
        stored = StoredDictionary(
            weight=rows,
            bias=height,
            decoder=Rows(self._matrix(decoder), decoder),
            decoder_bias=subtract,
            activation="topk",
            k=self.k,
            subtract=subtract,
            info=self._info(),
        )
        self._expect_sizes(stored, m)
        return stored

    def split(self) -> PairedDictionary[StoredDictionary]:
        """Split into image, shared and text features: one dictionary without each end."""
        if self.config.get("block_top_k") is not None:
            raise DamagedFile(
                f"{self.path}: block_top_k keeps a number of shared features and another of the "
                "stream's own, which no activation here does"
            )
        ratio = self.config.get("vl_split_ratio") or _RATIO
        whole = isinstance(ratio, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in ratio)
        if not whole or len(ratio) != 3 or not sum(ratio):
            raise BadArgument(
                f"{self.path}: vl_split_ratio must be three whole numbers, got {str(ratio)[:60]}"
            )
        m = len(self._vector("encoder.bias"))
        image, shared = (m * ratio[i] // sum(ratio) for i in range(2))
        at = torch.arange(m)
        return PairedDictionary(
            self.linear(live=at < image + shared), self.linear(live=at >= image)
        )

    def sides(self) -> PairedDictionary[StoredDictionary]:
        """Make two dictionaries that share no feature."""
        prefixes = ("image_sae.", "text_sae.")
        names = {f"{prefix}{name}" for prefix in prefixes for name in _NAMES}
        expect_names(self.path, self.tensors, names)
        m = expect_whole(self.path, self.config, "latent_size")
        image, text = (self.linear(prefix, m // 2) for prefix in prefixes)
        warnings.warn(
            f"{self.path}: holds two dictionaries, and a feature of image need not mean what the "
            "text feature of its number does, unless their training aligned them: "
            "match_dictionaries(found.image, found.text, streams) brings them into one order",
            UserWarning,
            stacklevel=5,  # at who called load_dictionary
        )
        return PairedDictionary(image, text)

    def decoders(self) -> PairedDictionary[StoredDictionary]:
        """Make two of one encoder, with nothing subtracted, and a decoder for each stream."""
        names = {f"{side}_decoder.{part}" for side in ("vision", "text") for part in _PARTS}
        expect_names(self.path, self.tensors, names | {"encoder.weight", "encoder.bias"})
        both = []
        for side in ("vision", "text"):
            decoder = self._matrix(f"{side}_decoder.weight").T
            stored = StoredDictionary(
                weight=Rows(self._matrix("encoder.weight"), "encoder.weight"),
                bias=self._vector("encoder.bias"),
                decoder=Rows(decoder, f"{side}_decoder.weight"),
                decoder_bias=self._vector(f"{side}_decoder.bias"),
                activation="topk",
                k=self.k,
                info=self._info(),
            )
            self._expect_sizes(stored, None)
            both.append(stored)
        return PairedDictionary(*both)

    def expect_all_groups(self) -> None:
        """Refuse a Matryoshka dictionary that leaves its last groups out."""
        groups, active = self.config.get("group_sizes"), self.config.get("active_groups")
        m = len(self._vector("encoder.bias"))
        whole = isinstance(groups, list) and all(type(n) is int and n > 0 for n in groups)
        if not isinstance(groups, list) or not whole or sum(groups) != m:
            raise DamagedFile(
                f"{self.path}: group_sizes {str(groups)[:60]} do not sum to the {m} features"
            )
        if active is not None and active != len(groups):
            raise DamagedFile(
                f"{self.path}: active_groups is {str(active)[:20]} of {len(groups)}: its encode "
                "gives codes of all groups and its forward drops the later ones; set it to null "
                "in a copy of the config for all"
            )

    def _expect_sizes(self, stored: StoredDictionary, m: int | None) -> None:
        d = expect_whole(self.path, self.config, "hidden_size")
        if m is None and self.config.get("latent_size"):
            m = expect_whole(self.path, self.config, "latent_size")
        elif m is None and "group_sizes" in self.config:
            m = stored.n_features  # their sum: it has been compared
        elif m is None:
            m = d * expect_whole(self.path, self.config, "expansion_factor")
        for name, stated, there in (
            ("hidden_size", d, stored.width),
            ("latent_size", m, stored.n_features),
        ):
            if stated != there:
                raise DamagedFile(
                    f"{self.path}: the config states {name} = {stated}, the tensors have {there}: "
                    "the two files are not of one dictionary"
                )

    def _vector(self, name: str) -> Tensor:
        return expect_vector(self.path, self.tensors, name)

    def _matrix(self, name: str) -> Tensor:
        return expect_matrix(self.path, self.tensors, name)

    def _info(self) -> dict[str, str]:
        name = self.config.get("model_name")
        return {"model_name": name} if isinstance(name, str) and name else {}
