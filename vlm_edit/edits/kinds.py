"""Rules as JSON-able values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vlm_edit.edits.moves import Detect, Project
from vlm_edit.edits.rule import Rule
from vlm_edit.edits.rules import Ablate, Blend, Cap, Clamp, Keep, Scale, Steer
from vlm_edit.errors import VlmEditError

_KINDS: dict[str, type[Rule]] = {
    rule.kind: rule for rule in (Ablate, Blend, Cap, Clamp, Detect, Keep, Project, Scale, Steer)
}
# Fields that files of before they were there do without.
_LATER = {"relative"}


def rule_from_dict(values: Mapping[str, Any]) -> Rule:
    """A rule from ``Rule.to_dict``.

    Raises:
        VlmEditError: An unknown kind of rule, or fields it does not have.

    Example:
        >>> rule_from_dict({"kind": "scale", "features": [4], "strength": 1.0, "factor": 0.5})
        Scale(features=(4,), strength=1.0, factor=0.5)
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise VlmEditError(f"unknown rule {kind!r}; known rules: {', '.join(_KINDS)}")
    rest = {key: value for key, value in values.items() if key != "kind"}
    known = {item.name for item in fields(_KINDS[kind])}
    if not known - _LATER <= set(rest) <= known:
        raise VlmEditError(
            f"rule {kind!r} has the fields {sorted(known)}, the file has {sorted(rest)}"
        )
    return _KINDS[kind](**rest)
