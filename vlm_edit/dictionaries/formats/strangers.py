"""Name what a file of weights holds that is no dictionary of one site, by its tensors' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries.formats.hub import WEIGHTS
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.dictionaries.formats.torchfile import LIGHTNING, STATE
from vlm_edit.ground.errors import VlmEditError

_MOST = 8
JACOBIAN = {"_W_enc", "_W_enc_out"}
_LEAVING = {
    "encoder": "_W_enc_out",
    "decoder": "_W_dec_out",
    "encoder_bias": "_b_enc_out",
    "decoder_bias": "_b_dec_out",
}


def stranger(source: Source) -> str | None:
    """Say what a source of no known format is, where its tensors tell.

    Returns:
        What it is and why it is not read, to follow the path in a message; or None.
    """
    names = [name for name in source.names() if name.endswith(WEIGHTS)]
    for name in names[:_MOST]:
        reason = described(_contents(source, name))
        if reason is not None:
            return reason
    return None


def _contents(source: Source, name: str) -> Mapping[Any, Any]:
    try:
        if name.endswith(".safetensors"):
            return source.tensors(name)
        contents = source.torch(name if source.is_folder else None)
    except VlmEditError:
        return {}
    return contents if isinstance(contents, Mapping) else {}


def described(contents: Mapping[Any, Any]) -> str | None:
    """Say what tensors are by their names, where they are no dictionary of one site."""
    names = {str(name) for name in contents}
    inner = contents.get(STATE)
    if LIGHTNING in names and isinstance(inner, Mapping):
        return _of_lightning({f"{STATE}.{name}": value for name, value in inner.items()})
    if names >= JACOBIAN:
        layout = ", ".join(f"{side}={name!r}" for side, name in _LEAVING.items())
        return (
            "is a pair of Jacobian SAEs, of what enters an MLP and of what leaves it. Name the "
            "file of weights, with format='state_dict', its k= and the one of what leaves by "
            f"layout=Layout({layout}, encoder_order='dm', decoder_order='md', "
            "subtract_decoder_bias=False, activation='topk', unread=('_*', 'mlp*')); names "
            "without _out are of what enters. Both know the host as TransformerLens folds it: the "
            "norm's weights are not in what enters, nor the mean in what leaves"
        )
    return None


def _of_lightning(tensors: Mapping[str, Any]) -> str:
    """Say how a checkpoint of Lightning is read: by a layout, of which its shapes tell most."""
    opening = (
        "is a checkpoint of Lightning, which names tensors as its user's model did: read it with "
        "format='state_dict' and"
    )
    told = _by_shapes({k: tuple(v.shape) for k, v in tensors.items() if isinstance(v, Tensor)})
    if told is None:
        some = ", ".join(map(repr, list(tensors)[:4]))
        return f"{opening} a layout= of names such as {some or 'none'}"
    layout = ", ".join(f"{field}={value!r}" for field, value in told.items())
    return (
        f"{opening} layout=Layout({layout}, subtract_decoder_bias=..., activation=...): these two "
        "and k= or threshold= only its model's code tells"
    )


def _by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | None] | None:
    """Return what a layout says of two matrices and their biases; None where shapes leave it open.

    The encoder is the one of the two whose name says so; features are more than dimensions.
    """
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    encoder = [name for name in matrices if "enc" in name.lower().replace("autoenc", "")]
    decoder = [name for name in matrices if "dec" in name.lower()]
    sizes = {tuple(sorted(shape)) for shape in matrices.values()}
    if len(matrices) != 2 or not len(encoder) == len(decoder) == len(sizes) == 1:
        return None
    d, m = sizes.pop()
    biases = {size: [name for name, shape in shapes.items() if shape == (size,)] for size in (d, m)}
    if d == m or encoder == decoder or any(len(names) > 1 for names in biases.values()):
        return None
    return {
        "encoder": encoder[0],
        "encoder_order": "dm" if matrices[encoder[0]] == (d, m) else "md",
        "decoder": decoder[0],
        "decoder_order": "md" if matrices[decoder[0]] == (m, d) else "dm",
        "encoder_bias": biases[m][0] if biases[m] else None,
        "decoder_bias": biases[d][0] if biases[d] else None,
    }
