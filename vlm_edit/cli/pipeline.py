"""The pipeline that draws, and what it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_edit.cli.host import ZOO
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.host import expect_diffusers, one_line
from vlm_edit.measuring import IMAGE_ENDINGS, as_seen, open_image
from vlm_edit.tasks.generation import read_reference

KIND, SHIPPED = "UnclipPipeline", f"{ZOO}emoji-unclip"


def load_pipeline(name: str) -> Any:
    """Load the zoo's pipeline, or a folder's.

    Raises:
        VlmEditError: diffusers is missing, or the folder holds no ``UnclipPipeline`` with a host.
    """
    try:
        import diffusers

        from vlm_edit.zoo.unclip import UnclipPipeline
    except ImportError as error:
        raise BadArgument(
            f"drawing needs diffusers ({error}): pip install 'vlm-edit[diffusion]'"
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    if name.startswith(ZOO):
        if name != SHIPPED:
            raise VlmEditError(f"no pipeline {name!r}; the zoo has {SHIPPED}")
        from vlm_edit import zoo

        pipe = zoo.load_unclip()
    else:
        expect_diffusers(diffusers)
        _expect_kind(name)
        with one_line(name, "diffusers"):
            pipe = UnclipPipeline.from_pretrained(
                name, local_files_only=True, low_cpu_mem_usage=False, trust_remote_code=False
            )
    if pipe.clip is None or pipe.processor is None:
        raise VlmEditError(
            f"{name} holds no CLIP to embed prompts, or no processor for it: save the pipeline "
            "with both"
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _expect_kind(name: str) -> None:
    """Look at the class that a folder names before diffusers builds another of it."""
    index = Path(name) / "model_index.json"
    if not index.is_file():
        raise BadArgument(f"no pipeline at {name!r}: it must be a folder with a model_index.json")
    try:
        kind = json.loads(index.read_text("utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise DamagedFile(f"{index} is damaged ({error}): save the pipeline again") from error
    if kind != KIND:
        raise VlmEditError(
            f"{name} is a pipeline of class {kind}, and draw knows {KIND}: edit others in Python, "
            "as docs/text-to-image.md shows"
        )


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
