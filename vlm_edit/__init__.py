"""Measure which features of a vision-language model belong to which modality, and edit them."""

from vlm_edit.dictionaries import Dictionary, load_dictionary
from vlm_edit.dominance import Dominance, modality_dominance, modality_gap
from vlm_edit.edits import Ablate, Blend, Cap, Clamp, Detect, Keep, Project, Scale, Steer
from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import record
from vlm_edit.measurement import (
    Judge,
    Measurement,
    centred,
    collect,
    load_measurement,
    measure,
    measure_part,
    merge_parts,
)
from vlm_edit.pairs import Pairs, read_pairs
from vlm_edit.patches import Patch, attach_rows, load_patch
from vlm_edit.selection import (
    by_answers,
    by_class,
    by_concept,
    by_effect,
    by_firing,
    by_score,
    random_like,
)
from vlm_edit.sites import Adapter, SiteRule, TapRule, find_sites
from vlm_edit.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Ablate",
    "Adapter",
    "Blend",
    "Cap",
    "Clamp",
    "Detect",
    "Dictionary",
    "Dominance",
    "Judge",
    "Keep",
    "Measurement",
    "Pairs",
    "Patch",
    "Project",
    "Scale",
    "SiteRule",
    "Steer",
    "TapRule",
    "VlmEditError",
    "attach_rows",
    "by_answers",
    "by_class",
    "by_concept",
    "by_effect",
    "by_firing",
    "by_score",
    "centred",
    "collect",
    "find_sites",
    "load_dictionary",
    "load_measurement",
    "load_patch",
    "measure",
    "measure_part",
    "merge_parts",
    "modality_dominance",
    "modality_gap",
    "random_like",
    "read_pairs",
    "record",
    "tune",
]
