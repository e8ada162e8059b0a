"""Measure which features of a vision-language model belong to which modality, and edit them.

What stands here is what most need; each name is imported when it is first used. The rest lies in
the rooms: ``vlm_edit.selection``, ``vlm_edit.measuring``, ``vlm_edit.edits`` and so on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlm_edit._version import __version__
from vlm_edit.ground.plugs import plug

if TYPE_CHECKING:
    from vlm_edit.dictionaries import Dictionary, load_dictionary
    from vlm_edit.edits import Ablate, Clamp, Keep, Project, Scale, Steer
    from vlm_edit.ground.errors import VlmEditError
    from vlm_edit.hooks import record
    from vlm_edit.host import Adapter, Host, find_sites
    from vlm_edit.measuring import Measurement, Pairs, measure, read_pairs
    from vlm_edit.patches import Patch, load_patch
    from vlm_edit.selection import by_class

_ROOMS = {
    "Ablate": "edits",
    "Adapter": "host",
    "Clamp": "edits",
    "Dictionary": "dictionaries",
    "Host": "host",
    "Keep": "edits",
    "Measurement": "measuring",
    "Pairs": "measuring",
    "Patch": "patches",
    "Project": "edits",
    "Scale": "edits",
    "Steer": "edits",
    "VlmEditError": "ground.errors",
    "by_class": "selection",
    "find_sites": "host",
    "load_dictionary": "dictionaries",
    "load_patch": "patches",
    "measure": "measuring",
    "read_pairs": "measuring",
    "record": "hooks",
}

__all__ = [
    "Ablate",
    "Adapter",
    "Clamp",
    "Dictionary",
    "Host",
    "Keep",
    "Measurement",
    "Pairs",
    "Patch",
    "Project",
    "Scale",
    "Steer",
    "VlmEditError",
    "__version__",
    "by_class",
    "find_sites",
    "load_dictionary",
    "load_patch",
    "measure",
    "read_pairs",
    "record",
]


# What lower rooms ask for and may not import.
plug("page", lambda: import_module("vlm_edit.report").write_page)
plug("sheet", lambda: import_module("vlm_edit.report").feature_sheet)
plug("browse", lambda: import_module("vlm_edit.report").browse)
plug("compare", lambda: import_module("vlm_edit.tasks.comparing").compare)
plug("prepare", lambda: import_module("vlm_edit.hooks").prepare)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is there, imported or not."""
    return sorted({*globals(), *__all__})
