"""Have transformers or diffusers load a model: none of its own code runs unasked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

from vlm_edit.ground.errors import (
    BadArgument,
    DamagedFile,
    UnknownName,
    VlmEditError,
    expect_kind,
)
from vlm_edit.host.sources import SHELVES, Source, find
from vlm_edit.host.telling import expect_diffusers, one_line, sentences

Bits = Literal["4bit", "8bit"]
DeviceMap: TypeAlias = "str | Mapping[str, Any]"
_SMALLER = "Where it is too large: dtype='bfloat16', quantize='8bit' or device_map='auto'"


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


@dataclass(frozen=True)
class _Way:
    """How a model is to be loaded."""

    device: torch.device
    dtype: str | torch.dtype
    device_map: DeviceMap | None
    quantize: Bits | None
    trusted: bool

    def options(self) -> dict[str, Any]:
        """Return what ``from_pretrained`` of transformers takes of it."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.device_map is not None or self.quantize:
            options["device_map"] = self.device_map or {"": self.device}
        if self.quantize:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                **{f"load_in_{self.quantize}": True}
            )
        return options

    def of_pipelines(self) -> dict[str, Any]:
        """Return what that of diffusers takes."""
        options: dict[str, Any] = {} if self.dtype == "auto" else {"dtype": self.dtype}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.quantize:
            from diffusers import PipelineQuantizationConfig

            options["quantization_config"] = PipelineQuantizationConfig(
                quant_backend=f"bitsandbytes_{self.quantize}",
                quant_kwargs={f"load_in_{self.quantize}": True},
            )
        return options

    def put(self, model: Any, name: str | Path) -> Any:
        """Put a model on the device, unless it was spread over several already."""
        if self.device_map is not None:
            return model
        with one_line(name, "torch", _SMALLER):
            return model.to(self.device)


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantize: Bits | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load what ``Host.load`` makes a host of."""
    way = _way(device, dtype, device_map, quantize, trust_remote_code)
    shelf, _, rest = str(name).partition(":")
    shelved = bool(rest) and shelf in SHELVES.names() and not Path(name).exists()
    if revision is not None and (shelved or Path(name).exists()):
        raise BadArgument(
            f"{str(name)!r} is no repository of the hub: revision={revision!r} goes with one"
        )
    if shelved:
        return _from_shelf(str(name), way)
    source = find(name, revision)
    if source.is_pipeline:
        return Loaded(way.put(_load_pipeline(source, way), name), None, "a pipeline has none")
    model = way.put(_load_model(source, way).eval(), name)
    try:
        return Loaded(model, _load_processor(source, way))
    except VlmEditError as error:
        return Loaded(model, None, str(error))


def load_pipeline(
    name: str | Path,
    kind: Any,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantize: Bits | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a pipeline of a class that diffusers need not know.

    Args:
        name: A folder, or a repository on the hub.
        kind: The class.
        device: As for ``Host.load``, like the rest.
        dtype: Likewise.
        revision: Likewise.
        device_map: Likewise.
        quantize: Likewise.
        trust_remote_code: Likewise.

    Raises:
        VlmEditError: There is none, it is of another class, or diffusers cannot load it.
    """
    way = _way(device, dtype, device_map, quantize, trust_remote_code)
    source = find(name, revision)
    if not source.is_pipeline:
        raise BadArgument(
            f"no pipeline at {str(name)!r}: it must hold a model_index.json, as "
            "pipeline.save_pretrained(folder) writes it"
        )
    _import_diffusers(name)
    try:
        named = json.loads(source.index.read_text("utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise DamagedFile(
            f"{source.index} is damaged ({error}): save the pipeline again"
        ) from error
    if named != kind.__name__:
        raise VlmEditError(
            f"{name} is a pipeline of class {named}, and what is needed is {kind.__name__}: edit "
            "others in Python, as docs/text-to-image.md shows"
        )
    return way.put(_load_pipeline(source, way, kind), name)


def _way(
    device: str | torch.device,
    dtype: str | torch.dtype,
    device_map: DeviceMap | None,
    quantize: Bits | None,
    trusted: bool,
) -> _Way:
    """Check how a model is to be loaded, before anything is."""
    expect_kind("trust_remote_code", trusted, bool, "True or False")
    if device_map is not None and device != "auto":
        raise BadArgument(
            f"device={str(device)!r} and device_map={device_map!r} both say where the model goes: "
            "pass one of them"
        )
    _expect_extras(device_map, quantize)
    return _Way(_device(device), _dtype(dtype), device_map, quantize, trusted)


def _expect_extras(device_map: DeviceMap | None, quantize: Bits | None) -> None:
    if quantize is not None and quantize not in get_args(Bits):
        raise BadArgument(f"quantize is {quantize!r}; take one of {get_args(Bits)}")
    needs = [("accelerate", "accelerate", f"device_map={device_map!r}")] if device_map else []
    if quantize:
        needs = [
            (need, "quantize", f"quantize={quantize!r}") for need in ("bitsandbytes", "accelerate")
        ]
    for package, extra, argument in needs:
        if not _is_installed(package):
            raise VlmEditError(
                f"{argument} needs {package}, which is not installed: pip install "
                f"'vlm-edit[{extra}]'"
            )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # taken out of sys.modules
        return False


def _from_shelf(name: str, way: _Way) -> Loaded:
    shelf, _, rest = name.partition(":")
    for argument in ("device_map", "quantize"):
        value = getattr(way, argument)
        if value is not None:
            raise BadArgument(
                f"{name!r} comes whole from a distribution: {argument}={value!r} goes with a "
                "folder or a repository"
            )
    model, processor = SHELVES.find(shelf)(rest)
    options = {} if way.dtype == "auto" else {"dtype": way.dtype}
    return Loaded(model.to(way.device, **options), processor)


def _load_model(source: Source, way: _Way) -> Any:
    import transformers

    name, options = source.name, source.options
    with one_line(name):
        config = transformers.AutoConfig.from_pretrained(
            name, trust_remote_code=way.trusted, **options
        )
        kind = _class_of(config, source, way)
        model = kind.from_pretrained(
            name, trust_remote_code=way.trusted, **options, **way.options()
        )
        model.config._commit_hash = source.commit  # as transformers did before 5.24
        return model


def _load_processor(source: Source, way: _Way) -> Any:
    import transformers

    with one_line(source.name, mend="The model itself is loaded"):
        return transformers.AutoProcessor.from_pretrained(
            source.name, trust_remote_code=way.trusted, **source.options
        )


def _import_diffusers(name: str | Path) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise VlmEditError(
            f"{name} is a pipeline of diffusers, which is not installed: pip install "
            "'vlm-edit[diffusion]'"
        ) from error
    expect_diffusers(diffusers)
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    return diffusers


def _load_pipeline(source: Source, way: _Way, kind: Any = None) -> Any:
    kind = kind or _import_diffusers(source.name).DiffusionPipeline
    # What is cached is a folder like any other, and diffusers need not know its history.
    name, options = (source.index.parent, {}) if source.cached else (source.name, source.options)
    with one_line(source.name, "diffusers"):
        return kind.from_pretrained(
            name, trust_remote_code=way.trusted, **options, **way.of_pipelines()
        )


def _class_of(config: Any, source: Source, way: _Way) -> Any:
    """Return the class of models that a config names: of its own code where that is trusted."""
    import transformers

    names = config.architectures
    name = names[0] if isinstance(names, list) and names else names
    mapped = getattr(config, "auto_map", None) or {}
    own = _own_class(mapped, name)
    if own and way.trusted:
        return getattr(transformers, own, None) or _imported(mapped[own], source)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UnknownName(
            f"config.json names the architecture {name!r}, which is no model of transformers "
            f"{transformers.__version__}{' but custom code' if own else ''}"
        )
    return kind


def _own_class(mapped: Mapping[str, Any], name: Any) -> str | None:
    """Return by which of transformers' automatic classes a config's own code goes.

    That of the architecture it names; else one that speaks, before the bare model.
    """
    models = {k: v for k, v in mapped.items() if k.startswith("AutoModel") and isinstance(v, str)}
    named = [key for key, value in models.items() if value.rpartition(".")[2] == name]
    return next(iter(named or sorted(models, reverse=True)), None)


def _imported(reference: str, source: Source) -> Any:
    """Import a class of a repository's own code, for which transformers has no automatic one."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, source.name, **source.options)


def _device(device: str | torch.device) -> torch.device:
    """Return the device meant; the best there is for ``auto``."""
    if device == "auto":
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return best or torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BadArgument(f"device {device!r} is none that torch knows: {error}") from error
    try:
        torch.empty(0, device=found)
    except Exception as error:  # torch says in many ways that a driver or a card is not there
        raise BadArgument(
            f"device {device!r} cannot be used here: {sentences(str(error))}"
        ) from error
    return found


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if kind == "auto" or (isinstance(kind, torch.dtype) and kind.is_floating_point):
        return kind
    raise BadArgument(
        f"dtype is {dtype!r}; take 'auto' for the checkpoint's own, or a floating one, such as "
        "'float32' or torch.bfloat16"
    )
