"""The index of a store: what it holds, of which host, and where each part lies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.files import write_text

# The index of a whole store, and of one that is still being written, which may lie beside it.
WHOLE, BEGUN = "activations.json", "collecting.json"
FORMAT, VERSION = "vlm-edit activations", 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAIRS = ".pairs"  # behind a stream's name: the number of each row's pair
_AGAIN = "collect them anew, by the same command with --overwrite"


@dataclass(frozen=True)
class Part:
    """A file of a store.

    Attributes:
        file: Its name.
        checksum: Of all that is in it.
        size: Its bytes.
        rows: How many, by stream.
        batches: The first of its batches, and the first of the next part's.
    """

    file: str
    checksum: str
    size: int
    rows: Mapping[str, int]
    batches: tuple[int, int]


@dataclass(frozen=True)
class Index:
    """What a store holds.

    Attributes:
        name: Of this store's files, by which they are told from another's in the same folder.
        site: Where the activations are of.
        streams: Their names.
        width: Of each activation.
        dtype: As they are stored, a key of ``DTYPES``.
        batches: How many there are in all.
        batch_size: Pairs in each but the last.
        origin: What must be the same for the activations to come out the same.
        pairs: The file that tells which image each pair shows; None before anything was read.
        next_batch: The batch that comes next.
        parts: What was written.
        left_out: Numbers of pairs whose image could not be read, with the reason.
        truncated: Texts cut at the host's limit.
        asked: What the host was asked first.
    """

    name: str
    site: str
    streams: tuple[str, ...]
    width: int
    dtype: str
    batches: int
    batch_size: int
    origin: Mapping[str, Any]
    pairs: Part | None = None
    next_batch: int = 0
    parts: tuple[Part, ...] = ()
    left_out: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    truncated: int = 0
    asked: str | None = None

    def rows(self, stream: str) -> int:
        """Return how many rows of a stream were written."""
        return sum(part.rows[stream] for part in self.parts)

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        told = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(path, json.dumps(told, indent=1) + "\n", "index of activations")


def read_index(folder: Path, begun: bool = False) -> Index | None:
    """Read the index in a folder; None where there is none.

    Args:
        folder: Of a store.
        begun: Read that of a store that is still being written.

    Raises:
        DamagedFile: It cannot be read.
        BadArgument: It is of a later version.
    """
    path = folder / (BEGUN if begun else WHOLE)
    try:
        told = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} cannot be read ({error}): {_AGAIN}") from error
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise DamagedFile(f"{path} is no index of activations: name another folder")
    version = told.pop("version", None)
    if version != VERSION:
        raise BadArgument(
            f"{path} is of version {version}, and this vlm-edit reads version {VERSION}: take the "
            "one that wrote it, or collect anew"
        )
    try:
        return _index(told)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = type(error).__name__
        raise DamagedFile(f"{path} is damaged ({kind}: {error}): {_AGAIN}") from error


def _index(told: dict[str, Any]) -> Index:
    parts = tuple(_part(part) for part in told.pop("parts"))
    left_out = tuple((int(number), str(why)) for number, why in told.pop("left_out"))
    pairs, streams = _part(told.pop("pairs")), tuple(told.pop("streams"))
    index = Index(**told, streams=streams, pairs=pairs, parts=parts, left_out=left_out)
    whole = (index.width, index.batches, index.batch_size, index.next_batch, index.truncated)
    if not re.fullmatch(r"[0-9a-f]{8,64}", index.name):
        raise ValueError(f"{index.name!r} is no name of a store's files")
    if not streams or index.dtype not in DTYPES or not all(type(n) is int for n in whole):
        raise ValueError("streams, width, dtype or a number is none")
    ends = [0, *(part.batches[1] for part in parts)]
    if [part.batches[0] for part in parts] != ends[:-1] or ends[-1] != index.next_batch:
        raise ValueError("its parts do not follow each other")
    if any(set(part.rows) != set(streams) for part in parts):
        raise ValueError("a part has other streams")
    return index


def _part(told: Mapping[str, Any]) -> Part:
    file = str(told["file"])
    if Path(file).name != file or file.startswith("."):
        raise ValueError(f"{file!r} is no name of a file in this folder")
    rows = {str(stream): int(count) for stream, count in told["rows"].items()}
    begin, end = told["batches"]
    return replace(Part(**told), rows=rows, batches=(int(begin), int(end)))
