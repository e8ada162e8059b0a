"""Random controls: what any deletion of features does, beside what the deletion of a class does.

Taking features out always costs something. Whether the loss is the class's own shows beside
deletions that are alike in one respect and random in every other:

| control | alike in |
| --- | --- |
| ``random_features`` | the number of features |
| ``activity_matched`` | the sum of their mean activity |
| ``activity_paired`` | the number of features, and each one's mean activity |
| ``norm_matched`` | how far the hidden states move, on average |
| ``turned`` | how far each hidden state moves, and when: only the direction is random |

All but ``turned`` are deletions of real features, so that what remains is a code that the
dictionary could have made. Random features of the same number with their change stretched to the
class's norm are not offered: where none of them fires there is nothing to stretch, and elsewhere
codes end below zero.
"""

from vlm_edit.measures.controls.curve import FRACTIONS as FRACTIONS
from vlm_edit.measures.controls.curve import DeletionCurve as DeletionCurve
from vlm_edit.measures.controls.curve import Metric as Metric
from vlm_edit.measures.controls.curve import deletion_curve
from vlm_edit.measures.controls.features import (
    activity,
    activity_matched,
    activity_paired,
    norm_matched,
    random_features,
    turned,
)
from vlm_edit.measures.controls.features import deletion_norms as deletion_norms
from vlm_edit.measures.controls.features import expect_known as expect_known

__all__ = [
    "activity",
    "activity_matched",
    "activity_paired",
    "deletion_curve",
    "norm_matched",
    "random_features",
    "turned",
]
