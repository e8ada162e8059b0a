"""Edits: rules on codes, and the one splice that brings them into a hidden state."""

from vlm_edit.edits.rules import Ablate, Clamp, Rule, Scale, Steer, rule_from_dict
from vlm_edit.edits.splice import Splice

__all__ = [
    "Ablate",
    "Clamp",
    "Rule",
    "Scale",
    "Splice",
    "Steer",
    "rule_from_dict",
]
