"""Independent encoders of texts and images, read from folders: what a score compares with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.host import one_line

TextEncoder = Callable[[Sequence[str]], Tensor]
ImageEncoder = Callable[[Sequence[Image]], Tensor]
Thing = TypeVar("Thing", str, Image)

_OWN = "Pass a function of your own instead"


def text_encoder(folder: str | Path, batch_size: int = 64) -> TextEncoder:
    """Load a text encoder from a sentence-transformers folder, or a text model of transformers.

    What a sentence-transformers folder says of pooling, length and normalising is done by that
    library. A plain folder is pooled by the mean over real tokens, not normalised. No code of a
    folder is run, and nothing is downloaded.

    Args:
        folder: With the model, its tokenizer and weights in safetensors.
        batch_size: Texts at once.

    Returns:
        A function of n texts, [n, width] float32.

    Raises:
        VlmEditError: No such folder, other weights, modules of its own, or sentence-transformers
            is not installed.
    """
    folder = _checked(Path(folder), batch_size)
    listed = (folder / "modules.json").is_file()
    return _in_batches((_sentences if listed else _mean_of_tokens)(folder), batch_size)


def _sentences(folder: Path) -> TextEncoder:
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    modules = [str(module["type"]) for module in listed]
    # The library imports what else a local folder names, whoever trusts it.
    own = [name for name in modules if not name.startswith("sentence_transformers.")]
    if own:
        raise DamagedFile(
            f"{folder / 'modules.json'} lists {own}, which sentence-transformers does not have: "
            f"code of a folder is not run. {_OWN}"
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise VlmEditError(
            f"{folder} is a folder of sentence-transformers, which is not installed: pip install "
            "'vlm-edit[encoders]'"
        ) from error
    with one_line(folder, "sentence-transformers", _OWN):
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )

    def embed(texts: Sequence[str]) -> Tensor:
        embeddings: Tensor = model.encode(
            list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        )
        return embeddings.clone()  # those of inference mode can enter no gradient

    return embed


def _mean_of_tokens(folder: Path) -> TextEncoder:
    tokenizer, model = _loaded(folder, "AutoTokenizer")

    def embed(texts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        real = ids["attention_mask"][..., None]
        hidden: Tensor = model(**ids).last_hidden_state
        mean: Tensor = hidden.masked_fill(real == 0, 0).sum(1) / real.sum(1)
        return mean

    return embed


def image_encoder(folder: str | Path, batch_size: int = 32) -> ImageEncoder:
    """Load an image encoder from a vision model of transformers.

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
    processor, model = _loaded(folder, "AutoImageProcessor")

    def embed(images: Sequence[Image]) -> Tensor:
        pictures = [image.convert("RGB") for image in images]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        two_towers = hasattr(model, "get_image_features")
        output = (model.get_image_features if two_towers else model)(pixel_values=pixels)
        if isinstance(output, Tensor):
            return output
        embeddings: Tensor | None = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if embeddings is None else embeddings

    return _in_batches(embed, batch_size)


def _loaded(folder: Path, reader: str) -> tuple[Any, Any]:
    """Return what transformers' class of a name reads of a folder, and the folder's model."""
    import transformers

    with one_line(folder, mend=_OWN):
        inputs = getattr(transformers, reader).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        model = transformers.AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    return inputs, model.eval()


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


def _checked(folder: Path, batch_size: int) -> Path:
    if not folder.is_dir():
        raise BadArgument(f"no folder {folder}: give the folder of an encoder's model")
    if batch_size < 1:
        raise BadArgument(f"batch_size is {batch_size}; at least one at once")
    # Every module of a folder that holds weights: what loads it may fall back to a pickle.
    pickles = [path for path in folder.rglob("*.bin") if not _safe(path.parent)]
    if pickles or not any(folder.rglob("*.safetensors")):
        raise DamagedFile(
            f"{pickles[0].parent if pickles else folder} has no weights in safetensors; others can "
            "hold code and are not read: load the model where you trust it and save_pretrained it"
        )
    return folder


def _safe(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
