"""Have transformers or diffusers load a folder: no code of it runs, and why it fails is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import VlmEditError

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


def expect_diffusers(diffusers: Any) -> None:
    """Refuse a version that imports modules because a folder names them.

    Raises:
        VlmEditError: It is an earlier one than ``DIFFUSERS``.
    """
    found = str(diffusers.__version__)
    parts = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", found)
    release = tuple(int(part or 0) for part in parts.groups()) if parts else ()
    floor = tuple(map(int, DIFFUSERS.split(".")))
    unfinished = parts and re.match(r"\.?(a|b|rc|dev)", found[parts.end() :])
    if release < floor or (release == floor and unfinished):
        raise VlmEditError(
            f"diffusers {found} may run code that a pipeline's folder names: update it to "
            f"{DIFFUSERS} or later, pip install 'vlm-edit[diffusion]'"
        )
