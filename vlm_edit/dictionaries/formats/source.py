"""Open what lies on disk without running code from it or believing what it says of itself.

Tensors come as views of the mapped file: nothing is read until it is used.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm_edit.dictionaries.formats.cause import cause
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError

MOST_JSON = 1 << 20
MOST_PICKLE = 1 << 22
MOST_SHARDS = 1000
INDEX = ".index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file of at most 1 MiB.

    Raises:
        VlmEditError: No such file, too large, not valid, or not an object.
    """
    return parse_json(_text(path, "JSON"), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read an object from a YAML file of at most 1 MiB, of plain values alone.

    Raises:
        VlmEditError: As ``read_json``.
    """
    import yaml  # huggingface_hub brings it

    text = _text(path, "YAML")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not valid YAML: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise DamagedFile(f"{path} holds a {type(config).__name__}, expected an object")
    return {str(name): value for name, value in config.items()}


def _text(path: Path, kind: str) -> str:
    try:
        if path.stat().st_size > MOST_JSON:
            raise DamagedFile(f"{path} is larger than 1 MiB: not the config of a dictionary")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not valid {kind}: {error}") from error


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """Read an object from JSON text that stands in a file.

    Raises:
        VlmEditError: Not valid, or not an object.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise DamagedFile(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Open the tensors of a safetensors file, as views of it.

    Raises:
        VlmEditError: No such file, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError) as error:
        reason = cause(path) or f"is not a readable safetensors file: {error}"
        raise DamagedFile(f"{path} {reason}") from error


def read_header(path: Path) -> dict[str, str]:
    """Read what a safetensors file says of itself; nothing where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError):
        return {}


def read_shards(index: Path) -> dict[str, Tensor]:
    """Open tensors of several safetensors files, as views, by the index that lies beside.

    Args:
        index: Such as ``model.safetensors.index.json``, as transformers writes it.

    Raises:
        VlmEditError: An index that is not valid, or that names other files or tensors than there
            are beside it.
    """
    everything: dict[str, Tensor] = {}
    for shard, names in _shards(index).items():
        path = index.parent / shard
        if not path.is_file():
            raise DamagedFile(
                f"{index} names {shard!r}, which is not beside it: fetch it too, or fetch all anew"
            )
        tensors = read_safetensors(path)
        if set(tensors) != names:
            wrong = ", ".join(sorted(set(tensors) ^ names))[:200]
            raise DamagedFile(
                f"{index} and {path} disagree on {wrong}: they are not of one dictionary"
            )
        everything |= tensors
    return everything


def _shards(index: Path) -> dict[str, set[str]]:
    """Return names of tensors by the file that holds them, which lies in the index's folder."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DamagedFile(f"{index} has no weight_map: it is not the index of safetensors files")
    shards: dict[str, set[str]] = {}
    for name, shard in places.items():
        # A name is joined to the folder: nothing but a plain one stays inside of it.
        plain = isinstance(shard, str) and re.fullmatch(r"\w[\w.+-]*\.safetensors", shard, re.ASCII)
        if not plain or len(shard) > 255:
            raise DamagedFile(
                f"{index} says that {name[:60]!r} lies in {str(shard)[:60]!r}, which is not the "
                "name of a safetensors file beside it"
            )
        shards.setdefault(shard, set()).add(name)
    if len(shards) > MOST_SHARDS:
        raise DamagedFile(
            f"{index} names {len(shards)} files; a dictionary has at most {MOST_SHARDS}"
        )
    return shards


def safetensors_names(path: Path) -> frozenset[str]:
    """List the tensors of a safetensors file, from its header alone; none if it is not one.

    Where an index lies in the file's place they are those that it names.
    """
    if not path.is_file():
        try:
            return frozenset().union(*_shards(Path(f"{path}{INDEX}")).values())
        except VlmEditError:
            return frozenset()
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(path.stat().st_size, 100 << 20):
                return frozenset()
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error, RecursionError):
        return frozenset()
    return frozenset(header) - {"__metadata__"} if isinstance(header, dict) else frozenset()


