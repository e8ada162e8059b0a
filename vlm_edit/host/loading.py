"""Have transformers or diffusers load a model: no code of it runs, and why it fails is told."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.ground.registry import Registry

DIFFUSERS = "0.42.1"  # earlier ones import what a folder names


ADAPTER = (
    "A model of a kind it does not know can be loaded in Python and given an adapter: "
    "docs/writing-an-adapter.md"
)
_CODE = (
    "A folder's own code never runs here: where you trust it, load the model in Python and pass it "
    "on (docs/writing-an-adapter.md)"
)


@contextmanager
def one_line(
    path: str | Path, library: str = "transformers", mend: str = ADAPTER
) -> Iterator[None]:
    """Tell in one line why a library cannot load a folder.

    Args:
        path: The folder, as the user named it.
        library: What loads it.
        mend: What may help.

    Example:
        >>> with one_line("my-model", mend="Give another folder"):
        ...     raise OSError("no file named config.json")
        Traceback (most recent call last):
        vlm_edit.ground.errors.VlmEditError: my-model: transformers cannot load it: no file named
        config.json. Give another folder
    """
    try:
        yield
    except Exception as error:  # what a folder holds fails in many ways: wrong types, odd weights
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        first = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(" .")
        wants_code = "trust_remote_code" in str(error) or "custom code" in str(error)
        raise VlmEditError(
            f"{path}: {library} cannot load it: {first}. {_CODE if wants_code else mend}"
        ) from error


@dataclass(frozen=True)
class Loaded:
    """The model and the processor that a name stands for.

    Attributes:
        model: A model in evaluation mode, or a pipeline of models.
        processor: The model's; None where there is none.
        missing: Why there is none.
    """

    model: Any
    processor: Any = None
    missing: str = "this host has none"


# Hosts that distributions bring, asked for as ``shelf:name``: functions of the name that return a
# model and its processor.
SHELVES: Registry[Callable[[str], tuple[Any, Any]]] = Registry(
    "shelf of hosts", "vlm_edit.hosts", FunctionType
)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
) -> Loaded:
    """Load what ``Host.load`` makes a host of."""
    device, kind = _device(device), _dtype(dtype)
    shelf, _, rest = str(name).partition(":")
    shelved = bool(rest) and shelf in SHELVES.names() and not Path(name).exists()
    if revision is not None and (shelved or Path(name).exists()):
        raise BadArgument(
            f"{str(name)!r} is no repository of the hub: revision={revision!r} goes with one"
        )
    if shelved:
        model, processor = SHELVES.find(shelf)(rest)
        options = {} if kind == "auto" else {"dtype": kind}
        return Loaded(model.to(device, **options), processor)
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return Loaded(_load_pipeline(folder, kind).to(device), None, "a pipeline has none")
    model = _load_model(name, kind, revision).eval().to(device)
    try:
        return Loaded(model, _load_processor(name, revision))
    except VlmEditError as error:
        return Loaded(model, None, str(error))


def _load_model(name: str | Path, dtype: str | torch.dtype, revision: str | None) -> Any:
    import transformers

    here = (Path(name) / "config.json").is_file()
    if not here and (Path(name).exists() or not HUB_NAME.fullmatch(str(name))):
        shelves = "".join(f", or {shelf}:NAME" for shelf in SHELVES.names())
        raise BadArgument(
            f"no model at {str(name)!r}: it must be a folder with a config.json, as "
            f"model.save_pretrained(folder) writes it (a pipeline's has a model_index.json), "
            f"owner/name on the hub{shelves}"
        )
    with one_line(name, mend=ADAPTER if here else "There is no such folder either"):
        config = transformers.AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
        kind = _class_of(config)
        return kind.from_pretrained(name, dtype=dtype, revision=revision, trust_remote_code=False)


def _load_processor(name: str | Path, revision: str | None) -> Any:
    import transformers

    with one_line(name):
        return transformers.AutoProcessor.from_pretrained(
            name, trust_remote_code=False, revision=revision
        )


def _load_pipeline(folder: Path, dtype: str | torch.dtype) -> Any:
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
    options = {} if dtype == "auto" else {"torch_dtype": dtype}
    with one_line(folder, "diffusers"):
        return diffusers.DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=False, **options
        )


def _class_of(config: Any) -> Any:
    """Return the class of transformers' models that a config names."""
    import transformers

    names = config.architectures
    name = names[0] if isinstance(names, list) and names else names
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UnknownName(
            f"config.json names the architecture {name!r}, which is no model of transformers "
            f"{transformers.__version__}"
        )
    return kind


def _device(device: str | torch.device) -> torch.device:
    """Return the device meant; the best there is for ``auto``."""
    if device == "auto":
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return best or torch.device("cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BadArgument(f"device {device!r} is none that torch knows: {error}") from error


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if kind == "auto" or (isinstance(kind, torch.dtype) and kind.is_floating_point):
        return kind
    raise BadArgument(
        f"dtype is {dtype!r}; take 'auto' for the checkpoint's own, or a floating one, such as "
        "'float32' or torch.bfloat16"
    )


def quiet_when_piped() -> None:
    """Spare logs the progress bars that transformers draws whatever standard error is."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def expect_diffusers(diffusers: Any) -> None:
    """Refuse a version that imports modules because a folder names them.

    Raises:
        VlmEditError: It is an earlier one than ``DIFFUSERS``.
    """
    version = str(diffusers.__version__)
    parts = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    release = tuple(int(part or 0) for part in parts.groups()) if parts else ()
    floor = tuple(map(int, DIFFUSERS.split(".")))
    unfinished = parts and re.match(r"\.?(a|b|rc|dev)", version[parts.end() :])
    if release < floor or (release == floor and unfinished):
        raise VlmEditError(
            f"diffusers {version} may run code that a pipeline's folder names: update it to "
            f"{DIFFUSERS} or later, pip install 'vlm-edit[diffusion]'"
        )
