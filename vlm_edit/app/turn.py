"""What a visitor turns: features, a rule on them, how strongly, and at which tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from vlm_edit.dictionaries import AnyDictionary
from vlm_edit.edits import Rule, rule_from_dict
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.hooks import Phase, TokenChoice
from vlm_edit.patches import Patch

# The rules that are offered, each with the number it takes beside its strength.
KINDS: Mapping[str, str | None] = {
    "ablate": None,
    "scale": "factor",
    "clamp": "value",
    "steer": "amount",
    "cap": "most",
    "keep": None,
}


@dataclass(frozen=True)
class Turn:
    """Hold what a visitor turned; it becomes a patch, or Python that makes the same patch.

    Attributes:
        features: Their numbers.
        kind: Of the rule, a key of ``KINDS``.
        amount: The rule's factor, value, amount or most; not used by rules without one.
        strength: 0 changes nothing, 1 is the rule, more goes beyond.
        own: Strengths of single features instead.
        tokens: As for ``Patch``.
        phase: Likewise.

    Example:
        >>> for rule in Turn([7, 12], "scale", 2.0, own={12: 0.5}).rules():
        ...     print(rule)
        Scale(features=(7,), strength=1.0, factor=2.0)
        Scale(features=(12,), strength=0.5, factor=2.0)
    """

    features: Sequence[int]
    kind: str = "ablate"
    amount: float = 0.0
    strength: float = 1.0
    own: Mapping[int, float] = field(default_factory=dict)
    tokens: TokenChoice = "all"
    phase: Phase = "both"

    def rules(self) -> list[Rule]:
        """Return a rule for each strength, in the order of the features.

        Raises:
            VlmEditError: No feature, an unknown rule, or several strengths for a rule that is
                about all other features.
        """
        if self.kind not in KINDS:
            raise UnknownName(f"no rule {self.kind!r}: the page has {', '.join(KINDS)}")
        if not self.features:
            raise BadArgument("no feature is chosen: choose a class, names or numbers")
        groups: dict[float, list[int]] = {}
        for feature in self.features:
            groups.setdefault(float(self.own.get(feature, self.strength)), []).append(feature)
        if self.kind == "keep" and len(groups) > 1:
            raise BadArgument(
                "keep loses all features but the chosen ones, so it has one strength: set those "
                "of single features alike"
            )
        named = KINDS[self.kind]
        more = {} if named is None else {named: float(self.amount)}
        return [
            rule_from_dict({"kind": self.kind, "features": some, "strength": strength, **more})
            for strength, some in groups.items()
        ]

    def patch(self, site: str, dictionary: AnyDictionary) -> Patch:
        """Return the patch.

        Args:
            site: Where it edits.
            dictionary: Whose features these are.

        Raises:
            VlmEditError: As ``rules``, or a feature that the dictionary lacks.
        """
        return Patch(site, dictionary, self.rules(), self.tokens, phase=self.phase)

    def code(self, site: str) -> str:
        """Return Python that makes the same patch of a ``dictionary``.

        Args:
            site: Where it edits.

        Raises:
            VlmEditError: As ``rules``.

        Example:
            >>> print(Turn([7, 12]).code("joint"))
            from vlm_edit import Patch
            from vlm_edit.edits import Ablate
            <BLANKLINE>
            patch = Patch("joint", dictionary, Ablate([7, 12]))
        """
        rules = self.rules()
        names = sorted({type(rule).__name__ for rule in rules})
        written = [_written(rule) for rule in rules]
        inside = written[0] if len(written) == 1 else f"[{', '.join(written)}]"
        more = f', tokens="{self.tokens}"' if self.tokens != "all" else ""
        more += f', phase="{self.phase}"' if self.phase != "both" else ""
        return (
            f"from vlm_edit import Patch\nfrom vlm_edit.edits import {', '.join(names)}\n\n"
            f'patch = Patch("{site}", dictionary, {inside}{more})'
        )


def _written(rule: Rule) -> str:
    """Return a rule as one writes it, without what goes without saying."""
    words = [str(list(rule.features))]
    for item in fields(rule):
        value = getattr(rule, item.name)
        plain = (item.name == "strength" and value == 1.0) or value is False
        if item.name != "features" and not plain:
            words.append(f"{item.name}={value!r}")
    return f"{type(rule).__name__}({', '.join(words)})"
