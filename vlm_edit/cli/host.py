"""Load a user's model and its processor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.host import Host, expect_diffusers, one_line

ZOO = "zoo:"


def load_host(path: str) -> Host:
    """The model of a folder, of the class its config names, or the zoo's, with its processor.

    Raises:
        VlmEditError: No such folder, or transformers cannot read it.
    """
    import transformers

    if path.startswith(ZOO):
        return _load_from_zoo(path)
    host = load_model(path)
    if host.is_pipeline:
        raise VlmEditError(
            f"{path} is a pipeline ({host.kind.__name__}), which has no processor of "
            "images and texts: name the folder of one model"
        )
    with one_line(path):
        processor = transformers.AutoProcessor.from_pretrained(Path(path), trust_remote_code=False)
        return Host.of(host.model, processor)


def load_model(path: str) -> Host:
    """The model alone, or the pipeline of models, without a processor.

    Raises:
        VlmEditError: No such folder, or transformers (or diffusers) cannot read it.
    """
    import transformers

    quiet_when_piped()
    if path.startswith(ZOO):
        return Host.of(_load_from_zoo(path).model)
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return _load_pipeline(folder)
    if not (folder / "config.json").is_file():
        raise BadArgument(
            f"no model at {path!r}: it must be a folder with a config.json, as "
            f"model.save_pretrained(folder) writes it (a pipeline's has a model_index.json), or "
            f"{ZOO}emoji-clip or {ZOO}emoji-llava"
        )
    with one_line(path):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = _class_of(config)
        return Host.of(kind.from_pretrained(folder, trust_remote_code=False).eval())


def _class_of(config: Any) -> Any:
    """The class of transformers' models that a config names."""
    import transformers

    listed = config.architectures
    name = listed[0] if isinstance(listed, list) and listed else listed
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise VlmEditError(
            f"config.json names the architecture {name!r}, which is no model of transformers "
            f"{transformers.__version__}"
        )
    return kind


def _load_pipeline(folder: Path) -> Host:
    try:
        import diffusers
    except ImportError as error:
        raise VlmEditError(
            f"{folder} is a pipeline of diffusers, which is not installed: pip install "
            "'vlm-edit[diffusion]'"
        ) from error
    expect_diffusers(diffusers)
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    with one_line(folder, "diffusers"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=False)
        return Host.of(pipe)


def _load_from_zoo(name: str) -> Host:
    from vlm_edit import zoo  # brings transformers' models: not before one is wanted

    hosts: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
        f"{ZOO}emoji-clip": zoo.load_host,
        f"{ZOO}emoji-llava": zoo.load_llava,
    }
    if name not in hosts:
        raise UnknownName(f"the zoo has no model {name!r}: it has {', '.join(hosts)}")
    return Host.of(*hosts[name]())


def quiet_when_piped() -> None:
    """Spare logs the progress bars that transformers draws whatever standard error is."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