def read_torch(path: Path, skip: int = 0, allow: Sequence[Any] = ()) -> Any:
    """Read what ``torch.save`` wrote, by ``weights_only``: no code from the file is run.

    Args:
        path: A file in the zip format of torch 1.6 and later.
        skip: Bytes before the zip.
        allow: Types that ``weights_only`` lets through beside its own.

    Returns:
        The object; its tensors are views of the mapped file where nothing is skipped.

    Raises:
        VlmEditError: No such file, damaged, of another format, one that claims more than it
            holds, or one that needs more than ``weights_only`` allows.
    """
    try:
        _expect_plain_zip(path, skip)
        with torch.serialization.safe_globals(list(allow)):
            if not skip:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251
            with path.open("rb") as file:
                file.seek(skip)
                return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except VlmEditError:
        raise
    except Exception as error:  # the unpickler of damaged bytes raises anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise DamagedFile(
                f"{path} holds more than tensors and plain values, and reading it would run code "
                "from it: open it where you trust it, save its state_dict() alone with torch.save, "
                "and load that"
            ) from error
        raise DamagedFile(f"{path} is not a readable torch file: {reason}") from error


def _expect_plain_zip(path: Path, skip: int) -> None:
    """Refuse another format, and entries that would grow when they are read."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        reason = cause(path) or (
            f"is not a torch file of version 1.6 or later ({error}): save it anew with torch.save, "
            "or fetch it again"
        )
        raise DamagedFile(f"{path} {reason}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DamagedFile(f"{path}: {entry.filename!r} is compressed; torch.save never does")
        if entry.filename.endswith(".pkl") and entry.file_size > MOST_PICKLE:
            raise DamagedFile(f"{path}: {entry.filename!r} is larger than 4 MiB")
    if sum(entry.file_size for entry in entries) > size - skip:
        raise DamagedFile(f"{path} claims more bytes than it has: the file is damaged")


@dataclass(frozen=True, eq=False)
class Source:
    """A file or a folder that may hold a dictionary.

    Attributes:
        path: Where.
    """

    path: Path
    _read: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def is_folder(self) -> bool:
        """Whether the path is a folder."""
        return self.path.is_dir()

    def names(self, pattern: str = "*") -> list[str]:
        """List files right in the folder, sorted; of a file, its own name."""
        if not self.is_folder:
            return [self.path.name] if self.path.match(pattern) else []
        return sorted(p.name for p in self.path.glob(pattern) if p.is_file())

    def file(self, name: str) -> Path:
        """Return the path of a file of the folder."""
        return self.path / name

    def has(self, *names: str) -> bool:
        """Say whether the folder holds all these files, or an index of parts in a file's place."""
        return self.is_folder and all(
            self.file(name).is_file() or (_shardable(name) and self.file(name + INDEX).is_file())
            for name in names
        )

    def json(self, name: str) -> dict[str, Any]:
        """Read an object from a JSON file of the folder; as ``read_json``, once."""
        key = f"json:{name}"
        if key not in self._read:
            self._read[key] = read_json(self.file(name))
        config: dict[str, Any] = self._read[key]
        return config

    def yaml(self, name: str) -> dict[str, Any]:
        """Read an object from a YAML file of the folder, of plain values alone; once.

        Raises:
            VlmEditError: As ``read_json``.
        """
        key = f"yaml:{name}"
        if key not in self._read:
            self._read[key] = read_yaml(self.file(name))
        config: dict[str, Any] = self._read[key]
        return config

    def peek_json(self, name: str) -> dict[str, Any]:
        """Read as ``json``, but empty if it cannot be read: for recognising."""
        try:
            return self.json(name)
        except VlmEditError:
            return {}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Open tensors of a safetensors file of the folder, or of the file itself, as views.

        Where an index lies in the file's place, or is the source, those of the files it names.
        """
        path = self.file(name) if self.is_folder else self.path
        if path.name.endswith(f".safetensors{INDEX}"):
            return read_shards(path)
        index = Path(f"{path}{INDEX}")
        if self.is_folder and not path.is_file() and index.is_file():
            return read_shards(index)
        return read_safetensors(path)

    def torch(self, name: str | None = None, allow: Sequence[Any] = ()) -> Any:
        """Read a torch file of the folder, or the file itself; as ``read_torch``, once."""
        key = f"torch:{name}:{len(allow)}"
        if key not in self._read:
            path = self.file(name) if name is not None else self.path
            self._read[key] = read_torch(path, allow=allow)
        return self._read[key]

    def peek_torch(self, name: str | None = None, allow: Sequence[Any] = ()) -> Any:
        """Read as ``torch``, but None if it cannot be read: for recognising."""
        try:
            return self.torch(name, allow)
        except VlmEditError:
            return None


def _shardable(name: str) -> bool:
    return name.endswith(".safetensors")


def expect_matrix(where: object, tensors: Mapping[str, Any], name: str, axes: int = 2) -> Tensor:
    """Return a matrix of a file that has been opened, or what has more axes.

    Raises:
        VlmEditError: Missing, empty, not a plain tensor of so many axes of floating-point numbers,
            or a view that claims more numbers than the file holds.
    """
    matrix = _expect_tensor(where, tensors, name, axes)
    if not matrix.numel():  # whose other side may be of any size
        raise DamagedFile(f"{where}: {name} is empty, of shape {tuple(matrix.shape)}")
    return matrix


def expect_vector(where: object, tensors: Mapping[str, Any], name: str) -> Tensor:
    """Return a vector of a file that has been opened, float32, a copy; finite.

    Raises:
        VlmEditError: As ``expect_matrix``, or NaN or infinity.
    """
    return _finite(where, name, _expect_tensor(where, tensors, name, 1))


def expect_scalar(where: object, tensors: Mapping[str, Any], name: str) -> float:
    """Return one number of a file that has been opened: a tensor of one element, or a number.

    Raises:
        VlmEditError: Missing, not one number, or not finite.
    """
    value = tensors.get(name)
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.layout is not torch.strided or value.is_complex():
            raise DamagedFile(f"{where}: {name} has shape {tuple(value.shape)}, expected a number")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadArgument(f"{where}: {name} must be a number, got {str(value)[:60]!r}")
    if not abs(value) < float("inf"):
        raise DamagedFile(f"{where}: {name} is {value}: the file is damaged")
    return float(value)


def expect_whole(where: object, values: Mapping[str, Any], name: str) -> int:
    """Return a whole number above 0 of a file that has been opened.

    Raises:
        VlmEditError: Missing, or something else.
    """
    value = values.get(name)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadArgument(
            f"{where}: {name} must be a whole number above 0, got {str(value)[:60]!r}"
        )
    return value


def expect_flag(where: object, values: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return whether something is said to be so in a file that has been opened.

    Raises:
        VlmEditError: It says neither true nor false.
    """
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise BadArgument(f"{where}: {name} must be true or false, got {repr(value)[:60]}")
    return value


