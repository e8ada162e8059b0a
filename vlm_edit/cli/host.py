"""Load a user's model and its processor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn

from vlm_edit.errors import VlmEditError
from vlm_edit.sites import Host, class_of, unwrap

ZOO = "zoo:"


def load_host(path: str) -> tuple[nn.Module, Any]:
    """The model of a folder, of the class its config names, or the zoo's, and its processor.

    Raises:
        VlmEditError: No such folder, or transformers cannot read it.
    """
    import transformers

    if path.startswith(ZOO):
        return _load_from_zoo(path)
    model = load_model(path)
    if not isinstance(model, nn.Module):
        raise VlmEditError(
            f"{path} is a pipeline ({class_of(unwrap(model)).__name__}), which has no processor of "
            "images and texts: name the folder of one model"
        )
    with one_line(path):
        return model, transformers.AutoProcessor.from_pretrained(Path(path))


def load_model(path: str) -> Host:
    """The model alone, or the pipeline of models.

    Raises:
        VlmEditError: No such folder, or transformers (or diffusers) cannot read it.
    """
    import transformers

    quiet_when_piped()
    if path.startswith(ZOO):
        return _load_from_zoo(path)[0]
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return _load_pipeline(folder)
    if not (folder / "config.json").is_file():
        raise VlmEditError(
            f"no model at {path!r}: it must be a folder with a config.json, as "
            f"model.save_pretrained(folder) writes it (a pipeline's has a model_index.json), or "
            f"{ZOO}emoji-clip or {ZOO}emoji-llava"
        )
    with one_line(path):
        config = transformers.AutoConfig.from_pretrained(folder)
        name = (config.architectures or [None])[0]
        kind = getattr(transformers, name or "", None)
        if kind is None:
            raise VlmEditError(
                f"config.json names the architecture {name!r}, which transformers "
                f"{transformers.__version__} does not have"
            )
        return cast("nn.Module", kind.from_pretrained(folder).eval())


def _load_pipeline(folder: Path) -> Host:
    try:
        import diffusers
    except ImportError as error:
        raise VlmEditError(
            f"{folder} is a pipeline of diffusers, which is not installed: pip install "
            "'vlm-edit[diffusion]'"
        ) from error
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    with one_line(str(folder), "diffusers"):
        return cast("Host", diffusers.DiffusionPipeline.from_pretrained(folder))


def _load_from_zoo(name: str) -> tuple[nn.Module, Any]:
    from vlm_edit import zoo  # brings transformers' models: not before one is wanted

    hosts: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
        f"{ZOO}emoji-clip": zoo.load_host,
        f"{ZOO}emoji-llava": zoo.load_llava,
    }
    if name not in hosts:
        raise VlmEditError(f"the zoo has no model {name!r}: it has {', '.join(hosts)}")
    return hosts[name]()


@contextmanager
def one_line(path: str, library: str = "transformers") -> Iterator[None]:
    """Tell in one line why a library cannot load a folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise VlmEditError(
            f"{path}: {library} cannot load it: {first}. A model of a kind it does not know can "
            "be loaded in Python and given an adapter: docs/writing-an-adapter.md"
        ) from error


def quiet_when_piped() -> None:
    """Spare logs the progress bars that transformers draws whatever standard error is."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
