"""Stability: whether features get the same score and class again, and come back at all.

``stability_of_halves`` asks other pairs, ``stability_of_seeds`` dictionaries trained anew. What
does not recur is a fact about a draw, not about the host.
"""

from vlm_edit.measures.stability.agreement import Agreement, agreement
from vlm_edit.measures.stability.agreement import class_numbers as class_numbers
from vlm_edit.measures.stability.halves import HalvesStability, stability_of_halves
from vlm_edit.measures.stability.seeds import SeedPair, SeedsStability, stability_of_seeds

__all__ = [
    "Agreement",
    "HalvesStability",
    "SeedPair",
    "SeedsStability",
    "agreement",
    "stability_of_halves",
    "stability_of_seeds",
]