def expect_names(
    where: object, tensors: Mapping[str, Any], needed: set[str], optional: set[str] | None = None
) -> None:
    """Refuse a file that lacks a tensor, or has one that nobody would read.

    Raises:
        VlmEditError: It says which.
    """
    missing = sorted(needed - set(tensors))
    extra = sorted(str(name) for name in set(tensors) - needed - (optional or set()))
    if missing:
        raise DamagedFile(f"{where}: tensors missing: {', '.join(missing)}")
    if extra:
        raise DamagedFile(
            f"{where}: tensors that this architecture does not have: {', '.join(extra)[:200]}; "
            "reading on would give other codes than the ones trained"
        )


def _expect_tensor(where: object, tensors: Mapping[str, Any], name: str, axes: int) -> Tensor:
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor):
        raise DamagedFile(f"{where}: {name} is missing or is not a tensor")
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        kind = "nested" if tensor.is_nested else f"{tensor.layout}, {tensor.device.type}"
        raise BadArgument(f"{where}: {name} is not a plain tensor in memory ({kind})")
    if not tensor.is_floating_point():
        raise DamagedFile(f"{where}: {name} is {tensor.dtype}, expected floating-point numbers")
    if tensor.ndim != axes:
        raise DamagedFile(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {axes} axes")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DamagedFile(
            f"{where}: {name} claims shape {tuple(tensor.shape)}, more numbers than the file holds"
        )
    return tensor.detach()


def _finite(where: object, name: str, tensor: Tensor) -> Tensor:
    vector = tensor.to(torch.float32, copy=True)
    if not bool(vector.isfinite().all()):
        raise DamagedFile(f"{where}: {name} holds NaN or infinity: the file is damaged")
    return vector
