"""Rules as JSON-able values, and the open registry of what kinds of rules there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from vlm_edit.edits.moves import Detect, Project
from vlm_edit.edits.rule import Rule
from vlm_edit.edits.rules import Ablate, Blend, Cap, Clamp, Keep, Scale, Steer
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError
from vlm_edit.ground.registry import Registry

RULES: Registry[type[Rule]] = Registry("rule", "vlm_edit.rules", type, Rule)
for _rule in (Ablate, Blend, Cap, Clamp, Detect, Keep, Project, Scale, Steer):
    RULES.add(_rule.kind, _rule)
# Fields that files of before they were there do without.
_LATER = {"relative"}

R = TypeVar("R", bound=type[Rule])


def register_rule(rule: R) -> R:
    """Add a rule of one's own, so that patches with it can be saved and loaded: a decorator.

    It is known where this has run. A package that others install declares it as an entry point of
    the group ``vlm_edit.rules`` instead, whose name is the rule's ``kind``.

    Args:
        rule: A frozen dataclass that inherits from ``Rule``, with a ``kind`` of its own.

    Returns:
        The class itself.

    Raises:
        BadArgument: Not such a class, or its kind is another rule's.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_rule
        ... @dataclass(frozen=True)
        ... class Flip(Rule):
        ...     kind = "flip"
        ...
        ...     def target(self, code):
        ...         return -code
        >>> rule_from_dict(Flip([3]).to_dict())
        Flip(features=(3,), strength=1.0)
        >>> RULES.remove("flip")
    """
    _expect_rule(rule)
    RULES.add(rule.kind, rule)
    return rule


def rule_from_dict(values: Mapping[str, Any]) -> Rule:
    """Make a rule of what ``Rule.to_dict`` gave.

    Raises:
        VlmEditError: An unknown kind of rule, or fields it does not have.

    Example:
        >>> rule_from_dict({"kind": "scale", "features": [4], "strength": 1.0, "factor": 0.5})
        Scale(features=(4,), strength=1.0, factor=0.5)
    """
    kind = values.get("kind")
    rule = RULES.find(
        kind, "; install what brings it, or import the module that decorates it with register_rule"
    )
    _expect_rule(rule)
    if rule.kind != kind:
        raise BadArgument(
            f"the entry point {kind!r} of {RULES.group} names {rule.__name__}, whose kind is "
            f"{rule.kind!r}: call the entry point so"
        )
    rest = {key: value for key, value in values.items() if key != "kind"}
    known = {item.name for item in fields(rule)}
    if not known - _LATER <= set(rest) <= known:
        raise DamagedFile(
            f"rule {kind!r} has the fields {sorted(known)}, the file has {sorted(rest)}"
        )
    return rule(**rest)


def expect_savable(rules: Sequence[Rule]) -> None:
    """Refuse rules that would come back from a file as others, or not at all.

    Raises:
        BadArgument: A rule that is not registered, or that its own values do not make again.
    """
    for rule in rules:
        kind, name = rule.kind, type(rule).__name__
        if kind not in RULES.names() or RULES.find(kind) is not type(rule):
            raise BadArgument(
                f"{name} is not registered as a rule, so that nobody could load the file: decorate "
                "the class with vlm_edit.edits.register_rule, or declare it as an entry point of "
                f"the group {RULES.group}"
            )
        try:
            again = rule_from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False)))
        except (TypeError, ValueError) as error:
            why = error if isinstance(error, VlmEditError) else f"{type(error).__name__}: {error}"
            raise BadArgument(f"{name} would not come back from a file: {why}") from error
        if again != rule:
            raise BadArgument(
                f"{name} would come back from a file as {again!r}, and it is {rule!r}: keep in its "
                "fields what JSON can hold, all that it is made of"
            )


def _expect_rule(rule: object) -> None:
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise BadArgument(f"{rule!r} is no rule: inherit from vlm_edit.edits.Rule")
    own = rule.__dict__.get("kind")
    if not isinstance(own, str) or not own:
        raise BadArgument(f"{rule.__name__} needs a kind of its own, a word: kind = '...'")
    if not is_dataclass(rule) or "__dataclass_fields__" not in rule.__dict__:
        raise BadArgument(f"{rule.__name__} must be a dataclass itself: @dataclass(frozen=True)")
