"""Patches: edits bound to sites, attached to a host, saved and shared as one file."""

from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.baking import Baked
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.patch import Patch, load_patch
from vlm_edit.patches.report import Report, SiteReport
from vlm_edit.patches.rows import attach_rows

__all__ = [
    "Attachment",
    "Baked",
    "Binding",
    "Patch",
    "Report",
    "SiteReport",
    "attach_rows",
    "load_patch",
]
