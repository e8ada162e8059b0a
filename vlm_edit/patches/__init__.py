"""Patches: edits bound to sites, attached to a host, saved and shared as one file."""

from vlm_edit.patches.binding import Binding
from vlm_edit.patches.patch import Attachment, Patch, load_patch

__all__ = ["Attachment", "Binding", "Patch", "load_patch"]
