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

from vlm_edit.measures.groups.coactivation import Coactivation as Coactivation
from vlm_edit.measures.groups.coactivation import coactivation
from vlm_edit.measures.groups.fusion import Fusion, fusion_by_category
from vlm_edit.measures.groups.fusion import WordFusion as WordFusion
from vlm_edit.measures.groups.fusion import fusion_degree as fusion_degree
from vlm_edit.measures.groups.gap import GapUnder as GapUnder
from vlm_edit.measures.groups.gap import Treatment as Treatment
from vlm_edit.measures.groups.gap import centred, deleted, gap_under, standardised
from vlm_edit.measures.groups.gap import one_sided_change as one_sided_change
from vlm_edit.measures.groups.spread import Spread, direction_spread, example_spread
from vlm_edit.measures.groups.spread import class_means as class_means

__all__ = [
    "Fusion",
    "Spread",
    "centred",
    "coactivation",
    "deleted",
    "direction_spread",
    "example_spread",
    "fusion_by_category",
    "gap_under",
    "standardised",
]
