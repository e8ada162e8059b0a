"""The pipeline that draws, and what it is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_edit import host
from vlm_edit.cli.flags import in_flags
from vlm_edit.cli.host import ZOO, tell
from vlm_edit.cli.loading import Loading
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.host import Host
from vlm_edit.measuring import IMAGE_ENDINGS, as_seen, open_image
from vlm_edit.tasks.generation import read_reference

SHIPPED = f"{ZOO}emoji-unclip"


def load_pipeline(name: str, how: Loading | None = None) -> Any:
    """Load the zoo's pipeline, a folder's, or a repository's.

    Args:
        name: Of it.
        how: Arguments of the verb.

    Raises:
        VlmEditError: diffusers is missing, or there is no ``UnclipPipeline`` with a host.
    """
    try:
        import diffusers

        from vlm_edit.zoo.unclip import UnclipPipeline
    except ImportError as error:
        raise BadArgument(
            f"drawing needs diffusers ({error}): pip install 'vlm-edit[diffusion]'"
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    options = (how or Loading()).loading()
    if options.pop("adapter") is not None:
        raise BadArgument("draw edits the pipeline's own CLIP: leave --adapter out")
    with in_flags():
        pipe = _shipped(name, options) or host.load_pipeline(name, UnclipPipeline, **options)
    if pipe.clip is None or pipe.processor is None:
        raise VlmEditError(
            f"{name} holds no CLIP to embed prompts, or no processor for it: save the pipeline "
            "with both"
        )
    pipe.set_progress_bar_config(disable=True)
    tell(Host.of(pipe), how)
    return pipe


def _shipped(name: str, options: dict[str, Any]) -> Any:
    """Return the zoo's pipeline, if it is named."""
    if not name.startswith(ZOO):
        return None
    if name != SHIPPED:
        raise VlmEditError(f"no pipeline {name!r}; the zoo has {SHIPPED}")
    return Host.load(name, **options).model


def read(source: str) -> str | Image.Image:
    """Read an image if there is such a file, else the text itself.

    Raises:
        VlmEditError: It is a file, or is named like an image, and none can be read.
    """
    if not os.path.isfile(source) and Path(source).suffix.lower() not in IMAGE_ENDINGS:
        # Arguments may hold halves of characters that no tokenizer takes.
        return source.encode("utf-8", "replace").decode("utf-8")
    try:
        with open_image(source) as image:
            return as_seen(image)
    except VlmEditError as error:
        raise VlmEditError(
            f"no image could be read there ({error}); a text must not be named like a file"
        ) from error


def embed(pipe: Any, site: str, what: str | Image.Image) -> Tensor:
    """Embed a prompt or an image at the site, [d]."""
    if isinstance(what, str):
        return read_reference(pipe.clip, site, lambda: pipe.encode_prompt(what), "text")
    return read_reference(pipe.clip, site, lambda: pipe.encode_image(what), "image")
