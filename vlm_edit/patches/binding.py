"""Binding: a splice at a site, and the tokens it is made to."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from vlm_edit.dictionaries import Dictionary, StoredDictionary, identity
from vlm_edit.edits import Splice
from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import Selection

_identities: weakref.WeakKeyDictionary[Dictionary | StoredDictionary, dict[str, Any]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class Binding:
    """A splice at a site.

    Attributes:
        site: The site's name.
        splice: What is done there.
        selection: The tokens it is done to.
        model_name: The host that the dictionary's file names, if it does.
        dictionary: The dictionary, until it is ``told``; then what is told of it. None if a file
            of format 1 does not tell.
        schedule: Factors of the change at decode steps 0, 1, ...; the last one stays. The
            prompt's is 1. None for 1 everywhere.
    """

    site: str
    splice: Splice
    selection: Selection = field(default_factory=Selection)
    model_name: str | None = None
    dictionary: Dictionary | StoredDictionary | Mapping[str, Any] | None = None
    schedule: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the schedule."""
        if self.schedule is None:
            return
        listed = self.schedule if isinstance(self.schedule, list | tuple) else ()
        if not listed or not all(_is_finite(value) for value in listed):
            raise VlmEditError(
                f"schedule is {self.schedule!r}; give a list of finite numbers, the factor of each "
                "decode step"
            )
        object.__setattr__(self, "schedule", tuple(float(value) for value in listed))

    def told(self) -> Mapping[str, Any] | None:
        """What identifies the dictionary: digest, sizes, activation, norm and info, JSON-able.

        The digest reads all of its weights, at the first call. The dictionary is let go then.
        """
        known = self.dictionary
        if known is None or isinstance(known, Mapping):
            return known
        if known not in _identities:
            _identities[known] = identity(known)
        told = _identities[known]
        object.__setattr__(self, "dictionary", told)
        return told


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(cast("float", value))
