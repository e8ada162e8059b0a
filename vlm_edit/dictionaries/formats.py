"""Recognise a dictionary's format on disk and read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlm_edit.dictionaries import saelens
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.errors import VlmEditError


@dataclass(frozen=True)
class Format:
    """One way dictionaries lie on disk.

    Attributes:
        name: As users name it.
        files: What lies there, for messages.
        recognises: Whether a path is in this format, by its content.
        read: Reads it, or raises a VlmEditError.
    """

    name: str
    files: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Dictionary]


FORMATS = (
    Format("saelens", f"{saelens.CONFIG} and {saelens.WEIGHTS}", saelens.recognises, saelens.read),
)


def load_dictionary(path: str | os.PathLike[str], format: str | None = None) -> Dictionary:
    """Read a dictionary from disk.

    Args:
        path: A folder as SAELens v6 saves it: ``cfg.json`` and ``sae_weights.safetensors``, and
            optionally ``centers.safetensors`` with a vector per stream.
        format: The format's name; by default recognised by content.

    Returns:
        The dictionary, float32, on the CPU.

    Raises:
        VlmEditError: No such path, unknown or ambiguous format, or content that is not valid.

    Example:
        >>> import tempfile, torch
        >>> from vlm_edit import Dictionary, load_dictionary
        >>> from vlm_edit.dictionaries import Encoder, save_saelens
        >>> relu = Dictionary(Encoder(torch.eye(4), torch.zeros(4)), torch.eye(4), torch.zeros(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_saelens(relu, folder)
        ...     load_dictionary(folder).n_features
        4
    """
    path = Path(path)
    if not path.exists():
        raise VlmEditError(f"no dictionary at {str(path)!r}: the path does not exist")
    if format is not None:
        named = [f for f in FORMATS if f.name == format]
    else:
        named = [f for f in FORMATS if f.recognises(path)]
    names = ", ".join(f.name for f in FORMATS)
    if not named:
        what = f"format {format!r}" if format else f"the format of {str(path)!r}"
        expected = "; ".join(f"{f.name} has {f.files}" for f in FORMATS)
        raise VlmEditError(f"{what} is not known; known formats: {names} ({expected})")
    if len(named) > 1:
        fits = ", ".join(f.name for f in named)
        raise VlmEditError(f"{str(path)!r} could be {fits}: say which with format=")
    return named[0].read(path)
