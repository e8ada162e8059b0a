"""Name what a file of weights holds that is no dictionary of one site, by its tensors' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edit.dictionaries.formats.hub import WEIGHTS
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.ground.errors import VlmEditError

_LIGHTNING = "pytorch-lightning_version"
_MOST = 8


def stranger(source: Source) -> str | None:
    """Say what a source of no known format is, where its tensors tell.

    Returns:
        What it is and why it is not read, to follow the path in a message; or None.
    """
    names = [name for name in source.names() if name.endswith((*WEIGHTS, ".ckpt"))]
    for name in names[:_MOST]:
        reason = _told(_contents(source, name))
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


def _told(contents: Mapping[Any, Any]) -> str | None:
    names = {str(name) for name in contents}
    inner = contents.get("state_dict")
    if _LIGHTNING in names and isinstance(inner, Mapping):
        some = ", ".join(f"'state_dict.{name}'" for name in list(inner)[:4])
        return (
            "is a checkpoint of Lightning, which names tensors as its user's model did: read it "
            f"with format='state_dict' and a layout= of names such as {some or 'none'}"
        )
    if names >= {"encoder", "vision_decoder.weight", "text_decoder.weight"}:
        return (
            "is a VL-SAE, whose codes are 2 minus the distance of two unit vectors: no activation "
            "here does that"
        )
    return None
