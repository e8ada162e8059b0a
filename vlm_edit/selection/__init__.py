"""Which features to edit: lists of their numbers, by what is known of them.

| selector | asks |
| --- | --- |
| ``by_class``, ``by_score``, ``by_firing`` | a measurement: class, score, share of pairs |
| ``by_concept`` | the host: what tells examples of a concept from others |
| ``by_difference``, ``by_direction`` | the same of codes at hand |
| ``by_effect`` | the host's gradient: what an output owes to each feature |
| ``by_answers`` | codes of questions answered right and wrong |
| ``union``, ``intersection``, ``difference``, ``random_like`` | lists |

All give plain lists, as rules and patches take them:
``Ablate(by_class(dominance, "vision")[:20])``. An empty list is an answer: nothing passed.
"""

from vlm_edit.selection.attribution import by_effect, effects
from vlm_edit.selection.concepts import Examples, Seen, by_concept
from vlm_edit.selection.concepts import read_examples as read_examples
from vlm_edit.selection.contrast import by_answers, by_difference, by_direction
from vlm_edit.selection.contrast import mean_codes as mean_codes
from vlm_edit.selection.contrast import rank_test as rank_test
from vlm_edit.selection.contrast import standardised_difference as standardised_difference
from vlm_edit.selection.scores import Chosen as Chosen
from vlm_edit.selection.scores import FewFeatures as FewFeatures
from vlm_edit.selection.scores import Kind as Kind
from vlm_edit.selection.scores import by_class, by_firing, by_score
from vlm_edit.selection.sets import difference, intersection, random_like, union

__all__ = [
    "Examples",
    "Seen",
    "by_answers",
    "by_class",
    "by_concept",
    "by_difference",
    "by_direction",
    "by_effect",
    "by_firing",
    "by_score",
    "difference",
    "effects",
    "intersection",
    "random_like",
    "union",
]
