"""The command ``vlm-edit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vlm_edit._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; as ``cli.command.main``, but for a version nothing else is imported.

    Example:
        >>> main(["--version"])
        vlm-edit 0.1.0
        0
    """
    typed = sys.argv[1:] if arguments is None else list(arguments)
    if typed == ["--version"]:
        print(f"vlm-edit {__version__}")
        return 0
    from vlm_edit.cli import command

    return command.main(typed)


__all__ = ["main"]
