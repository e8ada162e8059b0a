"""The command ``vlm-edit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vlm_edit._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; as ``cli.command.main``, but torch is not imported for a version.

    Example:
        >>> main(["--version"])
        vlm-edit 0.1.0
        0
    """
    listed = sys.argv[1:] if arguments is None else list(arguments)
    if listed == ["--version"]:
        print(f"vlm-edit {__version__}")
        return 0
    from vlm_edit.cli import command

    return command.main(listed)


__all__ = ["main"]
