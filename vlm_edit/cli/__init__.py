"""The command ``vlm-edit``."""

from vlm_edit.cli.command import main as main
