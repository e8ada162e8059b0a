"""The licence of a dictionary: what its page says, or the index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlm_edit.dictionaries.formats.format import Stored
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.releases import releases
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.licences import licence_above

LICENCE = "licence"


def licensed(stored: Stored, place: Path, name: str) -> Stored:
    """Return a dictionary whose ``info`` has its licence, where one is known.

    Args:
        stored: The dictionary.
        place: Its file or folder. The page beside it is asked first, and of a repository those
            above it; then what the file itself says stands.
        name: Of its release or repository, for the index, which is asked last.
    """
    if isinstance(stored, PairedDictionary):
        image, text = (_with(half, place, name) for half in (stored.image, stored.text))
        return PairedDictionary(image, text)
    if isinstance(stored, Transcoder):
        return replace(stored, inner=_with(stored.inner, place, name))
    return _with(stored, place, name)


def _with(stored: StoredDictionary, place: Path, name: str) -> StoredDictionary:
    licence = licence_above(place) or stored.info.get(LICENCE) or _indexed(name)
    return replace(stored, info={**stored.info, LICENCE: licence}) if licence else stored


def _indexed(name: str) -> str:
    known = releases()
    found = known.get(name) or next((r for r in known.values() if r.repo == name), None)
    return found.licence if found else ""
