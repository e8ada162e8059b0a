"""Tell in a line why transformers or diffusers cannot load something, and keep them quiet."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import VlmEditError

DIFFUSERS = "0.42.1"  # earlier ones import what a folder names
_LONGEST = 400  # of what a library says

ADAPTER = (
    "A model of a kind it does not know can be loaded in Python and given an adapter: "
    "docs/writing-an-adapter.md"
)
_CODE = (
    "Code of a folder or repository never runs unless you ask for it: once you have read it, with "
    "trust_remote_code=True"
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
        wants_code = "trust_remote_code" in str(error) or "custom code" in str(error)
        told = sentences(str(error)) or type(error).__name__
        raise VlmEditError(
            f"{path}: {library} cannot load it: {told}. {_CODE if wants_code else mend}"
        ) from error


def sentences(text: str) -> str:
    r"""Return what a library says on one line, whole sentences of it where it says too much.

    Example:
        >>> sentences("Torchvision is missing. See the\ninstallation page.")
        'Torchvision is missing. See the installation page'
    """
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        ends = [found.end() for found in re.finditer(r"[.!?](?= )", text[: _LONGEST + 1])]
        text = text[: ends[-1]] if ends else f"{text[:_LONGEST].rpartition(' ')[0]} ..."
    return text.rstrip(" .") if not text.endswith(" ...") else text[:-1]


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
