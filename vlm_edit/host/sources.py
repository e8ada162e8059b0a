"""Where a model is loaded from: a folder, a repository on the hub, or another distribution."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.hub import asked, listing
from vlm_edit.ground.registry import Registry

# Hosts that distributions bring, asked for as ``shelf:name``: functions of the name that return a
# model and its processor.
SHELVES: Registry[Callable[[str], tuple[Any, Any]]] = Registry(
    "shelf of hosts", "vlm_edit.hosts", FunctionType
)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_INDEX, _CONFIG = "model_index.json", "config.json"


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from.

    Attributes:
        name: A folder, or a repository.
        index: The file that says what is there.
        options: What loading from there takes besides.
        cached: Whether the hub was not asked.
    """

    name: str | Path
    index: Path
    options: Mapping[str, Any]
    cached: bool = False

    @property
    def commit(self) -> str | None:
        """Which of a repository's; None of a folder."""
        return self.options.get("revision")

    @property
    def is_pipeline(self) -> bool:
        """Whether it holds a pipeline."""
        return self.index.name == _INDEX


def find(name: str | Path, revision: str | None) -> Source:
    """Find a model's folder or repository, and whether it is a pipeline.

    Raises:
        VlmEditError: There is none, or one that may not be read.
    """
    for index in (_INDEX, _CONFIG):
        if (Path(name) / index).is_file():
            return Source(name, Path(name, index), {})
    if Path(name).exists() or not HUB_NAME.fullmatch(str(name)):
        shelves = "".join(f", or {shelf}:NAME" for shelf in SHELVES.names())
        raise BadArgument(
            f"no model at {str(name)!r}: it must be a folder with a config.json, as "
            f"model.save_pretrained(folder) writes it (a pipeline's has a model_index.json), "
            f"owner/name on the hub{shelves}"
        )
    return _find_repository(str(name), revision)


def _find_repository(name: str, revision: str | None) -> Source:
    from huggingface_hub import hf_hub_download

    files, cache = listing(name, revision, "model")
    index = next((file for file in (_INDEX, _CONFIG) if file in files), None)
    if index is None:
        raise BadArgument(
            f"the repository {name} (or what is cached of it) has neither a config.json of "
            "transformers nor a model_index.json of diffusers"
        )
    if cache is not None:
        return Source(name, cache / index, {"revision": cache.name, "local_files_only": True}, True)
    # A repository's files are listed for everybody, and may still be closed to most.
    place = asked(
        name, lambda: hf_hub_download(name, index, revision=revision), "model", revision=revision
    )
    # Everything else of the same commit, whatever becomes of a branch meanwhile.
    return Source(name, Path(place), {"revision": Path(place).parent.name})
