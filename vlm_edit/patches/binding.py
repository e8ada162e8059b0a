"""Binding: a splice at a site, and the tokens it is made to."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_edit.edits import Splice
from vlm_edit.hooks import Selection


@dataclass(frozen=True, eq=False)
class Binding:
    """A splice at a site.

    Attributes:
        site: The site's name.
        splice: What is done there.
        selection: The tokens it is done to.
        model_name: The host that the dictionary's file names, if it does.
    """

    site: str
    splice: Splice
    selection: Selection = field(default_factory=Selection)
    model_name: str | None = None
