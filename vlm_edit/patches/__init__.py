"""Patches: edits bound to sites, attached to a host, saved and shared as one file."""

from vlm_edit.patches.attaching import attached, detach_all, detached
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.baking import Baked as Baked
from vlm_edit.patches.binding import Binding as Binding
from vlm_edit.patches.card import baked_card as baked_card
from vlm_edit.patches.card import binding_rows as binding_rows
from vlm_edit.patches.card import dictionary_text as dictionary_text
from vlm_edit.patches.card import host_text as host_text
from vlm_edit.patches.comparing import differences as differences
from vlm_edit.patches.patch import Patch, load_patch
from vlm_edit.patches.patch_set import PatchSet
from vlm_edit.patches.report import Report as Report
from vlm_edit.patches.report import SiteReport as SiteReport
from vlm_edit.patches.rows import attach_rows
from vlm_edit.patches.storage import is_patch as is_patch
from vlm_edit.patches.trial import try_edit as try_edit

__all__ = [
    "Attachment",
    "Patch",
    "PatchSet",
    "attach_rows",
    "attached",
    "detach_all",
    "detached",
    "load_patch",
]
