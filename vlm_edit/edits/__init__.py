"""Edits: rules on codes, and the one splice that brings them into a hidden state."""

from vlm_edit.edits.gate import Gate as Gate
from vlm_edit.edits.kinds import RULES as RULES
from vlm_edit.edits.kinds import expect_savable as expect_savable
from vlm_edit.edits.kinds import register_rule
from vlm_edit.edits.kinds import rule_from_dict as rule_from_dict
from vlm_edit.edits.moves import Detect, Move, Project
from vlm_edit.edits.rule import Rule
from vlm_edit.edits.rules import Ablate, Blend, Cap, Clamp, Keep, Scale, Steer
from vlm_edit.edits.splice import Splice as Splice
from vlm_edit.edits.splice import mixes_features as mixes_features
from vlm_edit.edits.splice import reads_codes as reads_codes
from vlm_edit.edits.splice import touched_by as touched_by

__all__ = [
    "Ablate",
    "Blend",
    "Cap",
    "Clamp",
    "Detect",
    "Keep",
    "Move",
    "Project",
    "Rule",
    "Scale",
    "Steer",
    "register_rule",
]
