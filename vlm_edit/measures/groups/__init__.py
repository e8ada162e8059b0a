"""What the features of a class have in common, and what moves their dominance.

| question | answer |
| --- | --- |
| Do they point the same way, or answer to the same things? | ``direction_spread``, |
| | ``example_spread``, each beside random groups of as many features |
| What is a score of theirs on average? | ``class_means`` |
| Does what a group does in images follow what another does in texts? | ``coactivation`` |
| Does dominance see the modality gap shrink? | ``gap_under`` |
| Which words do features of both modalities carry? | ``fusion_by_category`` |

Groups come from ``Dominance.classes(rule)``, or are any lists of features.
"""

from vlm_edit.measures.groups.coactivation import Coactivation, coactivation
from vlm_edit.measures.groups.fusion import Fusion, WordFusion, fusion_by_category, fusion_degree
from vlm_edit.measures.groups.gap import (
    GapUnder,
    Treatment,
    centred,
    deleted,
    gap_under,
    one_sided_change,
    standardised,
)
from vlm_edit.measures.groups.spread import Spread, class_means, direction_spread, example_spread

__all__ = [
    "Coactivation",
    "Fusion",
    "GapUnder",
    "Spread",
    "Treatment",
    "WordFusion",
    "centred",
    "class_means",
    "coactivation",
    "deleted",
    "direction_spread",
    "example_spread",
    "fusion_by_category",
    "fusion_degree",
    "gap_under",
    "one_sided_change",
    "standardised",
]
