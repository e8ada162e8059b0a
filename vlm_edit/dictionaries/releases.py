"""The index of public dictionaries: what a release of SAELens, or a repository, is here.

``index.json`` is written by ``python docs/experiments dictionaries.index``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from vlm_edit.ground.errors import BadArgument, UnknownName

_HOLE = "{}"
_NEAREST = 5


@dataclass(frozen=True)
class Release:
    """One release of public dictionaries, as far as it is known.

    Attributes:
        family: Whose it is, one row of the table in docs/dictionaries.md.
        release: The name that SAELens has for it, or the repository's.
        repo: ``owner/name`` on the hub.
        host: Host's name on the hub.
        site: Where it was trained; ``{}`` is the layer.
        width: Numbers of features, as they are written there.
        k: Of TopK.
        licence: As the repository says, by the hub's name for it; empty where it is not known.
        format: Name of its format here.
        read: ``read``, where a file of it was; ``golden``, where only files that its library wrote
            were, to that library's codes; ``untried``.
        id: Pattern of the dictionaries' names in it, with ``{}`` for what differs.
        file: Pattern of what they are in the repository.
        exact: Names that follow no pattern, with their files.
        example: One of its names.

    Example:
        >>> found = releases()["llama_scope_lxr_8x"]
        >>> found.place("l15r_8x")
        'Llama3_1-8B-Base-L15R-8x'
    """

    family: str
    release: str
    repo: str
    host: str = ""
    site: str = ""
    width: str = ""
    k: str = ""
    licence: str = ""
    format: str = ""
    read: str = "untried"
    id: str = _HOLE
    file: str = _HOLE
    exact: Mapping[str, str] = field(default_factory=dict)
    example: str = ""

    def place(self, sae_id: str | None) -> str | None:
        """Return the file or folder of a dictionary; None for a repository of one.

        Raises:
            BadArgument: A name that it does not have, or none where it has several.
        """
        if sae_id is not None and sae_id in self.exact:
            return self.exact[sae_id]
        if sae_id is None:
            if not self.example:
                return None  # the hub tells what there is
            raise BadArgument(f"release {self.release!r} holds several: {self._known()}")
        pattern = re.escape(self.id).replace(re.escape(_HOLE), "(.+)")
        match = re.fullmatch(pattern, sae_id) if self.id else None
        if match is None:
            raise BadArgument(f"release {self.release!r} has no sae_id {sae_id!r}: {self._known()}")
        return self.file.replace(_HOLE, match[1])

    def _known(self) -> str:
        return f"say sae_id= such as {self.example or self.id.replace(_HOLE, '...')!r}"


@cache
def releases() -> dict[str, Release]:
    """Return all releases of the index, by name."""
    text = files("vlm_edit.dictionaries").joinpath("index.json").read_text("utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return {row["release"]: Release(**row) for row in rows}


def resolve(release: str, sae_id: str | None) -> tuple[str, str | None]:
    """Return the repository of a release, and the file or folder in it.

    Raises:
        UnknownName: A release that the index does not have.
        BadArgument: As ``Release.place``.
    """
    known = releases()
    if release not in known:
        near = difflib.get_close_matches(str(release), known, _NEAREST, 0.4)
        raise UnknownName(
            f"release {str(release)!r} is not in the index of {len(known)}"
            + (f"; near it are {', '.join(near)}" if near else "")
            + ": or name its repository and file="
        )
    found = known[release]
    return found.repo, found.place(sae_id)
