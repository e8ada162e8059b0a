"""The format of OpenAI's sparse_autoencoder: one ``.pt``, a state dict with its activation's name.

Whether the input is layer-normed is not kept: the library norms if and only if the activation is
TopK, and so does this reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_vector,
    expect_whole,
)
from vlm_edit.dictionaries.formats.torchfile import mapping, open_mapping, peek_mapping
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.ground.errors import DamagedFile, UnknownName

_NEEDED = {"encoder.weight", "pre_bias", "latent_bias"}
# Counts of training, and the copy of its state that a TopK writes as part of the whole.
_HARMLESS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
_COPY = {"activation.k", "activation.postact_fn"}
_NAME, _STATE = "activation", "activation_state_dict"
_UNTIED, _TIED = "decoder.weight", "decoder.linear.weight"

_PLAIN: dict[str, str] = {"ReLU": "relu", "Identity": "identity"}
_AFTER: dict[str, str] = {"ReLU": "topk", "Identity": "topk_signed"}


def recognises(source: Source) -> bool:
    """Say whether a source's torch file has this state dict's names."""
    names = set(peek_mapping(source))
    return names >= _NEEDED and bool(names & {_UNTIED, _TIED})


def read(source: Source, hints: Hints) -> StoredDictionary:
    """Read a file in this format, or a folder with one.

    Raises:
        VlmEditError: Not a readable torch file, or contents that do not fit.
    """
    del hints
    path, state = source.path, open_mapping(source)
    tied = _TIED in state
    needed = _NEEDED | {_TIED if tied else _UNTIED}
    expect_names(path, state, needed, _HARMLESS | _COPY | {_NAME, _STATE})
    activation, k = _activation(path, state)
    pre_bias = expect_vector(path, state, "pre_bias")
    return StoredDictionary(
        weight=Rows(expect_matrix(path, state, "encoder.weight"), "encoder.weight"),
        bias=expect_vector(path, state, "latent_bias"),
        decoder=Rows(_decoder(path, state, tied), _TIED if tied else _UNTIED),
        decoder_bias=pre_bias,
        activation=activation,
        k=k,
        subtract=pre_bias,
        norm="none" if k is None else "layer_norm",
    )


def _decoder(path: object, found: Mapping[str, Any], tied: bool) -> Tensor:
    """Return rows; a tied decoder holds the encoder's layer and multiplies with its transpose."""
    return expect_matrix(path, found, _TIED) if tied else expect_matrix(path, found, _UNTIED).T


def _activation(path: object, found: Mapping[str, Any]) -> tuple[str, int | None]:
    name = found.get(_NAME, "ReLU")
    if name != "TopK":
        return _choice(path, _NAME, name, _PLAIN, "TopK"), None
    state = mapping(path, found, _STATE)
    expect_names(f"{path}: {_STATE}", state, {"k", "postact_fn"})
    for key in ("k", "postact_fn"):
        if found.get(f"activation.{key}", state[key]) != state[key]:
            raise DamagedFile(f"{path}: {_STATE} and activation.{key} differ: it is damaged")
    after = _choice(path, f"{_STATE} postact_fn", state["postact_fn"], _AFTER)
    return after, expect_whole(path, state, "k")


def _choice(path: object, key: str, value: object, known: Mapping[str, str], *more: str) -> str:
    if not isinstance(value, str) or value not in known:
        supported = ", ".join((*known, *more))
        raise UnknownName(
            f"{path}: {key} {str(value)[:60]!r} is not supported; supported: {supported}"
        )
    return known[value]


FORMAT = Format("openai", "a .pt with encoder.weight, pre_bias and latent_bias", recognises, read)
