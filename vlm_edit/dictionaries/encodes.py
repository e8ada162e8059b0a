"""What can be measured: anything that turns activations into codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.modality import Modality
from vlm_edit.ground.notebook import several


class Encodes(Protocol):
    """A dictionary in memory, one left on disk, or one per stream: what measuring asks of it."""

    @property
    def width(self) -> int:
        """Return the size d of the activations."""

    @property
    def n_features(self) -> int:
        """Return the number m of features."""

    @property
    def info(self) -> Mapping[str, str]:
        """Return what it was trained on."""

    def encode(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return the codes [..., m] of activations [..., d]."""

    def encode_sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Return the same of [n, d], kept sparse."""

    def normalise(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return activations [..., d] as the decoder writes them, after the norm."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same on another device."""

    def read_at(self, site: str) -> str:
        """Return the name of the site that is encoded where features of a site are meant."""

    def expect_site(self, site: str) -> None:
        """Refuse another site than the one its file says it was trained at."""

    def digest(self) -> str:
        """Return 32 hexadecimal digits that another's weights do not have."""

    def summary(self) -> dict[str, Any]:
        """Return activation, norm and which streams are centred, JSON-able."""


def identity(of: Encodes) -> dict[str, Any]:
    """Return what tells a dictionary from others, JSON-able; its digest reads all weights."""
    return {
        "digest": of.digest(),
        "features": of.n_features,
        "width": of.width,
        **of.summary(),
        "info": {str(key): str(value) for key, value in of.info.items()},
    }


def facts(of: Encodes) -> dict[str, object]:
    """Return what a reader first asks of a dictionary, by name; it reads no weights."""
    known = {"features": f"{of.n_features:,}", "width": f"{of.width:,}"}
    known |= {key: str(value) for key, value in of.summary().items() if isinstance(value, str)}
    centred = of.summary().get("centred")
    return known | ({"centred": ", ".join(centred)} if centred else {}) | _origin(of.info)


def words(of: Encodes) -> str:
    """Return the same in a few words."""
    about = of.summary()
    words = [several(of.n_features, "feature"), f"width {of.width:,}"]
    words += [str(about["activation"])] if "activation" in about else []
    words += [f"from {value}" for value in list(_origin(of.info).values())[:1]]
    return ", ".join(words)


def _origin(info: Mapping[str, str]) -> dict[str, object]:
    known = {
        "model": info.get("model_name"),
        "site": info.get("site") or info.get("hook_name"),
    }
    return {name: value for name, value in known.items() if value}


class _Options(Protocol):
    """What an encoder and a dictionary left on disk both have."""

    @property
    def activation(self) -> str: ...
    @property
    def k(self) -> int | None: ...
    @property
    def norm(self) -> str: ...
    @property
    def centers(self) -> Mapping[str, Tensor]: ...
    @property
    def soft_cap(self) -> float | None: ...


def summary(of: _Options) -> dict[str, Any]:
    """Return activation, norm and which streams are centred, JSON-able."""
    return {"activation": of.activation, "norm": of.norm, "centred": sorted(of.centers)}


def digest(of: _Options, tensors: Iterable[Tensor | None]) -> str:
    """Return 32 hexadecimal digits of options and tensors.

    Args:
        of: Tells the options.
        tensors: Read one after the other; into how many rows one is cut does not matter.
    """
    options = [of.activation, of.k, of.norm, sorted(of.centers), of.soft_cap]
    hasher = hashlib.blake2b(json.dumps(options).encode(), digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
