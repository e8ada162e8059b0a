"""Edits: rules on codes, and the one splice that brings them into a hidden state."""

from vlm_edit.edits.gate import Gate
from vlm_edit.edits.kinds import RULES, expect_savable, register_rule, rule_from_dict
from vlm_edit.edits.moves import Detect, Move, Project
from vlm_edit.edits.rule import Rule
from vlm_edit.edits.rules import Ablate, Blend, Cap, Clamp, Keep, Scale, Steer
from vlm_edit.edits.splice import Splice

__all__ = [
    "RULES",
    "Ablate",
    "Blend",
    "Cap",
    "Clamp",
    "Detect",
    "Gate",
    "Keep",
    "Move",
    "Project",
    "Rule",
    "Scale",
    "Splice",
    "Steer",
    "expect_savable",
    "register_rule",
    "rule_from_dict",
]
