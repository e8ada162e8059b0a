"""The command ``vlm-edit``."""

from vlm_edit.cli.main import main

__all__ = ["main"]
