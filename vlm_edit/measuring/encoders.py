"""Independent encoders of texts and images, read from folders: what a score compares with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.host import one_line

TextEncoder = Callable[[Sequence[str]], Tensor]
ImageEncoder = Callable[[Sequence[Image]], Tensor]
Thing = TypeVar("Thing", str, Image)

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_MODULES = ("Transformer", "Pooling", "Normalize")
_OWN = "Pass a function of your own instead"


def text_encoder(folder: str | Path, batch_size: int = 64) -> TextEncoder:
    """A text encoder from a sentence-transformers folder, or a text model of transformers.

    A sentence-transformers folder says how tokens are pooled (mean, cls or max), how long texts
    may be, and whether embeddings are normalised. A plain folder is pooled by the mean over real
    tokens, not normalised. Nothing in the folder is run, and nothing is downloaded.

    Args:
        folder: With the model, its tokenizer and weights in safetensors.
        batch_size: Texts at once.

    Returns:
        A function of n texts, [n, width] float32.

    Raises:
        VlmEditError: No such folder, other weights, unknown pooling or modules.
    """
    folder = _checked(Path(folder), batch_size)
    modules = _modules(folder)
    pooling = _pooling(folder / modules["Pooling"]) if "Pooling" in modules else "mean"
    start = folder / modules.get("Transformer", "")
    from transformers import AutoModel, AutoTokenizer

    with one_line(start, mend=_OWN):
        tokenizer = AutoTokenizer.from_pretrained(
            str(start), local_files_only=True, trust_remote_code=False
        )
        model = AutoModel.from_pretrained(
            str(start),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
        ).eval()
    longest = _read(start / "sentence_bert_config.json").get("max_seq_length")

    def embed(texts: Sequence[str]) -> Tensor:
        ids = tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        hidden = model(**ids).last_hidden_state
        pooled = _pool(hidden, ids["attention_mask"], pooling)
        return torch.nn.functional.normalize(pooled, dim=1) if "Normalize" in modules else pooled

    return _in_batches(embed, batch_size)


def image_encoder(folder: str | Path, batch_size: int = 32) -> ImageEncoder:
    """An image encoder from a vision model of transformers.

    Two-tower models (CLIP, SigLIP) give ``get_image_features``; vision models their pooler output
    where they have one, otherwise the mean of the last layer's tokens. Nothing in the folder is
    run, and nothing is downloaded.

    Args:
        folder: With the model, its image processor and weights in safetensors.
        batch_size: Images at once.

    Returns:
        A function of n images, [n, width] float32.

    Raises:
        VlmEditError: No such folder, or other weights.
    """
    folder = _checked(Path(folder), batch_size)
    from transformers import AutoImageProcessor, AutoModel

    with one_line(folder, mend=_OWN):
        processor = AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        model = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
        ).eval()

    def embed(images: Sequence[Image]) -> Tensor:
        shown = [image.convert("RGB") for image in images]
        pixels = processor(images=shown, return_tensors="pt")["pixel_values"]
        two_towers = hasattr(model, "get_image_features")
        found = (model.get_image_features if two_towers else model)(pixel_values=pixels)
        if isinstance(found, Tensor):
            return found
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        return found.last_hidden_state.mean(1) if pooled is None else pooled

    return _in_batches(embed, batch_size)


def _in_batches(
    embed: Callable[[Sequence[Thing]], Tensor], batch_size: int
) -> Callable[[Sequence[Thing]], Tensor]:
    def encode(things: Sequence[Thing]) -> Tensor:
        if not len(things):
            raise BadArgument("nothing to encode: give at least one text or image")
        starts = range(0, len(things), batch_size)
        with torch.no_grad():
            return torch.cat([embed(things[i : i + batch_size]).float() for i in starts])

    return encode


def _pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    real = mask[..., None].bool()
    if mode == "mean":
        return hidden.masked_fill(~real, 0).sum(1) / real.sum(1)
    if mode == "max":
        return hidden.masked_fill(~real, -torch.inf).amax(1)
    return hidden[torch.arange(len(hidden)), mask.argmax(1)]


def _checked(folder: Path, batch_size: int) -> Path:
    if not folder.is_dir():
        raise BadArgument(f"no folder {folder}: give the folder of an encoder's model")
    if batch_size < 1:
        raise BadArgument(f"batch_size is {batch_size}; at least one at once")
    if not any(folder.rglob("*.safetensors")):
        raise VlmEditError(
            f"{folder} has no weights in safetensors; others can hold code and are not read: load "
            "the model where you trust it and save_pretrained it"
        )
    return folder


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _modules(folder: Path) -> dict[str, str]:
    """Kind and folder of each module; none in a folder that is not of sentence-transformers."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    listed = json.loads(path.read_text("utf-8"))
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in listed]
    unknown = [kind for kind in kinds if kind not in _MODULES]
    if unknown or kinds[:2] != ["Transformer", "Pooling"]:
        raise VlmEditError(f"{path} lists {kinds}: only {list(_MODULES)}, in this order, are read")
    return {kind: module["path"] for kind, module in zip(kinds, listed, strict=True)}


def _pooling(folder: Path) -> str:
    config = _read(folder / "config.json")
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    if "pooling_mode" in config:  # sentence-transformers 5.2 and later write one name
        chosen = [str(config["pooling_mode"])]
    modes = [_MODES.get(name, name) for name in chosen]
    if len(modes) != 1 or modes[0] not in _MODES.values():
        raise VlmEditError(
            f"{folder} pools by {modes}: only one of {list(_MODES.values())} is read; pass a "
            "function of your own instead"
        )
    return modes[0]
