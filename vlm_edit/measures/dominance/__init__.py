"""Dominance of features: scores, intervals, tests, classes; and the modality gap."""

from vlm_edit.measures.dominance.accumulator import DominanceAccumulator, modality_dominance
from vlm_edit.measures.dominance.classes import CLASSES
from vlm_edit.measures.dominance.classes import RULE as RULE
from vlm_edit.measures.dominance.classes import Cut as Cut
from vlm_edit.measures.dominance.flips import LEVELS as LEVELS
from vlm_edit.measures.dominance.flips import flipped_sums as flipped_sums
from vlm_edit.measures.dominance.gap import GapAccumulator as GapAccumulator
from vlm_edit.measures.dominance.gap import modality_gap
from vlm_edit.measures.dominance.images import drawn as drawn
from vlm_edit.measures.dominance.null import null_histogram as null_histogram
from vlm_edit.measures.dominance.order import candidates as candidates
from vlm_edit.measures.dominance.order import sureness as sureness
from vlm_edit.measures.dominance.pairing import fisher_p as fisher_p
from vlm_edit.measures.dominance.power import HasDominance as HasDominance
from vlm_edit.measures.dominance.power import dominance_of as dominance_of
from vlm_edit.measures.dominance.power import how_many_pairs
from vlm_edit.measures.dominance.result import FEW as FEW
from vlm_edit.measures.dominance.result import Dominance
from vlm_edit.measures.dominance.result import Zeros as Zeros
from vlm_edit.measures.dominance.scores import class_rows as class_rows

__all__ = [
    "CLASSES",
    "Dominance",
    "DominanceAccumulator",
    "how_many_pairs",
    "modality_dominance",
    "modality_gap",
]
